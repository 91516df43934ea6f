//! The one way down for a pod: stop its containers with grace, stop it, remove it all.

use std::{fmt, time::Duration};

use futures::future::join_all;
use proto::cri::v1 as cri;
use tonic::Code;

use super::{
    client::{Client, Error},
    console,
    signals::Signals,
};

/// What a kill may take before the sandbox is stopped anyway, which kills whatever is left.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What could not be stopped or removed.
#[derive(Debug)]
pub(crate) struct Leftovers {
    /// By which `lapstrake rm` finds the pod.
    pub(crate) pod: String,
    pub(crate) errors: Vec<Error>,
}

impl std::error::Error for Leftovers {}

impl fmt::Display for Leftovers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "clean up: `lapstrake rm {}` tries again what failed:", self.pod)?;
        self.errors.iter().try_for_each(|error| write!(out, "\n  {error}"))
    }
}

/// Takes down the sandbox `id` and everything in it. What is gone already counts as done, and an
/// error does not keep the rest from being removed. A signal ends the grace.
pub(crate) async fn pod(
    client: &Client,
    signals: &mut Signals,
    id: &str,
    grace_s: u32,
) -> Result<(), Leftovers> {
    let object = format!("pod {}", console::short_id(id));
    let filter = cri::ContainerFilter { pod_sandbox_id: id.to_owned(), ..Default::default() };
    let mut errors = Vec::new();
    let containers = client.list_containers(filter).await.unwrap_or_else(|error| {
        errors.push(error);
        Vec::new()
    });
    stop(client, signals, &containers, grace_s, &mut errors).await;
    note_error(client.stop_pod_sandbox(&object, id).await, &mut errors);
    for container in &containers {
        let removed = client.remove_container(&name(container), &container.id).await;
        note_error(removed, &mut errors);
    }
    note_error(client.remove_pod_sandbox(&object, id).await, &mut errors);
    if errors.is_empty() {
        return Ok(());
    }
    Err(Leftovers { pod: console::short_id(id).to_owned(), errors })
}

async fn stop(
    client: &Client,
    signals: &mut Signals,
    containers: &[cri::Container],
    grace_s: u32,
    errors: &mut Vec<Error>,
) {
    let stop_all = |grace_s| {
        let running = containers.iter().filter(|container| !has_ended(container));
        join_all(running.map(move |container| async move {
            client.stop_container(&name(container), &container.id, grace_s).await
        }))
    };
    match signals.or_stop(stop_all(grace_s)).await {
        Ok(results) => results.into_iter().for_each(|result| note_error(result, errors)),
        Err(_) => {
            console::note("killing the containers");
            // Whatever this leaves running, stopping the sandbox kills.
            let _ = tokio::time::timeout(KILL_DEADLINE, stop_all(0)).await;
        }
    }
}

fn has_ended(container: &cri::Container) -> bool {
    container.state() == cri::ContainerState::ContainerExited
}

fn name(container: &cri::Container) -> String {
    let name = container.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
    format!("container {name} ({})", console::short_id(&container.id))
}

fn note_error(result: Result<(), Error>, errors: &mut Vec<Error>) {
    if let Err(error) = result
        && error.code() != Some(Code::NotFound)
    {
        errors.push(error);
    }
}
