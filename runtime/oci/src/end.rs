//! `kill`, `delete`, `pause`, `resume`.

use std::time::{Duration, Instant};

use cgroup::unit::Unit;
use cgroup::{Hierarchies, Removal};
use container::hooks::Moment;
use container::sys::process::signal;

use crate::cli::{Cli, DeleteArgs, KillArgs};
use crate::error::Error;
use crate::state::{self, Record, Status};
use crate::{log, scope, shown};

/// A group that is busy longer than this after its kill holds a process that cannot end.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn kill(cli: &Cli, args: &KillArgs) -> Result<(), Error> {
    let record = state::load(cli, &args.id)?;
    let number = number(&args.signal)?;
    let node = Hierarchies::detect()?;
    if args.all {
        for pid in node.pids(&record.cgroup)? {
            let _ = signal(pid, number); // those that have ended meanwhile need none
        }
        return Ok(());
    }
    // Where init is not pid 1 of its own, the kernel does not end the others with it.
    if number == libc::SIGKILL && !record.own_pids && !node.pids(&record.cgroup)?.is_empty() {
        return Ok(node.kill(&record.cgroup).map(drop)?);
    }
    if !record.is_alive() {
        return Err(Error::NotRunning { id: record.id });
    }
    signal(record.pid, number).map_err(Error::system("kill"))?;
    if number == libc::SIGKILL {
        node.thaw(&record.cgroup)?; // a frozen process does not die
    }
    Ok(())
}

pub(crate) fn delete(cli: &Cli, args: &DeleteArgs) -> Result<(), Error> {
    let record = match state::load(cli, &args.id) {
        Err(Error::NoContainer { .. }) if args.force => return Ok(()),
        other => other?,
    };
    let node = Hierarchies::detect()?;
    let status = record.status(cli, &node);
    if !args.force && !matches!(status, Status::Stopped | Status::Created) {
        return Err(Error::WrongState { verb: "delete", id: record.id, status: status.word() });
    }
    remove(cli, &record, &node)
}

/// Kills what lives and removes group and record.
pub(crate) fn remove(cli: &Cli, record: &Record, node: &Hierarchies) -> Result<(), Error> {
    if record.is_alive() {
        let _ = signal(record.pid, libc::SIGKILL);
    }
    clear(node, &record.cgroup)?;
    if let Some(unit) = &record.scope {
        scope::stop(unit)?;
    }
    if let Some(id) = record.shown {
        shown::take_away(&record.rootfs, id)?;
    }
    container::rdt::remove(&record.rdt)?;
    let dir = state::dir(cli, &record.id)?;
    std::fs::remove_dir_all(&dir).map_err(Error::file("remove", dir))?;
    // The container is gone whatever they say: a failure is only told.
    for failure in record.hooks.run_all(Moment::Poststop, &record.bundle) {
        log::report(cli, &failure.into());
    }
    Ok(())
}

/// As part of a failure that is reported already.
pub(crate) fn clear_group(node: &Hierarchies, group: &str, unit: Option<&Unit>) {
    let _ = clear(node, group);
    let _ = unit.map(|unit| scope::stop(&unit.scope));
}

fn clear(node: &Hierarchies, group: &str) -> Result<(), Error> {
    let until = Instant::now() + PATIENCE;
    while node.remove(group)? == Removal::Busy {
        if Instant::now() > until {
            return Err(Error::Usage(format!("cgroup {group}: processes in it do not end")));
        }
        node.kill(group)?;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

pub(crate) fn freeze(cli: &Cli, id: &str, frozen: bool) -> Result<(), Error> {
    let record = state::load(cli, id)?;
    let node = Hierarchies::detect()?;
    let (verb, wanted) =
        if frozen { ("pause", Status::Running) } else { ("resume", Status::Paused) };
    let status = record.status(cli, &node);
    if status != wanted && !(frozen && status == Status::Created) {
        return Err(Error::WrongState { verb, id: record.id, status: status.word() });
    }
    if !frozen {
        return Ok(node.thaw(&record.cgroup)?);
    }
    node.freeze(&record.cgroup)?;
    let until = Instant::now() + PATIENCE;
    while !node.is_frozen(&record.cgroup)? {
        if Instant::now() > until {
            node.thaw(&record.cgroup)?;
            return Err(Error::Usage(format!("cgroup {}: it does not freeze", record.cgroup)));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// `15`, `TERM`, `SIGTERM`, `RTMIN+3`.
pub(crate) fn number(word: &str) -> Result<i32, Error> {
    const NAMES: [(&str, i32); 31] = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ILL", libc::SIGILL),
        ("TRAP", libc::SIGTRAP),
        ("ABRT", libc::SIGABRT),
        ("BUS", libc::SIGBUS),
        ("FPE", libc::SIGFPE),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("SEGV", libc::SIGSEGV),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("STKFLT", libc::SIGSTKFLT),
        ("CHLD", libc::SIGCHLD),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("URG", libc::SIGURG),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
        ("VTALRM", libc::SIGVTALRM),
        ("PROF", libc::SIGPROF),
        ("WINCH", libc::SIGWINCH),
        ("IO", libc::SIGIO),
        ("PWR", libc::SIGPWR),
        ("SYS", libc::SIGSYS),
    ];
    let upper = word.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |name: &str, base: i32, sign: i32| {
        let offset = short.strip_prefix(name)?.trim_start_matches(['+', '-']);
        if offset.is_empty() {
            Some(base)
        } else {
            offset.parse::<i32>().ok().map(|n| base + sign * n)
        }
    };
    let found = short
        .parse()
        .ok()
        .or_else(|| NAMES.iter().find(|(n, _)| *n == short).map(|(_, number)| *number))
        .or_else(|| real_time("RTMIN", 34, 1))
        .or_else(|| real_time("RTMAX", 64, -1));
    found
        .filter(|n| (0..=64).contains(n))
        .ok_or_else(|| Error::Usage(format!("unknown signal {word:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_known_by_number_and_by_each_of_its_names() {
        for (word, want) in
            [("9", 9), ("KILL", 9), ("sigkill", 9), ("RTMIN+3", 37), ("SIGRTMAX-1", 63), ("0", 0)]
        {
            assert_eq!(number(word).expect(word), want);
        }
        for word in ["", "NONE", "65", "-1"] {
            assert!(number(word).is_err(), "{word}");
        }
    }
}
