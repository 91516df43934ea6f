//! `exec`: another process in a container, confined as its first one.

use std::fs;
use std::os::fd::AsFd;

use cgroup::Hierarchies;
use container::sys::process::{close_all_except, fork};
use container::sys::signals;
use container::{Entry, Report, Stdio, channel, spec};

use crate::cli::{Cli, ExecArgs};
use crate::create::{channel_pair, kept};
use crate::error::Error;
use crate::state::{self, Record, Status};
use crate::{bundle, handed, log, seccomp, terminal};

pub(crate) fn exec(cli: &Cli, args: &ExecArgs) -> Result<u8, Error> {
    handed::check(args.preserve_fds)?;
    let record = state::load(cli, &args.id)?;
    let node = Hierarchies::detect()?;
    match record.status(cli, &node) {
        Status::Created | Status::Running => {}
        Status::Paused if args.ignore_paused => {}
        Status::Paused => return Err(Error::Paused { id: record.id }),
        other => {
            return Err(Error::WrongState { verb: "exec in", id: record.id, status: other.word() });
        }
    }
    let process = process(args, &record)?;
    if process.terminal && args.detach && args.console_socket.is_none() {
        return Err(Error::Usage("a detached terminal needs --console-socket".into()));
    }
    let plan = container::plan::plan_process(&process, &container::own_facts())?;
    let memory_policy =
        record.memory_policy.as_ref().map(container::plan::memory_policy).transpose()?;
    let seccomp = record.seccomp.as_ref().map(seccomp::Kept::load).transpose()?;
    let below: Vec<_> = args.cgroup.iter().map(|text| below(text)).collect();

    signals::block_all_signals();
    let (ours, theirs) = channel_pair()?;
    let stdio = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let entry = Entry {
        init_pid: record.pid,
        process: &plan,
        node: &node,
        cgroup: &record.cgroup,
        tracker: None,
        below: &below,
        stdio: if plan.terminal { Stdio::Terminal } else { Stdio::Pipes(stdio) },
        seccomp: seccomp.as_ref(),
        memory_policy: memory_policy.as_ref(),
        channel: theirs.as_fd(),
        sibling: true,
        preserve_fds: args.preserve_fds,
    };
    let keep = kept(args.preserve_fds, [theirs.as_fd()]);
    fork(|| run_creator(&entry, &keep)).map_err(Error::system("fork"))?;
    drop(theirs);
    let (mut pid, mut master) = (0, None);
    loop {
        match channel::listen(ours.as_fd()).map_err(Error::system("listen to the process"))? {
            Report::Init { pid: own } => pid = own,
            Report::Ready { terminal, .. } => {
                if let Some(master) = terminal.as_ref().filter(|_| args.console_socket.is_none()) {
                    terminal::plain_newlines(master.as_fd());
                }
                master = terminal;
            }
            Report::Failed(error) => return Err(error.into()),
            Report::Closed if pid == 0 => {
                return Err(container::Error::new(
                    "exec",
                    "the process was killed while it was set up",
                )
                .into());
            }
            Report::Closed => break,
            Report::Listener(fd) => {
                if let Some(kept) = &record.seccomp {
                    kept.hand_over(&record, Status::Running, pid, &fd)?;
                }
            }
            Report::Clamped(text) => log::warn(cli, &text),
            Report::External { .. } => {}
        }
    }
    if let Some(path) = &args.pid_file {
        fs::write(path, pid.to_string()).map_err(Error::file("write", path))?;
    }
    if let Some(socket) = &args.pidfd_socket {
        terminal::send_pidfd(socket, pid)?;
    }
    if let (Some(fd), Some(socket)) = (&master, &args.console_socket) {
        terminal::send(socket, fd.as_fd())?;
        master = None;
    }
    if args.detach { Ok(0) } else { terminal::attend(pid, master) }
}

/// `[CONTROLLERS:]PATH`
fn below(text: &str) -> (String, String) {
    let (controllers, path) = text.split_once(':').unwrap_or(("", text));
    (controllers.to_owned(), path.to_owned())
}

fn run_creator(entry: &Entry<'_>, keep: &[i32]) -> i32 {
    close_all_except(keep);
    match container::enter(entry) {
        Ok(_) => 0,
        Err(error) => {
            channel::say_failed(entry.channel, &error);
            1
        }
    }
}

/// The process of `--process`, or the container's own with what the flags change.
fn process(args: &ExecArgs, record: &Record) -> Result<spec::Process, Error> {
    if let Some(path) = &args.process {
        let text = fs::read(path).map_err(Error::file("open", path))?;
        return serde_json::from_slice(&text)
            .map_err(|source| Error::Json { path: path.clone(), source });
    }
    if args.args.is_empty() {
        return Err(Error::Usage("no command to run".into()));
    }
    let (spec, _) = bundle::open(&record.bundle)?;
    let mut p = spec.process.unwrap_or_default();
    p.args = Some(args.args.clone());
    p.terminal = args.tty;
    p.console_size = None;
    p.no_new_privileges |= args.no_new_privs;
    p.env.get_or_insert_default().extend(args.env.iter().cloned());
    if let Some(cwd) = &args.cwd {
        p.cwd.clone_from(cwd);
    }
    if let Some(label) = &args.process_label {
        p.selinux_label = Some(label.clone());
    }
    if let Some(profile) = &args.apparmor {
        p.apparmor_profile = Some(profile.clone());
    }
    if let Some(user) = &args.user {
        let (uid, gid) = user.split_once(':').map_or((user.as_str(), None), |(u, g)| (u, Some(g)));
        let number = |text: &str| {
            text.parse::<u32>().map_err(|_| {
                Error::Usage(format!("--user {user}: numbers are wanted, as UID or UID:GID"))
            })
        };
        (p.user.uid, p.user.gid) = (number(uid)?, gid.map_or(Ok(0), number)?);
    }
    p.user.additional_gids.get_or_insert_default().extend(&args.additional_gids);
    if !args.cap.is_empty() {
        let caps = p.capabilities.get_or_insert_default();
        let mut sets = vec![&mut caps.bounding, &mut caps.effective, &mut caps.permitted];
        if caps.inheritable.as_ref().is_some_and(|i| !i.is_empty()) {
            sets.push(&mut caps.ambient);
        }
        for set in sets {
            set.get_or_insert_default().extend(args.cap.iter().cloned());
        }
    }
    Ok(p)
}
