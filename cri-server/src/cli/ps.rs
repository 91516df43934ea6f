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
    let node = Node {
        pods: client.list_pod_sandboxes(cri::PodSandboxFilter::default()).await?,
        containers: client.list_containers(cri::ContainerFilter::default()).await?,
        image_names: image_names(client.list_images().await?),
        addresses: BTreeMap::new(),
    };
    let addresses = addresses(&client, &node.pods).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ns = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    console::out(render(Node { addresses, ..node }, now_ns)).map_err(Cause::Output)?;
    Ok(ExitCode::SUCCESS)
}

/// What the daemon says about the node.
struct Node {
    pods: Vec<cri::PodSandbox>,
    containers: Vec<cri::Container>,
    /// By the id of the pod; a pod in the network of the node has none.
    addresses: BTreeMap<String, String>,
    /// By the id of the image.
    image_names: BTreeMap<String, String>,
}

async fn addresses(
    client: &client::Client,
    pods: &[cri::PodSandbox],
) -> Result<BTreeMap<String, String>, client::Error> {
    let mut addresses = BTreeMap::new();
    for pod in pods {
        match client.pod_sandbox_status(&format!("pod {}", pod.id), &pod.id).await {
            Ok(status) => {
                let address = status.network.unwrap_or_default().ip;
                addresses.insert(pod.id.clone(), address);
            }
            // It went away between the two calls.
            Err(error) if error.code() == Some(Code::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    addresses.retain(|_, address| !address.is_empty());
    Ok(addresses)
}

fn image_names(images: Vec<cri::Image>) -> BTreeMap<String, String> {
    let first_name = |image: cri::Image| Some((image.id, image.repo_tags.into_iter().next()?));
    images.into_iter().filter_map(first_name).collect()
}

/// A line for each container under the line of its pod, the oldest first.
fn render(mut node: Node, now_ns: i64) -> String {
    node.pods.sort_by_key(|pod| pod.created_at);
    node.containers.sort_by_key(|container| container.created_at);
    let mut rows = Vec::new();
    for pod in &node.pods {
        rows.push(pod_row(pod, &node, now_ns));
        let own = node.containers.iter().filter(|container| container.pod_sandbox_id == pod.id);
        rows.extend(own.map(|container| container_row(container, &node, now_ns)));
    }
    console::table(["POD / CONTAINER", "ID", "STATE", "ADDRESS / IMAGE", "ATTEMPT", "AGE"], &rows)
}

fn pod_row(pod: &cri::PodSandbox, node: &Node, now_ns: i64) -> [String; 6] {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let state = match pod.state() {
        cri::PodSandboxState::SandboxReady => "ready",
        cri::PodSandboxState::SandboxNotready => "not ready",
    };
    [
        format!("{}/{}", metadata.namespace, metadata.name),
        console::short_id(&pod.id).to_owned(),
        state.to_owned(),
        node.addresses.get(&pod.id).map_or("-", String::as_str).to_owned(),
        metadata.attempt.to_string(),
        console::age(pod.created_at, now_ns),
    ]
}

fn container_row(container: &cri::Container, node: &Node, now_ns: i64) -> [String; 6] {
    let metadata = container.metadata.clone().unwrap_or_default();
    let state = match container.state() {
        cri::ContainerState::ContainerCreated => "created",
        cri::ContainerState::ContainerRunning => "running",
        cri::ContainerState::ContainerExited => "exited",
        cri::ContainerState::ContainerUnknown => "unknown",
    };
    [
        format!("  {}", metadata.name),
        console::short_id(&container.id).to_owned(),
        state.to_owned(),
        image(container, node),
        metadata.attempt.to_string(),
        console::age(container.created_at, now_ns),
    ]
}

/// As the user called it, else by a name of its id, else by the id.
fn image(container: &cri::Container, node: &Node) -> String {
    let spec = container.image.clone().unwrap_or_default();
    if !spec.user_specified_image.is_empty() {
        return spec.user_specified_image;
    }
    let named = [&spec.image, &container.image_id, &container.image_ref]
        .into_iter()
        .find_map(|id| node.image_names.get(id));
    match named {
        Some(name) => name.clone(),
        None if spec.image.starts_with("sha256:") => console::short_id(&spec.image).to_owned(),
        None => spec.image,
    }
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
        let container =
            |id: &str, image: cri::ImageSpec, state: cri::ContainerState| cri::Container {
                id: id.repeat(16),
                pod_sandbox_id: "p1".to_owned(),
                metadata: Some(cri::ContainerMetadata { name: format!("c{id}"), attempt: 2 }),
                image: Some(image),
                state: state.into(),
                created_at: 2_000_000_000,
                ..Default::default()
            };
        let image = |image: &str, user: &str| cri::ImageSpec {
            image: image.to_owned(),
            user_specified_image: user.to_owned(),
            ..Default::default()
        };
        let (running, exited) =
            (cri::ContainerState::ContainerRunning, cri::ContainerState::ContainerExited);
        let node = Node {
            pods: vec![pod("p2", "late", 3_000_000_000), pod("p1", "web", 1_000_000_000)],
            containers: vec![
                container("1", image("sha256:aa", "nginx:1"), running),
                container("2", image("sha256:aa", ""), running),
                container("3", image("sha256:0123456789abcdef", ""), exited),
            ],
            addresses: BTreeMap::from([("p1".to_owned(), "10.1.0.2".to_owned())]),
            image_names: BTreeMap::from([("sha256:aa".to_owned(), "x/nginx:1".to_owned())]),
        };
        assert_eq!(
            render(node, 5_000_000_000),
            "\
POD / CONTAINER  ID            STATE    ADDRESS / IMAGE  ATTEMPT  AGE
default/web      p1            ready    10.1.0.2         0        4s
  c1             111111111111  running  nginx:1          2        3s
  c2             222222222222  running  x/nginx:1        2        3s
  c3             333333333333  exited   0123456789ab     2        3s
default/late     p2            ready    -                0        2s"
        );
    }
}
