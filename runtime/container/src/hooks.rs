//! Hooks of the specification: programs of the node's owner, run at their point of a container's life with its state
//! on standard input, each within its time.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use serde::{Deserialize, Serialize};

use crate::error::{Error, words};
use crate::spec::{self, Hook, Spec};
use crate::sys::process::with_default_signals;

/// A hook that names no timeout still may not hold a container for ever: longer than any start is awaited.
const PATIENCE: Duration = Duration::from_secs(300);
/// What is shown of a failed hook's standard error.
const COMPLAINT_MAX: u64 = 1024;

/// The hooks of a specification by when they run, in their order, and what they are told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Hooks {
    /// On the host, once the container's namespaces and mounts are there.
    pub create_runtime: Vec<Hook>,
    /// So many of them, the first ones, were listed as `prestart`.
    #[serde(default)]
    prestart: usize,
    /// In the container's namespaces, while the host's files are still seen.
    pub create_container: Vec<Hook>,
    /// In the container, just before its program.
    pub start_container: Vec<Hook>,
    /// On the host, when the program runs.
    pub poststart: Vec<Hook>,
    /// On the host, when the container is gone.
    pub poststop: Vec<Hook>,
    /// The state without pid and status.
    about: serde_json::Map<String, serde_json::Value>,
}

/// Checks the hooks of a specification.
///
/// # Errors
/// A hook whose path is not absolute or whose timeout is not positive, by its list.
pub fn read(spec: &Spec, id: &str) -> Result<Hooks, Error> {
    let none = spec::Hooks::default();
    let hooks = spec.hooks.as_ref().unwrap_or(&none);
    let list = |name: &str, hooks: &Option<Vec<Hook>>| {
        let hooks = hooks.clone().unwrap_or_default();
        let stage = format!("hooks.{name}");
        for hook in &hooks {
            if !hook.path.is_absolute() {
                let path = hook.path.display();
                return Err(Error::new(stage, format!("{path:?} is not an absolute path")));
            }
            if hook.timeout.is_some_and(|t| t <= 0) {
                return Err(Error::new(stage, "a timeout must be greater than zero"));
            }
        }
        Ok(hooks)
    };
    // The deprecated prestart hooks run at the same point, first.
    let mut create_runtime = list("prestart", &hooks.prestart)?;
    let prestart = create_runtime.len();
    create_runtime.extend(list("createRuntime", &hooks.create_runtime)?);
    let state = serde_json::json!({
        "ociVersion": spec.version,
        "id": id,
        "annotations": spec.annotations.clone().unwrap_or_default(),
    });
    Ok(Hooks {
        create_runtime,
        prestart,
        create_container: list("createContainer", &hooks.create_container)?,
        start_container: list("startContainer", &hooks.start_container)?,
        poststart: list("poststart", &hooks.poststart)?,
        poststop: list("poststop", &hooks.poststop)?,
        about: state.as_object().cloned().unwrap_or_default(),
    })
}

/// When a list of hooks runs: its name, and the container's status at that point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Hooks {
    /// Runs the hooks of a moment one after the other, up to the first that fails. `pid` is init's where the hooks
    /// run; 0 when it is gone.
    pub fn run(&self, moment: Moment, pid: i32, bundle: &Path) -> Result<(), Error> {
        self.outcomes(moment, pid, bundle, &[]).collect()
    }

    /// Runs those that come just before the program, in its place: one without an environment has the program's.
    pub(crate) fn run_before(&self, pid: i32, bundle: &Path, env: &[CString]) -> Result<(), Error> {
        self.outcomes(Moment::StartContainer, pid, bundle, env).collect()
    }

    /// Runs all hooks of a moment, whether or not some fail, and returns the failures.
    pub fn run_all(&self, moment: Moment, bundle: &Path) -> Vec<Error> {
        self.outcomes(moment, 0, bundle, &[]).filter_map(Result::err).collect()
    }

    /// Each hook runs when its outcome is asked for.
    fn outcomes(
        &self,
        moment: Moment,
        pid: i32,
        bundle: &Path,
        env: &[CString],
    ) -> impl Iterator<Item = Result<(), Error>> {
        let (name, status, hooks) = self.at(moment);
        let state = self.state(status, pid, bundle);
        let before = if moment == Moment::CreateRuntime { self.prestart } else { 0 };
        hooks.iter().enumerate().map(move |(at, hook)| {
            // Named as they are listed.
            let (name, at) = if at < before { ("prestart", at) } else { (name, at - before) };
            run(hook, &state, env).map_err(|why| {
                let stage = format!("error running {name} hook #{at}");
                Error::new(stage, format!("{}: {why}", hook.path.display()))
            })
        })
    }

    fn at(&self, moment: Moment) -> (&'static str, &'static str, &[Hook]) {
        match moment {
            Moment::CreateRuntime => ("createRuntime", "creating", &self.create_runtime),
            Moment::CreateContainer => ("createContainer", "creating", &self.create_container),
            Moment::StartContainer => ("startContainer", "created", &self.start_container),
            Moment::Poststart => ("poststart", "running", &self.poststart),
            Moment::Poststop => ("poststop", "stopped", &self.poststop),
        }
    }

    fn state(&self, status: &str, pid: i32, bundle: &Path) -> String {
        let mut state = self.about.clone();
        state.insert("status".into(), status.into());
        state.insert("bundle".into(), bundle.to_string_lossy().into());
        if pid > 0 {
            state.insert("pid".into(), pid.into());
        }
        serde_json::Value::from(state).to_string()
    }
}

fn run(hook: &Hook, state: &str, inherited: &[CString]) -> Result<(), String> {
    let said = |e: std::io::Error| words(&e);
    let memfd = |name: &str| -> Result<File, String> {
        let fd: Result<OwnedFd, _> = memfd_create(name, MemfdFlags::CLOEXEC);
        fd.map(File::from).map_err(|e| said(e.into()))
    };
    // Files, not pipes: a hook that does not read or writes without end blocks nobody.
    let (mut input, errors) = (memfd("state")?, memfd("errors")?);
    input.write_all(state.as_bytes()).map_err(said)?;
    input.seek(SeekFrom::Start(0)).map_err(said)?;
    let mut command = Command::new(&hook.path);
    // The first argument is the name the program goes by, as for execv.
    if let Some((name, rest)) = hook.args.as_deref().unwrap_or_default().split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear().process_group(0);
    match &hook.env {
        Some(env) => command.envs(env.iter().filter_map(|pair| pair.split_once('='))),
        None => command.envs(inherited.iter().filter_map(|pair| {
            let at = pair.as_bytes().iter().position(|b| *b == b'=')?;
            let (name, value) = pair.as_bytes().split_at(at);
            Some((OsStr::from_bytes(name), OsStr::from_bytes(&value[1..])))
        })),
    };
    command.stdin(input).stdout(Stdio::null());
    command.stderr(errors.try_clone().map_err(said)?);
    with_default_signals(&mut command);
    let limit = hook.timeout.and_then(|t| u64::try_from(t).ok()).map(Duration::from_secs);
    let limit = limit.unwrap_or(PATIENCE);
    let mut child = command.spawn().map_err(said)?;
    match wait(&mut child, limit).map_err(said)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("{status}{}", complaint(errors))),
        None => Err(format!("did not end within {} s; killed", limit.as_secs())),
    }
}

/// `None` when it did not end in time and was killed, with the processes of its group.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>, std::io::Error> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec { tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: 0 };
    let ended = loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other? > 0,
        }
    };
    if !ended {
        kill_process_group(pid, Signal::KILL)?;
    }
    let status = child.wait()?;
    Ok(ended.then_some(status))
}

fn complaint(mut errors: File) -> String {
    let mut text = Vec::new();
    let read = errors
        .seek(SeekFrom::Start(0))
        .and_then(|_| errors.take(COMPLAINT_MAX).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    match read {
        Ok(n) if n > 0 => format!(": {}", text.trim()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(json: &str) -> Result<Hooks, Error> {
        let text = format!(r#"{{"ociVersion":"1.2.0","annotations":{{"a":"b"}},"hooks":{json}}}"#);
        read(&serde_json::from_str(&text).expect("spec"), "c1")
    }

    fn sh(script: &str, rest: &str) -> Hooks {
        let json = format!(
            r#"{{"poststop":[{{"path":"/bin/sh","args":["sh","-c",{}]{rest}}}]}}"#,
            serde_json::json!(script)
        );
        hooks(&json).expect("valid")
    }

    fn end(hooks: &Hooks) -> Result<(), Error> {
        hooks.run(Moment::Poststop, 0, Path::new("/b"))
    }

    #[test]
    fn a_hook_is_told_the_state_on_standard_input_and_given_only_its_own_environment() {
        let dir = tempfile::tempdir().expect("tempdir");
        let out = dir.path().join("out");
        let script = format!("/bin/cat > {0}; echo $X-$HOME >> {0}", out.display());
        let list = sh(&script, r#","env":["X=1"]"#);
        end(&list).expect("runs");
        let text = std::fs::read_to_string(out).expect("out");
        let (state, env) = text.split_once("}1-").expect("state, then environment");
        let state: serde_json::Value = serde_json::from_str(&format!("{state}}}")).expect("JSON");
        assert_eq!(
            state,
            serde_json::json!({"ociVersion":"1.2.0","id":"c1","status":"stopped","bundle":"/b",
                "annotations":{"a":"b"}})
        );
        assert_eq!(env, "\n");
    }

    #[test]
    fn a_failed_hook_is_named_with_what_it_said() {
        let error = end(&sh("echo why >&2; exit 3", "")).expect_err("fails").to_string();
        assert_eq!(error, "error running poststop hook #0: /bin/sh: exit status: 3: why");
        let missing = hooks(r#"{"poststop":[{"path":"/no/such"}]}"#).expect("valid");
        let error = end(&missing).expect_err("missing").to_string();
        assert_eq!(error, "error running poststop hook #0: /no/such: No such file or directory");
    }

    #[test]
    fn a_hook_that_does_not_end_is_killed_with_its_children_after_its_time() {
        let since = std::time::Instant::now();
        let error = end(&sh("sleep 50 & sleep 50", r#","timeout":1"#)).expect_err("late");
        assert!(error.message.contains("within 1 s"), "{error}");
        assert!(since.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_hook_that_cannot_run_as_written_is_refused_by_its_list() {
        for (json, stage) in [
            (r#"{"prestart":[{"path":"relative"}]}"#, "hooks.prestart"),
            (r#"{"createContainer":[{"path":"/x","timeout":0}]}"#, "hooks.createContainer"),
        ] {
            assert_eq!(hooks(json).expect_err(stage).stage, stage);
        }
    }

    #[test]
    fn prestart_hooks_come_before_those_of_create_runtime() {
        let both = r#"{"createRuntime":[{"path":"/2"}],"prestart":[{"path":"/1"}]}"#;
        let paths: Vec<_> =
            hooks(both).expect("valid").create_runtime.into_iter().map(|h| h.path).collect();
        assert_eq!(paths, [Path::new("/1"), Path::new("/2")]);
        let both = r#"{"createRuntime":[{"path":"/bin/true"},{"path":"/no/2"}],"prestart":[{"path":"/no/1"}]}"#;
        let failures: Vec<String> = hooks(both)
            .expect("valid")
            .run_all(Moment::CreateRuntime, Path::new("/b"))
            .into_iter()
            .map(|e| e.stage)
            .collect();
        assert_eq!(
            failures,
            ["error running prestart hook #0", "error running createRuntime hook #1"]
        );
    }
}
