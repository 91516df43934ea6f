//! Kernel parameters that belong to a namespace of the container.

use std::path::PathBuf;

use super::Namespace;
use crate::error::Error;
use crate::spec;

/// Only sysctls that belong to a namespace the container has are accepted: the others would change the host.
pub(super) fn sysctls(
    linux: &spec::Linux,
    has: &dyn Fn(Namespace) -> bool,
) -> Result<Vec<(PathBuf, String)>, Error> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let mut out = Vec::new();
    for (key, value) in linux.sysctl.iter().flatten() {
        let stage = format!("sysctl {key}");
        // Both `net.ipv4.ip_forward` and `net/ipv4/conf/eth0.1/…` are written; the first separator decides.
        let slashes = key.find(['.', '/']).is_some_and(|at| key.as_bytes()[at] == b'/');
        let path: String = if slashes {
            key.clone()
        } else {
            key.chars()
                .map(|c| match c {
                    '.' => '/',
                    '/' => '.',
                    c => c,
                })
                .collect()
        };
        if path.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(Error::new(stage, "malformed name"));
        }
        let dotted = path.replace('/', ".");
        let needs = match dotted.as_str() {
            d if IPC.contains(&d) || d.starts_with("fs.mqueue.") => Namespace::Ipc,
            d if d.starts_with("net.") => Namespace::Net,
            "kernel.domainname" => Namespace::Uts,
            "kernel.hostname" => {
                return Err(Error::new(stage, "set the hostname by its own field"));
            }
            _ => {
                return Err(Error::new(
                    stage,
                    "it does not belong to a namespace, so it would change the host",
                ));
            }
        };
        if !has(needs) {
            return Err(Error::new(
                stage,
                format!("the container shares the host's {needs:?} namespace"),
            ));
        }
        out.push((PathBuf::from(path), value.clone()));
    }
    Ok(out)
}
