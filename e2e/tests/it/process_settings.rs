//! What a container's process finds itself to be: command, environment, directory, user.

use e2e::{ContainerSpec, Node, container, image, layer::Layer, pod};
use serde_json::json;

const APP: &str = "docker.io/library/app:test";

/// An image with every setting a container can take over: prints its arguments, one a line.
fn app() -> image::Image {
    let print = "#!/bin/sh\necho print\nfor word in \"$@\"; do echo $word; done\n";
    image::busybox().with(
        Layer::default().file("bin/print", 0o755, print).dir("srv", 0o755),
        json!({
            "Entrypoint": ["/bin/print", "entry"],
            "Cmd": ["image-arg"],
            "Env": ["PATH=/bin", "FROM=image", "BOTH=image"],
            "User": "app",
            "WorkingDir": "/srv",
        }),
    )
}

async fn output_of(specs: &[ContainerSpec]) -> Vec<String> {
    let node = Node::start().await;
    node.import(&app(), APP).await;
    let pod = node.run_pod(pod("pod")).await;
    let mut outputs = Vec::new();
    for (attempt, spec) in (0..).zip(specs) {
        let container = pod.start(&spec.clone().attempt(attempt)).await;
        let status = container.exited().await;
        let lines: Vec<_> = container.log_lines().into_iter().map(|it| it.text).collect();
        assert_eq!(status.exit_code, 0, "{lines:?}");
        outputs.push(lines.join(" "));
        std::fs::remove_file(&container.log).unwrap();
    }
    node.finish().await;
    outputs
}

#[tokio::test]
async fn command_and_arguments_replace_the_images_as_docker_has_it() {
    let main = || container("main", APP);
    let outputs = output_of(&[
        main(),
        main().args(&["arg"]),
        main().command(&["/bin/print", "command"]),
        main().command(&["/bin/print", "command"]).args(&["arg"]),
    ])
    .await;
    assert_eq!(
        outputs,
        ["print entry image-arg", "print entry arg", "print command", "print command arg"]
    );
}

#[tokio::test]
async fn the_environment_is_the_images_under_the_containers() {
    let shell = container("main", APP).shell("echo $PATH $FROM $BOTH $TWICE $HOSTNAME $EMPTY.");
    let spec =
        shell.env("BOTH", "container").env("TWICE", "first").env("TWICE", "last").env("EMPTY", "");
    assert_eq!(output_of(&[spec]).await, ["/bin image container last pod ."]);
}

#[tokio::test]
async fn the_working_directory_is_the_containers_the_images_and_made_when_missing() {
    let main = container("main", APP).shell("pwd");
    let outputs =
        output_of(&[main.clone(), main.clone().working_dir("/tmp"), main.working_dir("/new/deep")])
            .await;
    assert_eq!(outputs, ["/srv", "/tmp", "/new/deep"]);
}

#[tokio::test]
async fn the_user_is_the_containers_before_the_images() {
    let main = container("main", APP).shell("id -u; id -g; id -G; echo $HOME");
    let mut extra = main.clone().user(1000, Some(5));
    extra.security().supplemental_groups = vec![77];
    let mut strict = main.clone().user(1000, None);
    strict.security().supplemental_groups = vec![77];
    strict.security().supplemental_groups_policy =
        k8s_cri::v1::SupplementalGroupsPolicy::Strict as i32;
    let outputs = output_of(&[
        main.clone(),
        main.clone().user(0, None),
        main.clone().username("nobody"),
        main.clone().user(4321, None),
        extra,
        strict,
    ])
    .await;
    assert_eq!(outputs[0], "1000 1000 1000 1234 /tmp");
    assert_eq!(outputs[1], "0 0 0 /root");
    assert_eq!(outputs[2], "65534 65534 65534 /");
    assert!(outputs[3].starts_with("4321 0 0"), "an id without an account: {}", outputs[3]);
    assert_eq!(outputs[4], "1000 5 5 77 1234 /tmp");
    assert_eq!(outputs[5], "1000 1000 1000 77 /tmp");
}

#[tokio::test]
async fn a_volume_of_the_image_is_writable_when_the_root_is_not() {
    let node = Node::start().await;
    let layer = Layer::default().dir("state", 0o755).file("state/seed", 0o644, "seed\n");
    let settings = json!({ "Cmd": ["sh"], "Volumes": { "/state": {}, "/var/absent": {} } });
    node.import(&image::busybox().with(layer, settings), APP).await;
    let pod = node.run_pod(pod("pod")).await;
    let mut spec = container("main", APP).command(&["sleep", "1000"]);
    spec.security().readonly_rootfs = true;
    let main = pod.start(&spec).await;
    main.shell("! touch /x 2>/dev/null; touch /var/absent/x").await;
    assert_eq!(main.shell("echo more >> /state/seed; cat /state/seed").await, "seed\nmore");
    let other = pod.start(&spec.attempt(1)).await;
    assert_eq!(other.shell("cat /state/seed; ls /var/absent").await, "seed");
    assert_eq!(other.status().await.mounts, [], "none that the pod asked for");
    node.finish().await;
}
