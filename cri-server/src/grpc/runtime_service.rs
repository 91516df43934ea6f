//! `RuntimeService`: one short method per RPC: parse, call the verb, answer.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use proto::cri::v1::runtime_service_server::RuntimeService;
use proto::cri::v1::{self as cri};
use serde_json::json;
use tonic::{Request, Response, Status};

use super::event_stream::{self, event_stream};
use super::from_proto::{self, filter::Filter};
use super::observe::Service;
use super::stats_service::{container_candidate, sandbox_candidate};
use super::stream::chunked;
use super::to_proto;
use crate::config::CgroupDriver;
use crate::container;
use crate::error::Error;
use crate::sandbox;

/// The items of a streamed answer.
pub(super) type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The answer of what this version does not serve; the kubelet falls back on this code.
pub(super) fn unimplemented<T>(method: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!("{method} is not served by this version of lapstrake")))
}

/// What the kubelet asks the runtime to speak.
const CRI_VERSION: &str = "v1";

/// The version of the kubelet's side of the protocol; the peers have answered this since 1.0.
const KUBELET_API_VERSION: &str = "0.1.0";

#[tonic::async_trait]
impl RuntimeService for Service {
    type StreamPodSandboxesStream = Items<cri::StreamPodSandboxesResponse>;
    type StreamContainersStream = Items<cri::StreamContainersResponse>;
    type StreamContainerStatsStream = Items<cri::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Items<cri::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Items<cri::StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Items<cri::ContainerEventResponse>;

    async fn version(
        &self,
        _: Request<cri::VersionRequest>,
    ) -> Result<Response<cri::VersionResponse>, Status> {
        let reply = cri::VersionResponse {
            version: KUBELET_API_VERSION.into(),
            runtime_name: "lapstrake".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: CRI_VERSION.into(),
        };
        self.attended("Version", String::new(), async { Ok(reply) }).await
    }

    async fn status(
        &self,
        request: Request<cri::StatusRequest>,
    ) -> Result<Response<cri::StatusResponse>, Status> {
        let verbose = request.into_inner().verbose;
        self.attended("Status", String::new(), async { Ok(self.node_status(verbose)) }).await
    }

    async fn runtime_config(
        &self,
        _: Request<cri::RuntimeConfigRequest>,
    ) -> Result<Response<cri::RuntimeConfigResponse>, Status> {
        let cgroup_driver = match self.ctx.config.runtime.cgroup_driver {
            CgroupDriver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
            CgroupDriver::Systemd => cri::CgroupDriver::Systemd,
        };
        let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: cgroup_driver.into() };
        let reply = cri::RuntimeConfigResponse { linux: Some(linux) };
        self.attended("RuntimeConfig", String::new(), async { Ok(reply) }).await
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<cri::UpdateRuntimeConfigResponse>, Status> {
        let config = request.into_inner().runtime_config.unwrap_or_default();
        let cidr = config.network_config.unwrap_or_default().pod_cidr;
        self.detached("UpdateRuntimeConfig", cidr.clone(), |ctx| async move {
            if !cidr.is_empty() {
                ctx.network.set_pod_cidr(cidr).await?;
            }
            Ok(cri::UpdateRuntimeConfigResponse {})
        })
        .await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Result<Response<cri::RunPodSandboxResponse>, Status> {
        let request = request.into_inner();
        let metadata = request.config.as_ref().and_then(|config| config.metadata.as_ref());
        let object = metadata.map(|m| format!("{}/{}", m.namespace, m.name)).unwrap_or_default();
        self.detached("RunPodSandbox", object, |ctx| async move {
            let id = sandbox::run::run(ctx, from_proto::sandbox::sandbox(request)?).await?;
            Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Result<Response<cri::StopPodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        self.detached("StopPodSandbox", id.clone(), |ctx| async move {
            sandbox::stop::stop(ctx, id).await?;
            Ok(cri::StopPodSandboxResponse {})
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Result<Response<cri::RemovePodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        self.detached("RemovePodSandbox", id.clone(), |ctx| async move {
            sandbox::remove::remove(ctx, id).await?;
            Ok(cri::RemovePodSandboxResponse {})
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Result<Response<cri::PodSandboxStatusResponse>, Status> {
        let request = request.into_inner();
        self.attended("PodSandboxStatus", request.pod_sandbox_id.clone(), async {
            self.sandbox_status(&request)
        })
        .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Result<Response<cri::ListPodSandboxResponse>, Status> {
        let filter = from_proto::filter::sandboxes(request.into_inner().filter);
        self.attended("ListPodSandbox", String::new(), async {
            let shown = self.shown_sandboxes(&filter);
            let items = shown.iter().map(|sandbox| to_proto::sandbox_item(sandbox)).collect();
            Ok(cri::ListPodSandboxResponse { items })
        })
        .await
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Result<Response<cri::CreateContainerResponse>, Status> {
        let request = request.into_inner();
        self.detached("CreateContainer", request.pod_sandbox_id.clone(), |ctx| async move {
            let spec = from_proto::container::container(request.config)?;
            let id = container::create::create(ctx, request.pod_sandbox_id, spec).await?;
            Ok(cri::CreateContainerResponse { container_id: id.to_string() })
        })
        .await
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Result<Response<cri::StartContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        self.detached("StartContainer", id.clone(), |ctx| async move {
            container::start::start(ctx, id).await?;
            Ok(cri::StartContainerResponse {})
        })
        .await
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Result<Response<cri::StopContainerResponse>, Status> {
        let cri::StopContainerRequest { container_id: id, timeout } = request.into_inner();
        self.detached("StopContainer", id.clone(), |ctx| async move {
            container::stop::stop(ctx, id, timeout).await?;
            Ok(cri::StopContainerResponse {})
        })
        .await
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Result<Response<cri::RemoveContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        self.detached("RemoveContainer", id.clone(), |ctx| async move {
            container::remove::remove(ctx, id).await?;
            Ok(cri::RemoveContainerResponse {})
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Result<Response<cri::ListContainersResponse>, Status> {
        let filter = from_proto::filter::containers(request.into_inner().filter);
        self.attended("ListContainers", String::new(), async {
            let shown = self.shown_containers(&filter);
            let containers = shown.iter().map(|it| to_proto::container_item(it)).collect();
            Ok(cri::ListContainersResponse { containers })
        })
        .await
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Result<Response<cri::ContainerStatusResponse>, Status> {
        let cri::ContainerStatusRequest { container_id: id, verbose } = request.into_inner();
        self.attended("ContainerStatus", id.clone(), async {
            let container = self.ctx.container(&id)?;
            let status = Some(to_proto::container_status(&container));
            let info = if verbose { self.container_info(&container) } else { [].into() };
            Ok(cri::ContainerStatusResponse { status, info })
        })
        .await
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Result<Response<cri::UpdateContainerResourcesResponse>, Status> {
        let request = request.into_inner();
        let id = request.container_id.clone();
        self.detached("UpdateContainerResources", id.clone(), |ctx| async move {
            let change = from_proto::resources::update(request)?;
            container::update::update(ctx, id, change).await?;
            Ok(cri::UpdateContainerResourcesResponse {})
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Result<Response<cri::ReopenContainerLogResponse>, Status> {
        let id = request.into_inner().container_id;
        self.detached("ReopenContainerLog", id.clone(), |ctx| async move {
            container::reopen_log::reopen_log(ctx, id).await?;
            Ok(cri::ReopenContainerLogResponse {})
        })
        .await
    }

    async fn exec_sync(
        &self,
        request: Request<cri::ExecSyncRequest>,
    ) -> Result<Response<cri::ExecSyncResponse>, Status> {
        let cri::ExecSyncRequest { container_id: id, cmd, timeout } = request.into_inner();
        self.detached("ExecSync", id.clone(), |ctx| async move {
            let output = container::exec_sync::exec_sync(ctx, id, cmd, timeout).await?;
            let answer = cri::ExecSyncResponse {
                stdout: output.stdout,
                stderr: output.stderr,
                exit_code: output.exit_code,
            };
            drop(output.share);
            Ok(answer)
        })
        .await
    }

    async fn exec(
        &self,
        request: Request<cri::ExecRequest>,
    ) -> Result<Response<cri::ExecResponse>, Status> {
        let request = request.into_inner();
        self.attended("Exec", request.container_id.clone(), async {
            let wanted = from_proto::streaming::exec(&request)?;
            let (id, command) = (request.container_id, request.cmd);
            let url = container::exec::exec(self.ctx.clone(), id, command, wanted).await?;
            Ok(cri::ExecResponse { url })
        })
        .await
    }

    async fn attach(
        &self,
        request: Request<cri::AttachRequest>,
    ) -> Result<Response<cri::AttachResponse>, Status> {
        let request = request.into_inner();
        self.attended("Attach", request.container_id.clone(), async {
            let wanted = from_proto::streaming::attach(&request)?;
            let url =
                container::attach::attach(self.ctx.clone(), request.container_id, wanted).await?;
            Ok(cri::AttachResponse { url })
        })
        .await
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Result<Response<cri::PortForwardResponse>, Status> {
        let cri::PortForwardRequest { pod_sandbox_id: id, port } = request.into_inner();
        self.attended("PortForward", id.clone(), async {
            let ports = from_proto::streaming::ports(&port)?;
            let url = sandbox::port_forward::port_forward(self.ctx.clone(), id, ports).await?;
            Ok(cri::PortForwardResponse { url })
        })
        .await
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Result<Response<cri::ContainerStatsResponse>, Status> {
        let id = request.into_inner().container_id;
        self.attended("ContainerStats", id.clone(), self.stats_of_container(&id)).await
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Result<Response<cri::ListContainerStatsResponse>, Status> {
        let filter = from_proto::filter::container_stats(request.into_inner().filter);
        self.attended("ListContainerStats", String::new(), async {
            let measured = self.measured().await;
            let containers = measured.containers(&filter);
            let stats = containers.iter().map(|it| measured.view().container(it)).collect();
            Ok(cri::ListContainerStatsResponse { stats })
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Result<Response<cri::PodSandboxStatsResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        self.attended("PodSandboxStats", id.clone(), self.stats_of_sandbox(&id)).await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Result<Response<cri::ListPodSandboxStatsResponse>, Status> {
        let filter = from_proto::filter::sandbox_stats(request.into_inner().filter);
        self.attended("ListPodSandboxStats", String::new(), async {
            let measured = self.measured().await;
            let sandboxes = measured.sandboxes(&filter);
            let stats = sandboxes.iter().map(|it| measured.view().sandbox(it)).collect();
            Ok(cri::ListPodSandboxStatsResponse { stats })
        })
        .await
    }

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Result<Response<cri::CheckpointContainerResponse>, Status> {
        unimplemented("CheckpointContainer")
    }

    async fn checkpoint_pod(
        &self,
        _: Request<cri::CheckpointPodRequest>,
    ) -> Result<Response<cri::CheckpointPodResponse>, Status> {
        unimplemented("CheckpointPod")
    }

    async fn restore_pod(
        &self,
        _: Request<cri::RestorePodRequest>,
    ) -> Result<Response<cri::RestorePodResponse>, Status> {
        unimplemented("RestorePod")
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Result<Response<cri::ListMetricDescriptorsResponse>, Status> {
        self.attended("ListMetricDescriptors", String::new(), async {
            let descriptors = to_proto::stats::descriptors();
            Ok(cri::ListMetricDescriptorsResponse { descriptors })
        })
        .await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<cri::ListPodSandboxMetricsResponse>, Status> {
        self.attended("ListPodSandboxMetrics", String::new(), async {
            let measured = self.measured().await;
            let sandboxes = measured.sandboxes(&Filter::default());
            let pod_metrics = sandboxes.iter().map(|it| measured.view().metrics(it)).collect();
            Ok(cri::ListPodSandboxMetricsResponse { pod_metrics })
        })
        .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<cri::UpdatePodSandboxResourcesResponse>, Status> {
        let request = request.into_inner();
        let id = request.pod_sandbox_id.clone();
        self.detached("UpdatePodSandboxResources", id.clone(), |ctx| async move {
            let given = from_proto::resources::update_sandbox(request)?;
            sandbox::update::update(ctx, id, given).await?;
            Ok(cri::UpdatePodSandboxResourcesResponse {})
        })
        .await
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let filter = from_proto::filter::sandboxes(request.into_inner().filter);
        self.streamed("StreamPodSandboxes", async {
            chunked(
                self.shown_sandboxes(&filter),
                |sandbox| to_proto::sandbox_item(sandbox),
                |pod_sandboxes| cri::StreamPodSandboxesResponse { pod_sandboxes },
            )
        })
        .await
    }

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let filter = from_proto::filter::containers(request.into_inner().filter);
        self.streamed("StreamContainers", async {
            chunked(
                self.shown_containers(&filter),
                |container| to_proto::container_item(container),
                |containers| cri::StreamContainersResponse { containers },
            )
        })
        .await
    }

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let filter = from_proto::filter::container_stats(request.into_inner().filter);
        self.streamed("StreamContainerStats", self.container_stats_stream(&filter)).await
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let filter = from_proto::filter::sandbox_stats(request.into_inner().filter);
        self.streamed("StreamPodSandboxStats", self.sandbox_stats_stream(&filter)).await
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        self.streamed("StreamPodSandboxMetrics", self.metrics_stream()).await
    }

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        self.streamed("GetContainerEvents", async {
            let dropped = self.ctx.metrics.families.events_dropped.clone();
            let (_, events) = self.ctx.world.events().follow();
            Response::new(event_stream(events, dropped, event_stream::wire))
        })
        .await
    }
}

impl Service {
    fn shown_sandboxes(&self, filter: &Filter) -> Vec<Arc<sandbox::Sandbox>> {
        let snapshot = self.ctx.world.snapshot();
        let shown = snapshot.sandboxes.values().filter(|sandbox| {
            sandbox.phase.is_shown() && filter.matches(&sandbox_candidate(sandbox))
        });
        shown.cloned().collect()
    }

    fn shown_containers(&self, filter: &Filter) -> Vec<Arc<container::Container>> {
        let snapshot = self.ctx.world.snapshot();
        let shown = snapshot.containers.values().filter(|container| {
            container.phase.is_shown() && filter.matches(&container_candidate(container))
        });
        shown.cloned().collect()
    }

    fn node_status(&self, verbose: bool) -> cri::StatusResponse {
        let condition = |kind: &str, result: Result<(), String>| cri::RuntimeCondition {
            r#type: kind.into(),
            status: result.is_ok(),
            reason: if result.is_ok() { String::new() } else { format!("{kind}Failed") },
            message: result.err().unwrap_or_default(),
        };
        let network = self.ctx.network.ready();
        // The words before the reason are those that people search for.
        let network = network.map_err(|why| format!("Network plugin returns error: {why}"));
        let runtime = &self.ctx.config.runtime;
        let mut names = vec![String::new(), crate::config::BUILT_IN.to_owned()];
        names.extend(runtime.handlers.keys().cloned());
        let features = cri::RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: self.ctx.node.user_namespaces,
        };
        let handler = |name| cri::RuntimeHandler { name, features: Some(features) };
        let owed = self.ctx.network.owed();
        let info = json!({
            "root": self.ctx.config.root,
            "stateDir": self.ctx.config.state,
            "bridge": self.ctx.config.network.bridge,
            "defaultHandler": runtime.default_handler,
            "networkMode": self.ctx.config.network.mode.to_string(),
            "networkDebts": owed.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        cri::StatusResponse {
            status: Some(cri::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", Ok(())),
                    condition("NetworkReady", network),
                ],
            }),
            runtime_handlers: names.into_iter().map(handler).collect(),
            features: Some(cri::RuntimeFeatures {
                supplemental_groups_policy: true,
                mount_options: true,
                user_namespaces_host_network: self.ctx.node.user_namespaces,
            }),
            info: match verbose {
                true => [
                    ("config".to_owned(), info.to_string()),
                    ("pulls".to_owned(), self.pulls().to_string()),
                ]
                .into(),
                false => [].into(),
            },
        }
    }

    fn pulls(&self) -> serde_json::Value {
        let pull = |pull: image::PullProgress| {
            json!({
                "reference": pull.reference,
                "stage": pull.stage.word(),
                "layers": pull.layers,
                "layersDone": pull.layers_done,
                "bytes": pull.bytes,
                "bytesHere": pull.bytes_here,
            })
        };
        self.ctx.images.pulls().into_iter().map(pull).collect()
    }

    fn sandbox_status(
        &self,
        request: &cri::PodSandboxStatusRequest,
    ) -> Result<cri::PodSandboxStatusResponse, Error> {
        // Before the look: the kubelet keeps what is newest, and this answer may be older than an
        // event that is sent meanwhile.
        let timestamp = self.ctx.world.events().now_ns();
        let snapshot = self.ctx.world.snapshot();
        let sandbox = snapshot
            .sandbox(&request.pod_sandbox_id)
            .filter(|sandbox| sandbox.phase.is_shown())
            .ok_or_else(|| Error::no_sandbox(&*request.pod_sandbox_id))?;
        let members = snapshot.containers_of(&sandbox.id).filter(|it| it.phase.is_shown());
        let info = json!({
            "pid": sandbox.pause_pid,
            "cgroupParent": sandbox.cgroup_parent,
            "runtimeHandler": sandbox.spec.runtime_handler,
            "overhead": sandbox.spec.overhead,
            "resources": sandbox.spec.resources,
        });
        Ok(cri::PodSandboxStatusResponse {
            status: Some(to_proto::sandbox_status(sandbox)),
            info: match request.verbose {
                true => [("info".to_owned(), info.to_string())].into(),
                false => [].into(),
            },
            containers_statuses: members.map(|it| to_proto::container_status(it)).collect(),
            timestamp,
        })
    }

    fn container_info(
        &self,
        container: &container::Container,
    ) -> std::collections::HashMap<String, String> {
        use container::state::Phase;
        let pid = match container.phase {
            Phase::Created { pid } | Phase::Running { pid, .. } => pid,
            Phase::Creating | Phase::Exited(_) | Phase::Removing => 0,
        };
        let info = json!({
            "sandboxID": container.sandbox_id,
            "pid": pid,
            "bundle": self.ctx.bundle_dir(container),
            "cgroupsPath": container.cgroups_path,
        });
        [("info".to_owned(), info.to_string())].into()
    }
}
