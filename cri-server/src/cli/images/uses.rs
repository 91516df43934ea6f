//! Who uses an image, and since when.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use proto::cri::v1 as cri;

use crate::cli::client::{self, Client};
use crate::cli::console;

/// The containers of the node, by the id of their image.
#[derive(Default)]
pub(super) struct Uses {
    by_image: BTreeMap<String, Vec<Use>>,
    now_ns: i64,
}

struct Use {
    /// `namespace/pod/container`.
    name: String,
    container: String,
    since_ns: i64,
}

/// Named in the table; the rest is counted.
const NAMED_MAX: usize = 3;

impl Uses {
    pub(super) async fn of(client: &Client) -> Result<Uses, client::Error> {
        let pods = client.list_pod_sandboxes(cri::PodSandboxFilter::default()).await?;
        let containers = client.list_containers(cri::ContainerFilter::default()).await?;
        let mut all = Vec::new();
        for container in containers {
            // Only its status tells of volumes. One that has gone meanwhile uses nothing.
            let status = client.container_status("container", &container.id).await;
            all.push((container, volumes(status.unwrap_or_default())));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ns = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        Ok(Uses::from_lists(&pods, all, now_ns))
    }

    /// Each container with its image volumes: the path, and the image's id.
    fn from_lists(
        pods: &[cri::PodSandbox],
        containers: Vec<(cri::Container, Vec<(String, String)>)>,
        now_ns: i64,
    ) -> Uses {
        let names: BTreeMap<&str, String> = pods
            .iter()
            .filter_map(|pod| {
                let about = pod.metadata.as_ref()?;
                Some((pod.id.as_str(), format!("{}/{}", about.namespace, about.name)))
            })
            .collect();
        let mut by_image: BTreeMap<String, Vec<Use>> = BTreeMap::new();
        for (container, volumes) in containers {
            let own = container.metadata.unwrap_or_default().name;
            let pod = names.get(container.pod_sandbox_id.as_str());
            let name = pod.map_or_else(|| own.clone(), |pod| format!("{pod}/{own}"));
            let since_ns = container.created_at;
            for (path, image) in volumes {
                let name = format!("{name} at {path}");
                let one = Use { name, container: container.id.clone(), since_ns };
                by_image.entry(image).or_default().push(one);
            }
            let one = Use { name, container: container.id, since_ns };
            by_image.entry(container.image_id).or_default().push(one);
        }
        for uses in by_image.values_mut() {
            uses.sort_by(|a, b| (a.since_ns, &a.name).cmp(&(b.since_ns, &b.name)));
        }
        Uses { by_image, now_ns }
    }

    pub(super) fn words(&self, image: &str) -> String {
        let uses = self.by_image.get(image).map_or(&[][..], Vec::as_slice);
        let shown = uses.iter().take(NAMED_MAX);
        let mut words: Vec<String> = shown
            .map(|one| format!("{} ({})", one.name, console::age(one.since_ns, self.now_ns)))
            .collect();
        if uses.len() > NAMED_MAX {
            words.push(format!("and {} more", uses.len() - NAMED_MAX));
        }
        words.join(", ")
    }

    pub(super) fn json(&self, image: &str) -> serde_json::Value {
        let uses = self.by_image.get(image).map_or(&[][..], Vec::as_slice);
        let one = |one: &Use| {
            serde_json::json!({
                "name": one.name,
                "container": one.container,
                "sinceNs": one.since_ns,
            })
        };
        uses.iter().map(one).collect()
    }
}

fn volumes(status: cri::ContainerStatus) -> Vec<(String, String)> {
    let mounts = status.mounts.into_iter();
    mounts.filter_map(|mount| Some((mount.container_path, mount.image?.image_ref))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named_oldest_first_and_the_rest_is_counted() {
        let pod = cri::PodSandbox {
            id: "p".into(),
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".into(),
                namespace: "prod".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let container = |n: i64| cri::Container {
            id: format!("c{n}"),
            pod_sandbox_id: if n == 4 { "gone".into() } else { "p".into() },
            metadata: Some(cri::ContainerMetadata { name: format!("n{n}"), attempt: 0 }),
            image_id: "sha256:1".into(),
            created_at: (10 - n) * 1_000_000_000,
            ..Default::default()
        };
        let volumes = |n: i64| match n {
            1 => vec![("/models".to_owned(), "sha256:3".to_owned())],
            _ => vec![],
        };
        let containers = (1..=4).map(|n| (container(n), volumes(n))).collect();
        let uses = Uses::from_lists(&[pod], containers, 10_000_000_000);
        assert_eq!(
            uses.words("sha256:1"),
            "n4 (4s), prod/web/n3 (3s), prod/web/n2 (2s), and 1 more"
        );
        assert_eq!(uses.words("sha256:2"), "");
        assert_eq!(uses.words("sha256:3"), "prod/web/n1 at /models (1s)");
        assert_eq!(uses.json("sha256:1")[3]["name"], "prod/web/n1");
    }
}
