//! AppArmor confinement, where the kernel has it: that of the vm ring's guest does.

use std::fs;
use std::process::Command;

use e2e::{ContainerSpec, Node, Pod, container, image, pod};
use k8s_cri::v1 as cri;
use k8s_cri::v1::security_profile::ProfileType;
use tonic::Code;

use crate::refused::refused;

/// The test's own profile, which refuses what the default allows.
const OWN: &str = "lapstrake-e2e-no-writes";

#[tokio::test]
async fn the_nodes_default_confines_and_unconfined_does_not() {
    let Some((node, pod)) = confined_node().await else { return };
    let mounting = |name: &str, wish: Option<cri::SecurityProfile>| {
        let mut spec = sleeper(name);
        let capabilities = cri::Capability {
            add_capabilities: vec!["SYS_ADMIN".to_owned()],
            ..Default::default()
        };
        spec.security().capabilities = Some(capabilities);
        spec.security().apparmor = wish;
        spec
    };
    for (name, wish) in [("silent", None), ("default", profile(ProfileType::RuntimeDefault, ""))] {
        let container = pod.start(&mounting(name, wish)).await;
        assert_eq!(
            container.shell("cat /proc/1/attr/current").await,
            "lapstrake-default (enforce)"
        );
        // An exec'd process has it too, and it forbids what the capability alone would allow.
        assert_eq!(
            container.shell("cat /proc/self/attr/current").await,
            "lapstrake-default (enforce)"
        );
        container.shell("! mount -t tmpfs none /tmp").await;
    }
    let free = pod.start(&mounting("free", profile(ProfileType::Unconfined, ""))).await;
    assert_eq!(free.shell("cat /proc/self/attr/current").await, "unconfined");
    free.shell("mount -t tmpfs none /tmp").await;
    node.finish().await;
}

#[tokio::test]
async fn a_profile_of_the_node_confines_by_its_name_and_the_newer_field_wins() {
    let Some((node, pod)) = confined_node().await else { return };
    let mut spec = sleeper("early");
    spec.security().apparmor = profile(ProfileType::Localhost, OWN);
    let words = ["apparmor", OWN, "is not loaded"];
    refused(pod.try_create(&spec).await, Code::InvalidArgument, &words);

    let text = format!(
        "profile {OWN} flags=(attach_disconnected,mediate_deleted) {{\n\
           file,\n  capability,\n  network,\n  signal,\n  ptrace,\n  deny /tmp/** w,\n}}\n"
    );
    let file = node.scratch().join("profile");
    fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    parser(&["--replace", "--skip-cache", &file]);

    #[expect(deprecated)]
    let old =
        |spec: &mut ContainerSpec| spec.security().apparmor_profile = format!("localhost/{OWN}");
    let mut named = sleeper("named");
    named.security().apparmor = profile(ProfileType::Localhost, OWN);
    let mut deprecated = sleeper("deprecated");
    old(&mut deprecated);
    for spec in [&named, &deprecated] {
        let container = pod.start(spec).await;
        let label = format!("{OWN} (enforce)");
        assert_eq!(
            container.shell("cat /proc/1/attr/current /proc/self/attr/current").await,
            format!("{label}\n{label}")
        );
        container.shell("! touch /tmp/file 2>/dev/null && touch /other").await;
    }
    let mut both = sleeper("both");
    old(&mut both);
    both.security().apparmor = profile(ProfileType::Unconfined, "");
    let container = pod.start(&both).await;
    assert_eq!(container.shell("cat /proc/self/attr/current; touch /tmp/file").await, "unconfined");
    pod.remove().await;
    parser(&["--remove", &file]);
    node.finish().await;
}

/// None where this kernel has no AppArmor, which is on the short list of what may be absent.
async fn confined_node() -> Option<(Node, Pod)> {
    let switch = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if !switch.is_ok_and(|it| it.trim() == "Y") {
        eprintln!("SKIPPED: this kernel has no AppArmor; the vm ring's has");
        return None;
    }
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    Some((node, pod))
}

fn parser(arguments: &[&str]) {
    let done = Command::new("apparmor_parser").args(arguments).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn sleeper(name: &str) -> ContainerSpec {
    container(name, image::BUSYBOX).shell("sleep 1000")
}

fn profile(kind: ProfileType, name: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() })
}
