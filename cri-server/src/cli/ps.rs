//! `lapstrake ps`: the pods of this node and their containers at a glance.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use proto::cri::v1 as cri;
use tonic::Code;

use super::{Cause, client, console};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    daemon: client::Daemon,
}

pub(crate) async fn ps(args: &Args) -> Result<ExitCode, Cause> {
    let client = client::Client::connect(&args.daemon).await?;
    let pods = client.list_pod_sandboxes(cri::PodSandboxFilter::default()).await?;
    let containers = client.list_containers(cri::ContainerFilter::default()).await?;
    let images = client.list_images().await?;
    let image_names: BTreeMap<String, String> = images
        .into_iter()
        .filter_map(|image| Some((image.id, image.repo_tags.into_iter().next()?)))
        .collect();
    let mut addresses = BTreeMap::new();
    for pod in &pods {
        match client.pod_sandbox_status(&pod.id, &pod.id).await {
            Ok(status) => {
                addresses.insert(pod.id.clone(), status.network.unwrap_or_default().ip);
            }
            // It went away between the two calls.
            Err(error) if error.code() == Some(Code::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ns = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    console::out(render(pods, &containers, &addresses, now_ns)).map_err(Cause::Output)?;
    Ok(ExitCode::SUCCESS)
}

/// A line for each container under the line of its pod.
fn render(
    mut pods: Vec<cri::PodSandbox>,
    containers: &[cri::Container],
    addresses: &BTreeMap<String, String>,
    now_ns: i64,
) -> String {
    pods.sort_by_key(|pod| pod.created_at);
    let mut rows = Vec::new();
    for pod in &pods {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let ready = pod.state() == cri::PodSandboxState::SandboxReady;
        let address = addresses.get(&pod.id).filter(|address| !address.is_empty());
        rows.push([
            format!("{}/{}", metadata.namespace, metadata.name),
            console::short_id(&pod.id).to_owned(),
            if ready { "ready" } else { "not ready" }.to_owned(),
            address.map_or("-", String::as_str).to_owned(),
            metadata.attempt.to_string(),
            console::age(pod.created_at, now_ns),
        ]);
        let mut own: Vec<&cri::Container> =
            containers.iter().filter(|container| container.pod_sandbox_id == pod.id).collect();
        own.sort_by_key(|container| container.created_at);
        rows.extend(own.into_iter().map(|container| container_row(container, now_ns)));
    }
    console::table(["POD / CONTAINER", "ID", "STATE", "ADDRESS / IMAGE", "ATTEMPT", "AGE"], &rows)
}

fn container_row(container: &cri::Container, now_ns: i64) -> [String; 6] {
    let metadata = container.metadata.clone().unwrap_or_default();
    let state = match container.state() {
        cri::ContainerState::ContainerCreated => "created",
        cri::ContainerState::ContainerRunning => "running",
        cri::ContainerState::ContainerExited => "exited",
        cri::ContainerState::ContainerUnknown => "unknown",
    };
    let image = container.image.clone().unwrap_or_default();
    let image = [image.user_specified_image, image.image, container.image_ref.clone()]
        .into_iter()
        .find(|name| !name.is_empty())
        .unwrap_or_default();
    let image =
        if image.starts_with("sha256:") { console::short_id(&image).to_owned() } else { image };
    [
        format!("  {}", metadata.name),
        console::short_id(&container.id).to_owned(),
        state.to_owned(),
        image,
        metadata.attempt.to_string(),
        console::age(container.created_at, now_ns),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_stand_under_their_pod() {
        let pod = |id: &str, name: &str, created_at| cri::PodSandbox {
            id: id.to_owned(),
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                namespace: "default".to_owned(),
                ..Default::default()
            }),
            created_at,
            ..Default::default()
        };
        let container = cri::Container {
            id: "cccccccccccccccc".to_owned(),
            pod_sandbox_id: "p1".to_owned(),
            metadata: Some(cri::ContainerMetadata { name: "nginx".to_owned(), attempt: 2 }),
            image: Some(cri::ImageSpec { image: "nginx:1".to_owned(), ..Default::default() }),
            state: cri::ContainerState::ContainerRunning.into(),
            created_at: 2_000_000_000,
            ..Default::default()
        };
        let addresses = BTreeMap::from([("p1".to_owned(), "10.1.0.2".to_owned())]);
        let pods = vec![pod("p2", "late", 3_000_000_000), pod("p1", "web", 1_000_000_000)];
        assert_eq!(
            render(pods, &[container], &addresses, 5_000_000_000),
            "\
POD / CONTAINER  ID            STATE    ADDRESS / IMAGE  ATTEMPT  AGE
default/web      p1            ready    10.1.0.2         0        4s
  nginx          cccccccccccc  running  nginx:1          2        3s
default/late     p2            ready    -                0        2s"
        );
    }
}
