//! Volumes: where they come from, what crosses them, and what is refused.

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::{ContainerSpec, Node, Options, container, image, pod};
use k8s_cri::v1 as cri;
use tonic::Code;

use crate::refused::refused;

#[tokio::test]
async fn a_missing_host_path_is_an_error_unless_the_node_makes_it() {
    let node = Node::with_busybox().await;
    let absent = node.scratch().join("absent/deep").display().to_string();
    let asks = sleeper("main").mount(&absent, "/data", false);
    let pod = node.run_pod(pod("pod")).await;
    let words = ["/data", &absent, "does not exist", "missing_mount_source"];
    refused(pod.try_create(&asks).await, Code::InvalidArgument, &words);
    assert!(!Path::new(&absent).exists());
    node.finish().await;

    let config = "missing_mount_source = \"create\"\n".to_owned();
    let node = Node::start_with(Options { config, ..Options::default() }).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    let absent = node.scratch().join("absent/deep");
    let pod = node.run_pod(e2e::pod("pod")).await;
    let spec = sleeper("main").mount(&absent.display().to_string(), "/data", false);
    pod.start(&spec).await.shell("echo x > /data/file").await;
    assert!(absent.join("file").exists());
    node.finish().await;
}

#[tokio::test]
async fn mounts_cross_a_volume_as_far_as_it_says() {
    let node = Node::with_busybox().await;
    let tree = Shared::new(&node.scratch().join("shared"), "--make-shared");
    let private = Shared::new(&node.scratch().join("private"), "--make-private");
    let mut privileged = pod("pod");
    privileged.linux().security_context.get_or_insert_default().privileged = true;
    let pod = node.run_pod(privileged).await;
    let with = |name: &str, source: &Path, propagation: cri::MountPropagation| {
        let mut spec = sleeper(name).mount(&source.display().to_string(), "/v", false);
        spec.config.mounts[0].propagation = propagation.into();
        spec.security().privileged = true;
        spec
    };
    use cri::MountPropagation::{
        PropagationBidirectional as Both, PropagationHostToContainer as In,
        PropagationPrivate as Private,
    };
    let containers = [("private", Private), ("in", In), ("both", Both)];
    let mut running = Vec::new();
    for (name, propagation) in containers {
        fs::create_dir_all(tree.0.join(format!("from-{name}"))).unwrap();
        running.push(pod.start(&with(name, &tree.0, propagation)).await);
    }
    fs::create_dir_all(tree.0.join("late")).unwrap();
    mount(&["-t", "tmpfs", "tmpfs", &tree.0.join("late").display().to_string()]);
    for (container, sees) in running.iter().zip([false, true, true]) {
        let count = container.shell("grep -c ' /v/late ' /proc/self/mountinfo || true").await;
        assert_eq!(count == "1", sees, "{count}");
    }
    for ((name, _), container) in containers.iter().zip(&running) {
        container.shell(&format!("mount -t tmpfs tmpfs /v/from-{name}")).await;
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let crossed = table.contains(&format!("/from-{name} "));
        assert_eq!(crossed, *name == "both", "{name}");
    }
    running[2].shell("umount /v/from-both").await;

    // Where the host's mounts cut propagation off, asking for it is a mistake.
    for (name, propagation) in [("in2", In), ("both2", Both)] {
        let created = pod.try_create(&with(name, &private.0, propagation)).await;
        refused(created, Code::InvalidArgument, &["/v", "private", "make-rshared"]);
    }
    pod.remove().await;
    drop((tree, private));
    node.finish().await;
}

#[tokio::test]
async fn the_options_of_a_volume_hold_and_unknown_ones_are_refused() {
    use proto::cri::v1 as newer;
    let node = Node::with_busybox().await;
    let dir = node.scratch();
    fs::copy("/bin/busybox", dir.join("busybox")).unwrap();
    let pod = node.run_pod(pod("pod")).await;
    let create = |options: &[&str]| {
        let config = newer::ContainerConfig {
            metadata: Some(newer::ContainerMetadata { name: "main".into(), attempt: 0 }),
            image: Some(newer::ImageSpec { image: image::BUSYBOX.into(), ..Default::default() }),
            command: vec!["sleep".into(), "1000".into()],
            mounts: vec![newer::Mount {
                host_path: dir.display().to_string(),
                container_path: "/v".into(),
                mount_options: options.iter().map(|it| (*it).to_owned()).collect(),
                ..Default::default()
            }],
            ..Default::default()
        };
        newer::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: None,
        }
    };
    let mut client = node.cri.newer_runtime.clone();
    refused(
        client.create_container(create(&["exec"])).await,
        Code::InvalidArgument,
        &["exec", "/v"],
    );
    let request = create(&["noexec", "nodev", "nosuid"]);
    let id = client.create_container(request).await.unwrap().into_inner().container_id;
    let main = e2e::Container::known(&node.cri, &id);
    main.start().await;
    let line = main.shell("grep ' /v ' /proc/self/mountinfo").await;
    for option in ["noexec", "nodev", "nosuid"] {
        assert!(line.contains(option), "{line}");
    }
    main.shell("/v/busybox true 2>&1 | grep -q denied").await;
    let status = newer::ContainerStatusRequest { container_id: id, verbose: false };
    let status = client.container_status(status).await.unwrap().into_inner().status.unwrap();
    assert_eq!(status.mounts[0].mount_options, ["noexec", "nodev", "nosuid"]);
    node.finish().await;
}

#[tokio::test]
async fn a_thousand_volumes_in_one_container() {
    let node = Node::with_busybox().await;
    let dir = node.scratch();
    let pod = node.run_pod(pod("pod")).await;
    let mut spec = sleeper("main");
    for number in 0..1000 {
        let file = dir.join(format!("{number}"));
        fs::write(&file, format!("{number}\n")).unwrap();
        spec = spec.mount(&file.display().to_string(), &format!("/v/{number}"), number % 2 == 0);
    }
    let main = pod.start(&spec).await;
    assert_eq!(main.shell("cat /v/* | wc -l; cat /v/999").await, "1000\n999");
    assert_eq!(main.status().await.mounts.len(), 1000);
    node.finish().await;
}

/// A tmpfs of the test's own, with a propagation of its own.
struct Shared(std::path::PathBuf);

impl Shared {
    fn new(at: &Path, propagation: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let text = at.display().to_string();
        mount(&["-t", "tmpfs", "tmpfs", &text]);
        mount(&[propagation, &text]);
        Self(at.to_owned())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-R", "-l"]).arg(&self.0).status();
    }
}

#[track_caller]
fn mount(arguments: &[&str]) {
    assert!(Command::new("mount").args(arguments).status().unwrap().success(), "{arguments:?}");
}

fn sleeper(name: &str) -> ContainerSpec {
    container(name, image::BUSYBOX).command(&["sleep", "1000"])
}
