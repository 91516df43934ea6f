//! Pods whose root is nobody on the node.

use std::fs;
use std::os::unix::fs::MetadataExt;

use e2e::{ContainerSpec, Node, PodSpec, container, host, image, pod};
use k8s_cri::v1 as cri;
use tonic::Code;

use crate::refused::refused;

/// Where the pod's ids begin on the node.
const FIRST: u32 = 1_310_720;

#[tokio::test]
async fn root_of_the_pod_is_nobody_on_the_node_and_has_files_and_a_network() {
    let Some(node) = node_with_users().await else { return };
    let pod = node.run_pod(mapped(pod("pod"))).await;
    let status = pod.status().await;
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options.userns_options, Some(users()), "told as asked, or the kubelet restarts it");
    let volume = node.scratch().join("volume");
    fs::create_dir_all(&volume).unwrap();
    fs::write(volume.join("mine"), "").unwrap();
    let mut spec = sleeper("main").mount(&volume.display().to_string(), "/data", false);
    let ids = users();
    (spec.config.mounts[0].uid_mappings, spec.config.mounts[0].gid_mappings) = (ids.uids, ids.gids);
    let add_capabilities = ["SYS_ADMIN", "NET_ADMIN"].map(str::to_owned).into();
    spec.security().capabilities = Some(cri::Capability { add_capabilities, ..Default::default() });
    let main = pod.start(&mapped_container(spec)).await;

    let pid = node.pid_of(&main).await;
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), FIRST);
    let map = main.shell("cat /proc/self/uid_map").await;
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", &FIRST.to_string(), "65536"]);
    // The image's files, the pod's files, the volume and what is made all belong to its root.
    let stat = "stat -c %u:%g /bin /etc/hosts /etc/resolv.conf /data/mine /proc/1 /dev/shm";
    assert_eq!(main.shell(stat).await, ["0:0"; 6].join("\n"));
    main.shell("echo x > /made && echo x > /data/new && echo x > /etc/hosts && chown 5:6 /made")
        .await;
    assert_eq!(main.shell("stat -c %u:%g /made").await, "5:6");
    assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), 0, "as the volume has it");
    // Its capabilities end at its namespace; inside it may do what root does.
    main.shell("hostname other && ip link add v0 type veth peer name v1 && ip link del v0").await;
    main.shell("mkdir /mnt && mount -t tmpfs tmpfs /mnt && umount /mnt").await;
    main.shell("! echo 1 2>/dev/null > /proc/sys/kernel/panic").await;
    main.shell("test -c /dev/null && echo x > /dev/null && head -c 1 /dev/urandom > /dev/null")
        .await;
    let address = pod.address().await;
    assert!(main.shell("ip addr show eth0").await.contains(&address), "{address}");
    assert!(main.shell("cat /etc/hosts").await.contains('x'));

    let second = pod.start(&mapped_container(sleeper("second"))).await;
    let namespace = "readlink /proc/self/ns/user; readlink /proc/self/ns/net";
    assert_eq!(main.shell(namespace).await, second.shell(namespace).await);
    let mut third = mapped_container(sleeper("third"));
    let namespaces = third.security().namespace_options.as_mut().unwrap();
    namespaces.userns_options.as_mut().unwrap().uids[0].host_id += 1;
    refused(pod.try_create(&third).await, Code::InvalidArgument, &["userns_options", "differs"]);
    node.finish().await;
}

#[tokio::test]
async fn a_pod_with_users_of_its_own_can_use_the_nodes_network() {
    let Some(node) = node_with_users().await else { return };
    let pod = node.run_pod(mapped(pod("pod").host_network())).await;
    let main = pod.start(&mapped_container(sleeper("main").host_network())).await;
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(main.shell("readlink /proc/self/ns/net").await, host.display().to_string());
    main.shell("test -d /sys/class/net/lo && ! touch /sys/x 2>/dev/null").await;
    node.finish().await;
}

/// Every handler says the same. Where the kernel cannot map the ids of a tmpfs there are none, and
/// a pod that wants one is refused.
async fn node_with_users() -> Option<Node> {
    let node = Node::with_busybox().await;
    let mut client = node.cri.runtime.clone();
    let status = client.status(cri::StatusRequest { verbose: false }).await.unwrap().into_inner();
    let told = |handler: &cri::RuntimeHandler| handler.features.unwrap().user_namespaces;
    let able = host::kernel() >= (6, 3);
    assert!(status.runtime_handlers.iter().all(|handler| told(handler) == able));
    if able {
        return Some(node);
    }
    let error = node.try_run_pod(mapped(pod("pod"))).await.map(|_| ());
    refused(
        error,
        Code::InvalidArgument,
        &["userns_options", "no user namespaces", "`lapstrake doctor`"],
    );
    node.finish().await;
    None
}

fn users() -> cri::UserNamespace {
    let ids = vec![cri::IdMapping { host_id: FIRST, container_id: 0, length: 65_536 }];
    cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids }
}

fn mapped(mut spec: PodSpec) -> PodSpec {
    spec.namespaces().userns_options = Some(users());
    spec
}

fn mapped_container(mut spec: ContainerSpec) -> ContainerSpec {
    spec.security().namespace_options.get_or_insert_default().userns_options = Some(users());
    spec
}

fn sleeper(name: &str) -> ContainerSpec {
    container(name, image::BUSYBOX).command(&["sleep", "1000"])
}
