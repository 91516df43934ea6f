//! RunPodSandbox: record, network, shim, pause, READY; or nothing at all.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::spec::{NamespaceMode, Seccomp, Spec};
use super::state::Phase;
use super::{Sandbox, files, oci_spec, teardown, update};
use crate::app::Ctx;
use crate::clock;
use crate::container::apparmor;
use crate::error::Error;
use crate::id::Id;
use crate::metrics::timeline::Timeline;
use crate::scope;
use crate::selinux;
use crate::store::disk;
use crate::store::operations::Key;

/// Longest label of a host name (RFC 1123); the kernel's UTS field holds one byte more.
const HOSTNAME_MAX: usize = 63;

/// Answers a repeat of the same request with the same sandbox, during and after the first.
pub(crate) async fn run(ctx: Arc<Ctx>, spec: Spec) -> Result<Id, Error> {
    ctx.config.runtime.handler(&spec.runtime_handler)?;
    ctx.selinux.check(spec.confinement.selinux.as_ref())?;
    if spec.user_namespace.is_some() && !ctx.node.user_namespaces {
        return Err(Error::Unsupported {
            field: "config.linux.security_context.namespace_options.userns_options".to_owned(),
            hint: "this node announces no user namespaces in its handler features; `lapstrake \
                   doctor` says what it lacks, hostUsers: true does without"
                .to_owned(),
        });
    }
    let key = Key::Sandbox(spec.metadata.clone());
    let work = {
        let (ctx, spec) = (ctx.clone(), spec.clone());
        async move { run_once(ctx, spec).await }
    };
    let holder = ctx.operations.join(key, &spec, work);
    holder.await.unwrap_or_else(|| {
        Err(Error::AlreadyExists {
            kind: "pod sandbox",
            name: spec.metadata.to_string(),
            holder: "a sandbox that is just being created".into(),
            why: "its configuration differs",
        })
    })
}

async fn run_once(ctx: Arc<Ctx>, spec: Spec) -> Result<Id, Error> {
    if let Some(known) = ctx.world.snapshot().sandbox_named(&spec.metadata) {
        return match known.phase {
            Phase::Ready if known.spec == spec => Ok(known.id.clone()),
            phase => Err(taken(&known, phase)),
        };
    }
    let id =
        Id::random().map_err(|source| Error::io("read randomness from", "/dev/urandom", source))?;
    let sandbox = plan(&ctx, id.clone(), spec)?;
    let mut timeline = Timeline::begin(&ctx, "run_pod_sandbox", id.to_string());
    timeline.enter("record");
    let dir = ctx.sandbox_dir(&id);
    for part in [dir.join("shm"), dir.join("rootfs"), dir.join("containers")] {
        disk::create_dir(&part)?;
    }
    let sandbox = ctx.add_sandbox(sandbox)?;
    match bring_up(&ctx, sandbox, &dir, &mut timeline).await {
        Ok(()) => Ok(id),
        Err(cause) => Err(match teardown::remove(&ctx, &id).await {
            Ok(()) => cause,
            Err(leftovers) => {
                Error::Leftovers { cause: Box::new(cause), leftovers: leftovers.to_string() }
            }
        }),
    }
}

fn taken(known: &Sandbox, phase: Phase) -> Error {
    Error::AlreadyExists {
        kind: "pod sandbox",
        name: known.spec.metadata.to_string(),
        holder: format!("sandbox {}, which is {}", known.id, phase.word()),
        why: match phase {
            Phase::Ready => "its configuration differs",
            _ => "remove it first, or use the next attempt",
        },
    }
}

/// What is known before anything exists.
fn plan(ctx: &Ctx, id: Id, spec: Spec) -> Result<Sandbox, Error> {
    let owns_cgroup_parent = spec.cgroup_parent.is_empty();
    let hostname = match (&spec.network, spec.hostname.as_str()) {
        (NamespaceMode::Node, _) => node_hostname()?,
        // A pod's name may be longer than the kernel's UTS field.
        (_, "") => fitting(&spec.metadata.name),
        (_, hostname) => hostname.to_owned(),
    };
    Ok(Sandbox {
        cgroup_parent: match owns_cgroup_parent {
            true => ctx.own_cgroup_parent(&id),
            false => spec.cgroup_parent.clone(),
        },
        id,
        spec,
        created_at_ns: clock::now_ns(),
        phase: Phase::Starting,
        owns_cgroup_parent,
        addresses: Vec::new(),
        pause_pid: 0,
        hostname,
        selinux_level: None,
    })
}

fn fitting(name: &str) -> String {
    let mut end = name.len().min(HOSTNAME_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].trim_end_matches(['-', '.']).to_owned()
}

fn node_hostname() -> Result<String, Error> {
    let path = "/proc/sys/kernel/hostname";
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::io("read the node's host name from", path, source))?;
    Ok(text.trim().to_owned())
}

async fn bring_up(
    ctx: &Arc<Ctx>,
    mut sandbox: Sandbox,
    dir: &Path,
    timeline: &mut Timeline,
) -> Result<(), Error> {
    timeline.enter("network_and_shim");
    if let Some(log_directory) = &sandbox.spec.log_directory {
        disk::create_dir_shared(log_directory)?;
    }
    let resources = write_config(ctx, &sandbox, dir)?;
    update::limit(ctx, &sandbox).await?;
    let netns = match sandbox.spec.user_namespace {
        None => {
            // The shim starts while the network is made: neither needs the other.
            let (network, shim) =
                tokio::join!(network(ctx, &sandbox, None), start_shim(ctx, &sandbox, dir));
            let (netns, addresses) = network?;
            sandbox.addresses = addresses;
            shim?;
            netns
        }
        // Pause makes the network namespace, so that it belongs to the pod's user namespace.
        Some(_) => {
            start_shim(ctx, &sandbox, dir).await?;
            None
        }
    };
    timeline.enter("files");
    let shim = ctx.live_shim(&sandbox.id).await?;
    write_files(ctx, &sandbox, dir)?;
    let shm_size = match sandbox.spec.ipc {
        NamespaceMode::Node => 0,
        _ => sandbox.spec.shm_bytes,
    };
    timeline.enter("pause");
    let request = runtime::CreateSandbox {
        id: sandbox.id.to_string(),
        bundle: dir.to_owned(),
        shm_size,
        seccomp_bpf: seccomp_program(ctx, &sandbox)?,
    };
    let group = sandbox.cgroup_of(&sandbox.id);
    let holder = scope::make(ctx, &group, &sandbox.id, &resources).await?;
    let pause_pid = shim.create_sandbox(request, netns).await?.pause_pid;
    drop(holder); // pause holds its scope now
    ctx.keep(&shim, &sandbox.id, &sandbox.id);
    if sandbox.spec.user_namespace.is_some() && sandbox.spec.network != NamespaceMode::Node {
        let path = format!("/proc/{pause_pid}/ns/net");
        let made = std::fs::File::open(&path)
            .map_err(|source| Error::io("open the pod's network namespace", &path, source))?;
        sandbox.addresses = network(ctx, &sandbox, Some(made.into())).await?.1;
        write_files(ctx, &sandbox, dir)?;
    }
    timeline.enter("ready");
    let id = sandbox.id.clone();
    ctx.change_sandbox(&id, |known| {
        known.addresses = sandbox.addresses;
        known.pause_pid = pause_pid;
        // Pause may have ended already; then the sandbox has failed.
        if known.phase == Phase::Starting {
            known.phase = Phase::Ready;
        }
        true
    })?;
    ctx.entrust(&shim, &id, &id);
    Ok(())
}

/// Known at once, so that the way down finds it.
async fn start_shim(ctx: &Arc<Ctx>, sandbox: &Sandbox, dir: &Path) -> Result<(), Error> {
    let shim = ctx.shims.spawn(sandbox.id.as_str(), dir).await?;
    ctx.adopt_shim(&sandbox.id, shim);
    Ok(())
}

/// Pause has no capabilities, and so does the profile that is compiled for it.
fn seccomp_program(ctx: &Ctx, sandbox: &Sandbox) -> Result<Option<PathBuf>, Error> {
    let profile = match &sandbox.spec.confinement.seccomp {
        _ if sandbox.spec.privileged => return Ok(None),
        Seccomp::Unconfined => return Ok(None),
        Seccomp::RuntimeDefault => seccomp::Profile::RuntimeDefault,
        Seccomp::Localhost(path) => seccomp::Profile::File(path),
    };
    Ok(Some(ctx.seccomp.program(profile, &[])?))
}

/// Answers with the resources in the configuration.
fn write_config(ctx: &Ctx, sandbox: &Sandbox, dir: &Path) -> Result<Value, Error> {
    let confinement = &sandbox.spec.confinement;
    let apparmor =
        apparmor::decided(&confinement.apparmor, sandbox.spec.privileged, &ctx.apparmor)?;
    let labels = labels(ctx, sandbox)?;
    let defaults = oci_spec::Defaults {
        sysctls: &ctx.config.runtime.sysctls,
        apparmor: apparmor.as_deref(),
        labels: labels.as_ref(),
    };
    let mut config = oci_spec::pause(sandbox, defaults);
    disk::write_plain(&dir.join("config.json"), config.to_string().as_bytes())?;
    Ok(config["linux"]["resources"].take())
}

fn labels(ctx: &Ctx, sandbox: &Sandbox) -> Result<Option<selinux::Labels>, Error> {
    let Spec { confinement, privileged, .. } = &sandbox.spec;
    ctx.selinux.labels(confinement.selinux.as_ref(), sandbox.selinux_level.as_deref(), *privileged)
}

async fn network(
    ctx: &Ctx,
    sandbox: &Sandbox,
    made: Option<OwnedFd>,
) -> Result<(Option<OwnedFd>, Vec<std::net::IpAddr>), Error> {
    match sandbox.spec.network {
        NamespaceMode::Node => Ok((None, Vec::new())),
        _ => {
            let attachment = ctx.network.attach(sandbox, made).await?;
            Ok((Some(attachment.netns), attachment.addresses))
        }
    }
}

fn write_files(ctx: &Ctx, sandbox: &Sandbox, dir: &Path) -> Result<(), Error> {
    let labels = labels(ctx, sandbox)?;
    let own_network = sandbox.spec.network != NamespaceMode::Node;
    let resolv_conf = match &sandbox.spec.dns {
        Some(dns) => files::resolv_conf(dns),
        None => host_file("/etc/resolv.conf")?,
    };
    let hosts = match own_network {
        true => files::hosts(&sandbox.addresses, &sandbox.hostname),
        false => host_file("/etc/hosts")?,
    };
    for (name, text) in [
        ("resolv.conf", resolv_conf),
        ("hosts", hosts),
        ("hostname", format!("{}\n", sandbox.hostname)),
    ] {
        let path = dir.join(name);
        disk::write_shared(&path, text.as_bytes())?;
        if let Some(labels) = &labels {
            selinux::relabel(&path, &labels.mount)?;
        }
    }
    Ok(())
}

/// A node without the file has nothing to hand on.
fn host_file(path: &str) -> Result<String, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(Error::io("read", path, source)),
    }
}
