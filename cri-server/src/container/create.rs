//! CreateContainer: image, OCI configuration, record, writable layer, and a process that waits
//! before its exec; or nothing at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::spec::{Seccomp, Security, Spec};
use super::state::Phase;
use super::{
    Container, apparmor, block_io, capabilities, cdi, class, devices, image_volumes, log_limits,
    oci_spec, process, remove, signal, user, volumes, writable_limit,
};
use crate::app::Ctx;
use crate::clock;
use crate::config::Handler;
use crate::error::Error;
use crate::id::Id;
use crate::metrics::timeline::Timeline;
use crate::sandbox::spec::NamespaceMode;
use crate::sandbox::state::Phase as SandboxPhase;
use crate::sandbox::{self, Sandbox};
use crate::scope;
use crate::selinux;
use crate::store::disk;
use crate::store::operations::Key;

/// On a container or a pod: `"true"` puts our init before the program, `"false"` leaves it out.
const INIT_ANNOTATION: &str = "lapstrake.io/init";

/// Answers a repeat of the same request with the same container, during and after the first.
pub(crate) async fn create(ctx: Arc<Ctx>, sandbox: String, spec: Spec) -> Result<Id, Error> {
    let found = ctx.world.snapshot().sandbox(&sandbox).cloned();
    let sandbox = found.ok_or_else(|| Error::no_sandbox(sandbox))?;
    let key = Key::Container {
        sandbox: sandbox.id.clone(),
        name: spec.name.clone(),
        attempt: spec.attempt,
    };
    let name = format!("{} (attempt {})", spec.name, spec.attempt);
    let work = {
        let (ctx, spec) = (ctx.clone(), spec.clone());
        async move { create_once(ctx, sandbox.id.clone(), spec).await }
    };
    ctx.operations.join(key, &spec, work).await.unwrap_or_else(|| {
        Err(Error::AlreadyExists {
            kind: "container",
            name,
            holder: "a container that is just being created".into(),
            why: "its configuration differs",
        })
    })
}

async fn create_once(ctx: Arc<Ctx>, sandbox_id: Id, spec: Spec) -> Result<Id, Error> {
    let snapshot = ctx.world.snapshot();
    let known = snapshot
        .containers_of(&sandbox_id)
        .find(|known| known.has_name(&sandbox_id, &spec.name, spec.attempt));
    if let Some(known) = known {
        return match &known.phase {
            Phase::Created { .. } | Phase::Running { .. } if known.spec == spec => {
                Ok(known.id.clone())
            }
            phase => Err(taken(known, phase)),
        };
    }
    let image = ctx.images.find(&spec.image.image);
    let image =
        image.ok_or_else(|| Error::NotFound { kind: "image", id: spec.image.image.clone() })?;
    let id =
        Id::random().map_err(|source| Error::io("read randomness from", "/dev/urandom", source))?;
    let container = plan(&ctx, &sandbox_id, id.clone(), spec, &image)?;
    let mut timeline = Timeline::begin(&ctx, "create_container", id.to_string());
    timeline.enter("record");
    let lock = ctx.locks.of(&id);
    let turn = lock.lock().await;
    let sandbox = register(&ctx, &container).inspect_err(|_| ctx.locks.forget(&id))?;
    let result = bring_up(&ctx, &sandbox, &container, &image, &mut timeline).await;
    drop(turn);
    match result {
        Ok(()) => Ok(id),
        Err(cause) => Err(match remove::down(&ctx, &id).await {
            Ok(()) => cause,
            Err(leftovers) => {
                Error::Leftovers { cause: Box::new(cause), leftovers: leftovers.to_string() }
            }
        }),
    }
}

fn taken(known: &Container, phase: &Phase) -> Error {
    Error::AlreadyExists {
        kind: "container",
        name: format!("{} (attempt {})", known.spec.name, known.spec.attempt),
        holder: format!("container {}, which is {}", known.id, phase.word()),
        why: match phase {
            Phase::Created { .. } | Phase::Running { .. } => "its configuration differs",
            _ => "remove it first, or use the next attempt",
        },
    }
}

/// What is known before anything exists.
fn plan(
    ctx: &Ctx,
    sandbox_id: &Id,
    id: Id,
    spec: Spec,
    image: &image::Image,
) -> Result<Container, Error> {
    let snapshot = ctx.world.snapshot();
    let sandbox = snapshot.sandboxes.get(sandbox_id);
    let sandbox = sandbox.ok_or_else(|| Error::no_sandbox(sandbox_id.as_str()))?;
    if spec.security.privileged && !sandbox.spec.privileged {
        return Err(Error::invalid(
            "config.linux.security_context.privileged",
            "a privileged container needs a privileged sandbox",
        ));
    }
    fits(&spec.security, &sandbox.spec)?;
    ctx.selinux.check(spec.security.selinux.as_ref())?;
    volumes::check(&spec.mounts, ctx.config.runtime.missing_mount_source)?;
    let accounts = ctx.images.accounts(&image.id)?;
    let user = user::resolve(&spec.security, &image.config.user, &accounts)?;
    let log_path = match (&sandbox.spec.log_directory, spec.log_path.as_str()) {
        (Some(directory), path) if !path.is_empty() => Some(directory.join(path)),
        _ => None,
    };
    let image_stop = signal::parse(&image.config.stop_signal);
    Ok(Container {
        cgroups_path: sandbox.cgroup_of(&id),
        id,
        sandbox_id: sandbox_id.clone(),
        created_at_ns: clock::now_ns(),
        phase: Phase::Creating,
        image_id: image.id.to_string(),
        image_volumes: image_volumes::resolve(ctx, &spec.mounts)?,
        user,
        log_path,
        stop_signal: spec.stop_signal.or(image_stop).unwrap_or(signal::DEFAULT_STOP),
        writable_limit: writable_limit::resolve(
            ctx.config.runtime.writable_limit,
            [&sandbox.spec.annotations, &spec.annotations],
        )?,
        over_limit: None,
        spec,
    })
}

/// What a container says about namespaces that it shares with its pod has to be true.
fn fits(security: &Security, pod: &sandbox::spec::Spec) -> Result<(), Error> {
    let field = |name: &str| format!("config.linux.security_context.namespace_options.{name}");
    for (name, asked, has) in
        [("network", &security.network, &pod.network), ("ipc", &security.ipc, &pod.ipc)]
    {
        if *asked == NamespaceMode::Node && *has != NamespaceMode::Node {
            return Err(Error::invalid(field(name), "NODE, but the pod has one of its own"));
        }
    }
    match (&security.user_namespace, &pod.user_namespace) {
        // Older clients say it of the sandbox only.
        (None, _) => Ok(()),
        (asked, has) if asked == has => Ok(()),
        _ => Err(Error::invalid(field("userns_options"), "differs from that of the sandbox")),
    }
}

/// Takes the name, in one step with the look at the sandbox: a sandbox that begins to stop knows
/// every container, and no later one gets in.
fn register(ctx: &Ctx, container: &Container) -> Result<Arc<Sandbox>, Error> {
    let dir = ctx.bundle_dir(container);
    // Not the parents: a sandbox that is just being removed must not come back as a directory.
    disk::create_leaf_dir(&dir)?;
    disk::create_leaf_dir(&dir.join("rootfs"))?;
    ctx.write_container_record(container)?;
    let registered = ctx.world.change(|world| {
        let sandbox = world.sandboxes.get(&container.sandbox_id).cloned();
        let sandbox = sandbox.ok_or_else(|| Error::no_sandbox(container.sandbox_id.as_str()))?;
        if sandbox.phase != SandboxPhase::Ready {
            return Err(Error::State {
                operation: "create a container in",
                kind: "pod sandbox",
                id: sandbox.id.to_string(),
                state: sandbox.phase.word().to_owned(),
            });
        }
        world.containers.insert(container.id.clone(), Arc::new(container.clone()));
        Ok(sandbox)
    });
    if registered.is_err() {
        disk::remove_dir(&dir)?;
    }
    registered
}

async fn bring_up(
    ctx: &Arc<Ctx>,
    sandbox: &Arc<Sandbox>,
    container: &Container,
    image: &Arc<image::Image>,
    timeline: &mut Timeline,
) -> Result<(), Error> {
    timeline.enter("spec");
    let bundle = ctx.bundle_dir(container);
    let handler = ctx.config.runtime.handler(&sandbox.spec.runtime_handler)?;
    let seccomp_bpf = match &handler.path {
        None => seccomp_program(ctx, &container.spec)?,
        Some(_) => None,
    };
    let resources = {
        let (ctx, sandbox, container) = (ctx.clone(), sandbox.clone(), container.clone());
        let (image, bundle) = (image.clone(), bundle.clone());
        // It reads files of the node, and may have to load a profile.
        let write = move || write_config(&ctx, &container, (&sandbox, &image), &bundle);
        let written = tokio::task::spawn_blocking(write).await;
        written.map_err(|_| Error::Panicked { operation: "write the OCI configuration" })??
    };
    timeline.enter("snapshot");
    let snapshot = ctx.images.prepare(container.id.as_str(), &image.id).await?;
    if let Some(bytes) = container.writable_limit {
        // Where the kernel does not keep it to that, it is counted.
        ctx.images.limit(container.id.as_str(), bytes).await?;
    }
    let trees = image_volumes::mounts(ctx, sandbox, container).await?;
    let shim = ctx.live_shim(&sandbox.id).await?;
    if let Some(directory) = container.log_path.as_deref().and_then(Path::parent) {
        disk::create_dir_shared(directory)?;
    }
    let request = runtime::CreateContainer {
        id: container.id.to_string(),
        bundle,
        rootfs: runtime::Rootfs {
            lowers: snapshot.lowers,
            upper: Some(snapshot.upper),
            work: Some(snapshot.work),
            volatile: snapshot.volatile,
        },
        log_path: container.log_path.clone(),
        tty: container.spec.tty,
        stdin: container.spec.stdin,
        stdin_once: container.spec.stdin_once,
        init: wants_init(&handler, sandbox, container),
        handler: handler.path,
        seccomp_bpf,
        limits: log_limits::resolve(
            ctx.config.runtime.logs,
            [&sandbox.spec.annotations, &container.spec.annotations],
        )?,
        trees,
    };
    timeline.enter("shim");
    // Another runtime makes its own scope.
    let holder = match request.handler {
        None => scope::make(ctx, &container.cgroups_path, &container.id, &resources).await?,
        Some(_) => None,
    };
    let pid = shim.create_container(request).await?.pid;
    drop(holder); // the container holds its scope now
    ctx.change_phase(&container.id, |now| match now {
        Phase::Creating => Some(Phase::Created { pid }),
        // It has ended already.
        _ => None,
    })?;
    ctx.entrust(&shim, &sandbox.id, &container.id);
    Ok(())
}

/// A privileged container has no filter, whatever it asks for.
fn seccomp_profile(spec: &Spec) -> Option<seccomp::Profile<'_>> {
    match &spec.security.seccomp {
        _ if spec.security.privileged => None,
        Seccomp::Unconfined => None,
        Seccomp::RuntimeDefault => Some(seccomp::Profile::RuntimeDefault),
        Seccomp::Localhost(path) => Some(seccomp::Profile::File(path)),
    }
}

/// The compiled filter, for the built-in runtime.
fn seccomp_program(ctx: &Ctx, spec: &Spec) -> Result<Option<PathBuf>, Error> {
    let Some(profile) = seccomp_profile(spec) else { return Ok(None) };
    let granted = capabilities::resolve(&spec.security.capabilities, false);
    Ok(Some(ctx.seccomp.program(profile, &granted.effective)?))
}

/// Whether our init is to be the first process: the nearest annotation decides, then the handler.
fn wants_init(handler: &Handler, sandbox: &Sandbox, container: &Container) -> bool {
    let said = [&container.spec.annotations, &sandbox.spec.annotations];
    let said = said.into_iter().find_map(|annotations| annotations.get(INIT_ANNOTATION));
    said.map_or(handler.init, |said| said == "true")
}

/// Writes the OCI configuration, and labels the volumes of which it speaks; answers with its resources.
fn write_config(
    ctx: &Ctx,
    container: &Container,
    (sandbox, image): (&Sandbox, &image::Image),
    bundle: &Path,
) -> Result<Value, Error> {
    let spec = &container.spec;
    let handler = ctx.config.runtime.handler(&sandbox.spec.runtime_handler)?;
    let apparmor = apparmor::profile(spec, &ctx.apparmor)?;
    let class_of = |kind| class::of(kind, &spec.name, &spec.annotations, &sandbox.spec.annotations);
    let block_io = class_of(class::BLOCK_IO)
        .map(|(annotation, class)| {
            block_io::of_class(ctx.config.runtime.blockio_config.as_deref(), &annotation, class)
        })
        .transpose()?;
    let by_systemd =
        handler.path.as_ref().and(scope::unit_form(&container.cgroups_path, &container.id));
    let wanted = cdi::wanted(&spec.cdi_devices, &spec.annotations)?;
    let edits = cdi::edits_for(&wanted, &ctx.config.runtime.cdi_spec_dirs)?;
    let annotated = class_of(class::RDT).map(|(annotation, class)| (annotation, class.to_owned()));
    let by_device = || Some(("CDI intelRdt.closID".to_owned(), edits.rdt_class.clone()?));
    let rdt_class = annotated.or_else(by_device);
    if let Some((asked_by, class)) = &rdt_class {
        class::check_rdt(asked_by, class)?;
    }
    let labels = labels(ctx, sandbox, spec)?;
    let input = oci_spec::Input {
        spec,
        sandbox,
        sandbox_dir: &ctx.sandbox_dir(&sandbox.id),
        process: process::process(spec, &image.config, &sandbox.hostname)?,
        user: &container.user,
        cgroups_path: by_systemd.as_ref().unwrap_or(&container.cgroups_path),
        rlimits: &ctx.config.runtime.rlimits,
        apparmor: apparmor.as_deref(),
        labels: labels.as_ref(),
        rdt_class: rdt_class.as_ref().map(|(_, class)| class.as_str()),
        devices: &devices::resolve(
            spec,
            devices::Policy {
                all_of_node: spec.security.privileged && !handler.privileged_without_host_devices,
                owner: ctx
                    .config
                    .runtime
                    .device_ownership_from_security_context
                    .then_some((container.user.uid, container.user.gid)),
            },
        )?,
        block_io,
        image_defined: match handler.path {
            None => &image.config.volumes,
            Some(_) => &[],
        },
        target_pid: target_pid(ctx, container)?,
        node: ctx.node,
    };
    let mut config = oci_spec::container(&input);
    // Another runtime compiles by itself what it finds there.
    if handler.path.is_some()
        && let Some(profile) = seccomp_profile(spec)
    {
        let granted = capabilities::resolve(&spec.security.capabilities, false);
        config["linux"]["seccomp"] = ctx.seccomp.document(profile, &granted.effective)?;
    }
    cdi::inject(&mut config, &edits, cdi::Facts { privileged: spec.security.privileged });
    disk::write_plain(&bundle.join("config.json"), config.to_string().as_bytes())?;
    if let Some(labels) = &labels {
        for volume in spec.mounts.iter().filter(|volume| volume.selinux_relabel) {
            selinux::relabel(&volume.host_path, &labels.mount)?;
        }
    }
    Ok(config["linux"]["resources"].take())
}

/// What the container says for itself, else its pod; the categories are the pod's in any case.
fn labels(ctx: &Ctx, pod: &Sandbox, spec: &Spec) -> Result<Option<selinux::Labels>, Error> {
    let asked = spec.security.selinux.as_ref().or(pod.spec.confinement.selinux.as_ref());
    ctx.selinux.labels(asked, pod.selinux_level.as_deref(), spec.security.privileged)
}

/// The process whose pid namespace an ephemeral container joins.
fn target_pid(ctx: &Ctx, container: &Container) -> Result<Option<i32>, Error> {
    let NamespaceMode::Target(target) = &container.spec.security.pid else { return Ok(None) };
    let snapshot = ctx.world.snapshot();
    let found = snapshot.container(target);
    let found = found.filter(|target| target.sandbox_id == container.sandbox_id);
    let found = found.ok_or_else(|| Error::no_container(target.as_str()))?;
    match found.phase {
        Phase::Running { pid, .. } => Ok(Some(pid)),
        _ => Err(Error::State {
            operation: "join the pid namespace of",
            kind: "container",
            id: found.id.to_string(),
            state: found.phase.word().to_owned(),
        }),
    }
}
