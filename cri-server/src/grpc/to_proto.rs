//! Inside to wire: the only place that builds CRI answers.

pub(super) mod stats;
pub(super) mod why;

use std::collections::BTreeMap;
use std::path::Path;

use proto::admin::v1 as admin;
use proto::cri::v1 as cri;

use crate::container::spec::{ImageRef, Mount, Propagation, Resources};
use crate::container::state::{Exit, Phase, Reason};
use crate::container::{Container, signal};
use crate::sandbox::Sandbox;
use crate::sandbox::spec::{IdMap, Metadata, NamespaceMode, UserNamespace};
use crate::sandbox::state::Phase as SandboxPhase;

pub(super) fn sandbox_state(phase: SandboxPhase) -> cri::PodSandboxState {
    match phase {
        SandboxPhase::Ready => cri::PodSandboxState::SandboxReady,
        SandboxPhase::Starting
        | SandboxPhase::Failed
        | SandboxPhase::Stopping
        | SandboxPhase::NotReady
        | SandboxPhase::Removing => cri::PodSandboxState::SandboxNotready,
    }
}

fn sandbox_metadata(metadata: &Metadata) -> cri::PodSandboxMetadata {
    cri::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

pub(super) fn sandbox_item(sandbox: &Sandbox) -> cri::PodSandbox {
    cri::PodSandbox {
        id: sandbox.id.to_string(),
        metadata: Some(sandbox_metadata(&sandbox.spec.metadata)),
        state: sandbox_state(sandbox.phase).into(),
        created_at: sandbox.created_at_ns,
        labels: sandbox.spec.labels.clone().into_iter().collect(),
        annotations: sandbox.spec.annotations.clone().into_iter().collect(),
        runtime_handler: sandbox.spec.runtime_handler.clone(),
    }
}

pub(super) fn sandbox_status(sandbox: &Sandbox) -> cri::PodSandboxStatus {
    let spec = &sandbox.spec;
    let mut addresses = sandbox.addresses.iter().map(ToString::to_string);
    let options = cri::NamespaceOption {
        network: namespace_mode(&spec.network),
        pid: namespace_mode(&spec.pid),
        ipc: namespace_mode(&spec.ipc),
        target_id: String::new(),
        userns_options: spec.user_namespace.as_ref().map(user_namespace),
    };
    cri::PodSandboxStatus {
        id: sandbox.id.to_string(),
        metadata: Some(sandbox_metadata(&spec.metadata)),
        state: sandbox_state(sandbox.phase).into(),
        created_at: sandbox.created_at_ns,
        network: Some(cri::PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| cri::PodIp { ip }).collect(),
        }),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options: Some(options) }),
        }),
        labels: spec.labels.clone().into_iter().collect(),
        annotations: spec.annotations.clone().into_iter().collect(),
        runtime_handler: spec.runtime_handler.clone(),
    }
}

fn user_namespace(made: &UserNamespace) -> cri::UserNamespace {
    cri::UserNamespace {
        mode: cri::NamespaceMode::Pod.into(),
        uids: vec![id_map(&made.uids)],
        gids: vec![id_map(&made.gids)],
    }
}

fn id_map(map: &IdMap) -> cri::IdMapping {
    cri::IdMapping { container_id: map.inside, host_id: map.outside, length: map.count }
}

fn namespace_mode(mode: &NamespaceMode) -> i32 {
    match mode {
        NamespaceMode::Pod => cri::NamespaceMode::Pod,
        NamespaceMode::Container => cri::NamespaceMode::Container,
        NamespaceMode::Node => cri::NamespaceMode::Node,
        NamespaceMode::Target(_) => cri::NamespaceMode::Target,
    }
    .into()
}

pub(super) fn container_state(phase: &Phase) -> cri::ContainerState {
    match phase {
        Phase::Creating | Phase::Created { .. } => cri::ContainerState::ContainerCreated,
        Phase::Running { .. } => cri::ContainerState::ContainerRunning,
        Phase::Exited(_) | Phase::Removing => cri::ContainerState::ContainerExited,
    }
}

fn container_metadata(container: &Container) -> cri::ContainerMetadata {
    cri::ContainerMetadata { name: container.spec.name.clone(), attempt: container.spec.attempt }
}

fn image_spec(image: &ImageRef) -> cri::ImageSpec {
    cri::ImageSpec {
        image: image.image.clone(),
        user_specified_image: image.user_specified_image.clone(),
        annotations: image.annotations.clone().into_iter().collect(),
        runtime_handler: image.runtime_handler.clone(),
        image_ref: image.image_ref.clone(),
    }
}

pub(super) fn container_item(container: &Container) -> cri::Container {
    cri::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.sandbox_id.to_string(),
        metadata: Some(container_metadata(container)),
        image: Some(image_spec(&container.spec.image)),
        image_ref: container.image_id.clone(),
        image_id: container.image_id.clone(),
        state: container_state(&container.phase).into(),
        created_at: container.created_at_ns,
        labels: container.spec.labels.clone().into_iter().collect(),
        annotations: container.spec.annotations.clone().into_iter().collect(),
    }
}

pub(super) fn container_status(container: &Container) -> cri::ContainerStatus {
    let spec = &container.spec;
    let exit = match &container.phase {
        Phase::Exited(exit) => Some(exit),
        _ => None,
    };
    let groups = container.user.additional_gids.iter().map(|gid| i64::from(*gid)).collect();
    cri::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(container_metadata(container)),
        state: container_state(&container.phase).into(),
        created_at: container.created_at_ns,
        started_at: match &container.phase {
            Phase::Running { started_at_ns, .. } => *started_at_ns,
            _ => exit.map_or(0, |exit| exit.started_at_ns),
        },
        finished_at: exit.map_or(0, |exit| exit.finished_at_ns),
        exit_code: exit.map_or(0, |exit| exit.code),
        reason: reason_of(container).to_owned(),
        message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        image: Some(image_spec(&container.spec.image)),
        image_ref: container.image_id.clone(),
        image_id: container.image_id.clone(),
        labels: spec.labels.clone().into_iter().collect(),
        annotations: spec.annotations.clone().into_iter().collect(),
        mounts: spec.mounts.iter().map(|it| mount(it, &container.image_volumes)).collect(),
        log_path: container.log_path.as_deref().map(text).unwrap_or_default(),
        resources: Some(cri::ContainerResources {
            linux: Some(resources(&spec.resources)),
            windows: None,
        }),
        user: Some(cri::ContainerUser {
            linux: Some(cri::LinuxContainerUser {
                uid: container.user.uid.into(),
                gid: container.user.gid.into(),
                supplemental_groups: groups,
            }),
        }),
        stop_signal: signal::to_cri(container.stop_signal),
    }
}

/// Why a container has ended; empty before that.
pub(super) fn reason_of(container: &Container) -> &'static str {
    match &container.phase {
        Phase::Exited(exit) => reason(exit),
        _ => "",
    }
}

/// The words that Kubernetes shows to people.
fn reason(exit: &Exit) -> &'static str {
    match exit.reason {
        Reason::Completed => "Completed",
        Reason::Error => "Error",
        Reason::OomKilled => "OOMKilled",
        Reason::StartError => "StartError",
        Reason::WritableLimit => "WritableLimitExceeded",
        Reason::ShimLost => "ShimLost",
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The image of a volume is told by its id, by which the kubelet knows that it is in use.
fn mount(mount: &Mount, images: &BTreeMap<String, String>) -> cri::Mount {
    cri::Mount {
        container_path: mount.container_path.clone(),
        host_path: text(&mount.host_path),
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation: match mount.propagation {
            Propagation::Private => cri::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
        }
        .into(),
        mount_options: mount.options.clone(),
        uid_mappings: mount.uid_mappings.iter().map(id_map).collect(),
        gid_mappings: mount.gid_mappings.iter().map(id_map).collect(),
        image: mount.image.as_ref().map(|volume| {
            let mut spec = image_spec(&volume.image);
            spec.image_ref = images.get(&mount.container_path).cloned().unwrap_or_default();
            spec
        }),
        image_sub_path: mount
            .image
            .as_ref()
            .map(|volume| text(&volume.sub_path))
            .unwrap_or_default(),
    }
}

fn resources(resources: &Resources) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: resources.cpu_period_us,
        cpu_quota: resources.cpu_quota_us,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit_bytes,
        memory_swap_limit_in_bytes: resources.memory_swap_limit_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| cri::HugepageLimit {
                page_size: page_size.clone(),
                limit: *limit,
            })
            .collect(),
        unified: resources.unified.clone().into_iter().collect(),
    }
}

pub(super) fn image(image: &image::Image) -> cri::Image {
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = if user.is_empty() { Some(0) } else { user.parse::<u32>().ok().map(i64::from) };
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| cri::Int64Value { value }),
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        spec: None,
        pinned: image.pinned,
    }
}

/// What a pull of one name would do.
pub(super) fn explained(name: image::ExplainedName) -> admin::ExplainedName {
    let endpoint = |endpoint: image::ExplainedEndpoint| {
        let (found, answer) = match endpoint.answer {
            Ok(answer) => (true, answer),
            Err(answer) => (false, answer),
        };
        admin::ExplainedEndpoint {
            url: endpoint.url,
            named_in: endpoint.named_in.map(|p| p.display().to_string()).unwrap_or_default(),
            mirror: endpoint.mirror,
            resolve: endpoint.resolve,
            pull: endpoint.pull,
            insecure: endpoint.insecure,
            login: match endpoint.login {
                Ok(image::LoginSource::Nobody) => "none".to_owned(),
                Ok(image::LoginSource::Caller) => "given with the pull".to_owned(),
                Ok(image::LoginSource::File(path)) => path.display().to_string(),
                Err(problem) => problem,
            },
            found,
            answer,
        }
    };
    admin::ExplainedName {
        reference: name.reference,
        policy: name.policy,
        endpoints: name.endpoints.into_iter().map(endpoint).collect(),
    }
}

/// How far a pull is.
pub(super) fn progress(pull: &image::PullProgress) -> admin::PullProgress {
    let began = pull.began.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    admin::PullProgress {
        reference: pull.reference.clone(),
        began_at: i64::try_from(began.as_nanos()).unwrap_or(i64::MAX),
        stage: pull.stage.word().to_owned(),
        layers: pull.layers,
        layers_done: pull.layers_done,
        bytes: pull.bytes,
        bytes_here: pull.bytes_here,
    }
}
