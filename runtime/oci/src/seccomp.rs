//! `linux.seccomp`: compiled once per profile and root directory, kept for later execs, its listener handed over.

use std::fs;
use std::io::{ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use container::{Seccomp, Spec};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use ::seccomp::{DEFAULT_FLAGS, Program};

use crate::cli::Cli;
use crate::error::Error;
use crate::log;
use crate::state::{Record, Status};

/// What is kept of a profile with the container's record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Kept {
    program: PathBuf,
    flags: u32,
    listener: Option<Listener>,
}

/// Who answers the notifications.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Listener {
    path: PathBuf,
    metadata: Option<String>,
}

/// Compiles the profile of a specification into `dir`, for this start and for later execs.
pub(crate) fn compile(
    cli: &Cli,
    spec: &Spec,
    dir: &Path,
) -> Result<Option<(Kept, Seccomp)>, Error> {
    let Some(profile) = spec.linux.as_ref().and_then(|l| l.seccomp.as_ref()) else {
        return Ok(None);
    };
    let text = profile.text();
    // A container's id does not begin with a dot, so this is none.
    let place = cli.root.join(".seccomp");
    let store = seccomp::Compiler::open(place.clone())?;
    let (code, file, flags, listener) = match store.known(text) {
        Some((code, file)) => (code, file, DEFAULT_FLAGS, None),
        None => {
            start_anew(&place)?;
            let profile: LinuxSeccomp = serde_json::from_str(text)
                .map_err(|e| Error::Seccomp(format!("linux.seccomp: {e}")))?;
            let listener = listener(&profile)?;
            let (Program { code, flags }, file) = store.spec(&profile)?;
            if flags == DEFAULT_FLAGS && listener.is_none() {
                store.know(text, &file)?;
            }
            (code, file, flags, listener)
        }
    };
    log::debug(cli, || format!("seccomp filter flags: {flags}"));
    // A name of the container's own, under which it stays whatever becomes of the store.
    let program = dir.join("seccomp.bpf");
    match fs::hard_link(&file, &program) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            fs::write(&program, &code).map_err(Error::file("write", &program))?;
        }
        other => other.map_err(Error::file("link", &program))?,
    }
    Ok(Some((Kept { program, flags, listener }, Seccomp { program: code, flags })))
}

/// A store that has become large is emptied: whoever writes a profile of its own for each container would fill it for
/// ever.
fn start_anew(store: &Path) -> Result<(), Error> {
    const MOST: usize = 1024; // names, two for a program
    let list = || fs::read_dir(store).map_err(Error::file("list", store));
    if list()?.count() >= MOST {
        for entry in list()?.flatten() {
            let _ = fs::remove_file(entry.path()); // by another one of us already
        }
    }
    Ok(())
}

/// Checks that notifications reach somebody and do not stop the start itself.
fn listener(profile: &LinuxSeccomp) -> Result<Option<Listener>, Error> {
    let notifies = |action| action == LinuxSeccompAction::ScmpActNotify;
    let refuse = |why: &str| Err(Error::Seccomp(format!("linux.seccomp: {why}")));
    if notifies(profile.default_action()) {
        return refuse("SCMP_ACT_NOTIFY as the default action would stop the start itself");
    }
    let rules = profile.syscalls().iter().flatten().filter(|rule| notifies(rule.action()));
    let names: Vec<&String> = rules.flat_map(|rule| rule.names()).collect();
    // The listener's descriptor goes out by sendmsg; write tells of errors.
    if let Some(name) = names.iter().find(|n| ["sendmsg", "write"].contains(&n.as_str())) {
        return refuse(&format!(
            "SCMP_ACT_NOTIFY cannot be used for the {name} syscall: it would stop the start itself"
        ));
    }
    let path = profile.listener_path().clone().filter(|p| !p.as_os_str().is_empty());
    let metadata = profile.listener_metadata().clone().filter(|m| !m.is_empty());
    match path {
        None if !names.is_empty() => refuse("SCMP_ACT_NOTIFY needs a listenerPath"),
        None if metadata.is_some() => refuse("listenerMetadata needs a listenerPath"),
        // Without a rule that notifies there is nothing to listen to.
        _ if names.is_empty() => Ok(None),
        path => Ok(path.map(|path| Listener { path, metadata })),
    }
}

impl Kept {
    /// The program again, for another process of the container.
    pub(crate) fn load(&self) -> Result<Seccomp, Error> {
        let program = fs::read(&self.program).map_err(Error::file("read", &self.program))?;
        Ok(Seccomp { program, flags: self.flags })
    }

    /// Gives the listener of process `pid` to the agent, as the specification's container process state says.
    pub(crate) fn hand_over(
        &self,
        record: &Record,
        status: Status,
        pid: i32,
        fd: &OwnedFd,
    ) -> Result<(), Error> {
        let Some(Listener { path, metadata }) = &self.listener else { return Ok(()) };
        let fail = |e: rustix::io::Errno| {
            Error::file("failed to connect with seccomp agent", path)(e.into())
        };
        let kind = SocketType::STREAM;
        let socket =
            socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).map_err(fail)?;
        connect(&socket, &SocketAddrUnix::new(path).map_err(fail)?).map_err(fail)?;
        let text = json!({
            "ociVersion": record.oci_version,
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": metadata.clone().unwrap_or_default(),
            "state": record.state(status),
        });
        let fds = [fd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let text = text.to_string();
        sendmsg(&socket, &[IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)
            .map_err(fail)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_emptied_when_it_has_become_large() {
        let dir = tempfile::tempdir().expect("tempdir");
        let count = || fs::read_dir(dir.path()).expect("list").count();
        for n in 0..1024 {
            start_anew(dir.path()).expect("start anew");
            fs::write(dir.path().join(n.to_string()), "").expect("write");
        }
        assert_eq!(count(), 1024);
        start_anew(dir.path()).expect("start anew");
        assert_eq!(count(), 0);
    }

    fn check(json: serde_json::Value) -> Result<Option<Listener>, String> {
        listener(&serde_json::from_value(json).expect("profile")).map_err(|e| e.to_string())
    }

    #[test]
    fn notifications_that_reach_nobody_or_stop_the_start_are_refused() {
        let profile = |name: &str, path: &str| {
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
                "syscalls": [{ "names": [name], "action": "SCMP_ACT_NOTIFY" }] })
        };
        assert!(check(profile("mkdir", "/agent")).expect("valid").is_some());
        assert!(check(profile("mkdir", "")).expect_err("nobody").contains("listenerPath"));
        for name in ["sendmsg", "write"] {
            assert!(check(profile(name, "/agent")).expect_err(name).contains(name));
        }
        let default = json!({ "defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/agent" });
        assert!(check(default).is_err());
        let lone = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x" });
        assert!(check(lone).expect_err("metadata").contains("listenerMetadata"));
    }
}
