//! The answers about numbers, whole and streamed.

use std::sync::Arc;

use proto::cri::v1 as cri;
use tonic::Response;

use super::from_proto::filter::{Candidate, Filter};
use super::observe::Service;
use super::runtime_service::Items;
use super::stream::chunked;
use super::to_proto::{self, stats::View};
use crate::container::Container;
use crate::error::Error;
use crate::sandbox::Sandbox;
use crate::sandbox::state::Phase;
use crate::stats::Numbers;
use crate::store::world::{Members, Snapshot};

/// One state of the world and the numbers to it.
pub(super) struct Measured {
    pub(super) world: Arc<Snapshot>,
    members: Members,
    numbers: Arc<Numbers>,
    mountpoint: String,
}

impl Measured {
    pub(super) fn view(&self) -> View<'_> {
        View { members: &self.members, numbers: &self.numbers, mountpoint: &self.mountpoint }
    }

    pub(super) fn containers(&self, filter: &Filter) -> Vec<Arc<Container>> {
        let listed = self.world.containers.values().filter(|container| {
            to_proto::stats::is_listed(container) && filter.matches(&container_candidate(container))
        });
        listed.cloned().collect()
    }

    pub(super) fn sandboxes(&self, filter: &Filter) -> Vec<Arc<Sandbox>> {
        let listed = self.world.sandboxes.values().filter(|sandbox| {
            sandbox.phase == Phase::Ready && filter.matches(&sandbox_candidate(sandbox))
        });
        listed.cloned().collect()
    }
}

pub(super) fn container_candidate(container: &Container) -> Candidate<'_> {
    Candidate {
        id: container.id.as_str(),
        sandbox_id: container.sandbox_id.as_str(),
        state: to_proto::container_state(&container.phase).into(),
        labels: &container.spec.labels,
    }
}

pub(super) fn sandbox_candidate(sandbox: &Sandbox) -> Candidate<'_> {
    Candidate {
        id: sandbox.id.as_str(),
        sandbox_id: sandbox.id.as_str(),
        state: to_proto::sandbox_state(sandbox.phase).into(),
        labels: &sandbox.spec.labels,
    }
}

impl Service {
    pub(super) async fn measured(&self) -> Measured {
        let world = self.ctx.world.snapshot();
        let numbers = self.ctx.stats.covering(&world).await;
        let mountpoint = self.ctx.images.writable_root().display().to_string();
        Measured { members: world.members(), world, numbers, mountpoint }
    }

    pub(super) async fn stats_of_container(
        &self,
        id: &str,
    ) -> Result<cri::ContainerStatsResponse, Error> {
        let container = self.ctx.container(id)?;
        let measured = self.measured().await;
        Ok(cri::ContainerStatsResponse { stats: Some(measured.view().container(&container)) })
    }

    pub(super) async fn stats_of_sandbox(
        &self,
        id: &str,
    ) -> Result<cri::PodSandboxStatsResponse, Error> {
        let measured = self.measured().await;
        let sandbox = measured.world.sandbox(id).filter(|sandbox| sandbox.phase.is_shown());
        let sandbox = sandbox.ok_or_else(|| Error::no_sandbox(id))?;
        Ok(cri::PodSandboxStatsResponse { stats: Some(measured.view().sandbox(sandbox)) })
    }

    pub(super) async fn container_stats_stream(
        &self,
        filter: &Filter,
    ) -> Response<Items<cri::StreamContainerStatsResponse>> {
        let measured = self.measured().await;
        let containers = measured.containers(filter);
        chunked(
            containers,
            move |container| measured.view().container(container),
            |container_stats| cri::StreamContainerStatsResponse { container_stats },
        )
    }

    pub(super) async fn sandbox_stats_stream(
        &self,
        filter: &Filter,
    ) -> Response<Items<cri::StreamPodSandboxStatsResponse>> {
        let measured = self.measured().await;
        let sandboxes = measured.sandboxes(filter);
        chunked(
            sandboxes,
            move |sandbox| measured.view().sandbox(sandbox),
            |pod_sandbox_stats| cri::StreamPodSandboxStatsResponse { pod_sandbox_stats },
        )
    }

    pub(super) async fn metrics_stream(
        &self,
    ) -> Response<Items<cri::StreamPodSandboxMetricsResponse>> {
        let measured = self.measured().await;
        let sandboxes = measured.sandboxes(&Filter::default());
        chunked(
            sandboxes,
            move |sandbox| measured.view().metrics(sandbox),
            |pod_sandbox_metrics| cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics },
        )
    }
}
