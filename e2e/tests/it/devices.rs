//! Devices: those of the node by path, and those that vendors describe (CDI).

use std::fs;

use e2e::{ContainerSpec, Node, Options, Pod, container, image, pod};
use k8s_cri::v1 as cri;
use tempfile::TempDir;
use tonic::Code;

use crate::refused::refused;

#[tokio::test]
async fn a_device_is_there_with_its_owner_and_no_more_rights_than_asked_for() {
    let (node, pod, _) = node_with_cdi("").await;
    let link = node.scratch().join("link");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    let mut spec = sleeper("main");
    for (host, inside, permissions) in [
        (&*link.display().to_string(), "/dev/by-link", "rw"),
        ("/dev/net/tun", "/dev/read-only", "r"),
    ] {
        spec.config.devices.push(cri::Device {
            host_path: host.into(),
            container_path: inside.into(),
            permissions: permissions.into(),
        });
    }
    let main = pod.start(&spec).await;
    main.shell("echo x > /dev/by-link && exec 3< /dev/read-only").await;
    main.shell("! (exec 3> /dev/read-only) 2>/dev/null").await;

    let mut spec = sleeper("directory");
    spec.config.devices.push(cri::Device { host_path: "/dev/net".into(), ..Default::default() });
    pod.start(&spec).await.shell("exec 3> /dev/net/tun").await;

    let mut spec = sleeper("absent");
    spec.config.devices.push(cri::Device { host_path: "/dev/absent".into(), ..Default::default() });
    let error = pod.try_create(&spec).await.unwrap_err();
    assert!(error.message().contains("/dev/absent"), "{error}");
    node.finish().await;
}

#[tokio::test]
async fn devices_belong_to_the_containers_user_where_the_node_says_so() {
    let (node, pod, _) = node_with_cdi("device_ownership_from_security_context = true\n").await;
    let mut spec = sleeper("main").user(1000, Some(77));
    spec.config.devices.push(cri::Device {
        host_path: "/dev/full".into(),
        container_path: "/dev/mine".into(),
        ..Default::default()
    });
    assert_eq!(pod.start(&spec).await.shell("stat -c %u:%g /dev/mine").await, "1000:77");
    node.finish().await;
}

#[tokio::test]
async fn a_cdi_device_brings_node_files_environment_groups_and_hooks() {
    let (node, pod, dirs) = node_with_cdi("").await;
    let library = node.scratch().join("library");
    fs::write(&library, "of the vendor").unwrap();
    let trace = node.scratch().join("trace");
    let file = format!(
        "cdiVersion: 1.0.0
kind: acme.com/gpu
containerEdits:
  env: [ACME=yes]
  hooks:
  - hookName: createRuntime
    path: /bin/sh
    args: [sh, -c, 'echo hooked > {trace}']
devices:
- name: zero
  containerEdits:
    deviceNodes: [{{path: /dev/acme0, hostPath: /dev/net/tun, permissions: r, fileMode: 420, gid: 44}}]
    mounts: [{{hostPath: {library}, containerPath: /opt/acme/library, options: [ro, nosuid]}}]
    additionalGids: [44]
",
        trace = trace.display(),
        library = library.display(),
    );
    // Written after the daemon's start: nothing has to be told.
    fs::write(dirs[0].path().join("acme.yaml"), file).unwrap();
    let mut spec = sleeper("main").user(1000, None);
    spec.config.cdi_devices = vec![cri::CdiDevice { name: "acme.com/gpu=zero".into() }];
    let main = pod.start(&spec).await;
    assert_eq!(
        main.shell("echo $ACME; id -G; stat -c %a:%g /dev/acme0").await,
        "yes\n1000 44 1234\n644:44"
    );
    assert_eq!(main.shell("cat /opt/acme/library").await, "of the vendor");
    main.shell("exec 3< /dev/acme0 && ! echo x 2>/dev/null > /opt/acme/library").await;
    assert_eq!(fs::read_to_string(&trace).unwrap(), "hooked\n");

    // The later directory wins; the old way of asking is understood.
    let winner = r#"{"cdiVersion":"0.6.0","kind":"acme.com/gpu",
        "devices":[{"name":"zero","containerEdits":{"env":["ACME=newer"]}}]}"#;
    fs::write(dirs[1].path().join("acme.json"), winner).unwrap();
    let spec = sleeper("second").annotation("cdi.k8s.io/x", "acme.com/gpu=zero");
    assert_eq!(pod.start(&spec).await.shell("echo $ACME").await, "newer");
    node.finish().await;
}

#[tokio::test]
async fn a_cdi_device_that_is_missing_or_ambiguous_is_named() {
    let (node, pod, dirs) = node_with_cdi("").await;
    let text = r#"{"cdiVersion":"1.0.0","kind":"acme.com/gpu",
        "devices":[{"name":"zero","containerEdits":{"env":["A=1"]}}]}"#;
    fs::write(dirs[0].path().join("one.json"), text).unwrap();
    fs::write(dirs[0].path().join("two.json"), text).unwrap();
    fs::write(dirs[1].path().join("broken.yaml"), "cdiVersion: [").unwrap();
    for (name, words) in [
        ("acme.com/gpu=zero", &["twice", "one.json", "two.json"][..]),
        ("acme.com/gpu=one", &["acme.com/gpu=one", "broken.yaml"]),
        ("gpu", &["vendor/class=device"]),
    ] {
        let mut spec = sleeper("main");
        spec.config.cdi_devices = vec![cri::CdiDevice { name: name.into() }];
        refused(pod.try_create(&spec).await, Code::InvalidArgument, words);
    }
    node.finish().await;
}

/// The directories of CDI files are the test's own; `config` goes into the runtime's table.
async fn node_with_cdi(config: &str) -> (Node, Pod, [TempDir; 2]) {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let config = format!("cdi_spec_dirs = [{:?}, {:?}]\n{config}", dirs[0].path(), dirs[1].path());
    let node = Node::start_with(Options { config, ..Options::default() }).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    let pod = node.run_pod(pod("pod")).await;
    (node, pod, dirs)
}

fn sleeper(name: &str) -> ContainerSpec {
    container(name, image::BUSYBOX).command(&["sleep", "1000"])
}
