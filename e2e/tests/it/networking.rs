//! Pod networks: addresses, reachability, the way out, and what is given back.

use std::process::Command;

use e2e::{Node, Options, container, http, image, pod, wait};
use tonic::Code;

use crate::refused::refused;

#[tokio::test]
async fn a_pod_is_reached_at_its_address_by_host_pods_and_itself() {
    let node = Node::with_busybox().await;
    node.import(&image::nginx(), image::NGINX).await;
    let web = node.run_pod(pod("web")).await;
    let _nginx = web.start(&container("nginx", image::NGINX)).await;
    let sidecar = web.start(&container("sidecar", image::BUSYBOX).shell("sleep 1000")).await;
    let other = node.run_pod(pod("other")).await;
    let other = other.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    let address = web.address().await;
    assert!(address.starts_with(&node.network()), "{address}");

    wait::until("nginx listens", e2e::pod::SOON, || {
        std::net::TcpStream::connect((&*address, 80)).ok()
    });
    let page = http::request("GET", &format!("{address}:80"), "/", &[], &[]);
    assert_eq!((page.status, &*page.body), (200, &b"served by nginx\n"[..]));
    let fetch = |host: &str| format!("wget -qO- http://{host}/");
    assert_eq!(sidecar.shell(&fetch("127.0.0.1")).await, "served by nginx");
    assert_eq!(sidecar.shell(&fetch(&address)).await, "served by nginx");
    assert_eq!(other.shell(&fetch(&address)).await, "served by nginx");
    node.finish().await;
}

#[tokio::test]
async fn the_pod_sees_one_interface_and_one_way_out() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    let main = pod.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    let links = main.shell("ls /sys/class/net | tr '\\n' ' '").await;
    assert_eq!(links.trim(), "eth0 lo");
    let address = main.shell("ip -4 -o addr show eth0").await;
    assert!(address.contains(&format!("{}/24", pod.address().await)), "{address}");
    let gateway = format!("default via {}1 dev eth0", node.network());
    let routes = main.shell("ip route").await;
    assert!(routes.contains(&gateway), "{routes}");
    main.shell("ping -c 1 -W 5 127.0.0.1").await;
    main.shell(&format!("ping -c 1 -W 5 {}1", node.network())).await;
    node.finish().await;
}

#[tokio::test]
async fn a_pod_in_the_hosts_network_has_its_interfaces_and_no_address() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("host").host_network()).await;
    assert_eq!(pod.address().await, "");
    let main = container("main", image::BUSYBOX).host_network().shell("sleep 1000");
    let main = pod.start(&main).await;
    let host = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert_eq!(main.shell("readlink /proc/self/ns/net").await, host);
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(main.shell("hostname").await, name.trim());
    node.finish().await;
}

#[tokio::test]
async fn the_world_outside_sees_the_hosts_address() {
    let node = Node::with_busybox().await;
    let outside = Outside::new(&node);
    let pod = node.run_pod(pod("pod")).await;
    let main = pod.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    let fetch = format!("timeout 5 wget -qO- http://{}:8080/cgi-bin/who", outside.address);
    wait::until("the server outside answers", e2e::pod::SOON, || {
        std::net::TcpStream::connect(format!("{}:8080", outside.address)).ok()
    });
    assert_eq!(main.shell(&fetch).await, outside.host_address);
    drop(outside);
    node.finish().await;
}

#[tokio::test]
async fn a_host_port_leads_from_outside_to_the_pod() {
    let node = Node::with_busybox().await;
    node.import(&image::nginx(), image::NGINX).await;
    let outside = Outside::new(&node);
    let web = node.run_pod(pod("web").port(80, 18080)).await;
    let _nginx = web.start(&container("nginx", image::NGINX)).await;
    let host = outside.host_address.clone();
    let page = wait::until("the port answers", e2e::pod::SOON, || {
        let page = outside.run(&[
            "timeout",
            "5",
            "busybox",
            "wget",
            "-qO-",
            &format!("http://{host}:18080/"),
        ]);
        (!page.is_empty()).then_some(page)
    });
    assert_eq!(page, "served by nginx\n");
    web.remove().await;
    let page =
        outside.run(&["timeout", "5", "busybox", "wget", "-qO-", &format!("http://{host}:18080/")]);
    assert_eq!(page, "", "the port is closed again");
    drop(outside);
    node.finish().await;
}

#[tokio::test]
async fn an_empty_pool_is_said_and_fills_again() {
    // /29: eight addresses, of which five are left for pods.
    let node = Node::start_with(Options { range_prefix: 29, ..Default::default() }).await;
    let mut pods = Vec::new();
    let refusal = loop {
        match node.try_run_pod(pod(&format!("pod-{}", pods.len()))).await {
            Ok(pod) => pods.push(pod),
            Err(status) => break status,
        }
        assert!(pods.len() < 8, "more pods than addresses");
    };
    assert_eq!(pods.len(), 5);
    let words = ["default/pod-5", "no free address in", "all 5 usable addresses are leased"];
    refused(Err::<(), _>(refusal), Code::ResourceExhausted, &words);
    let (_, told) = node.offline_verb(&["doctor"]);
    assert!(told.contains("lacks  pod network") && told.contains("5 of 5 addresses"), "{told}");
    let before = node.scope.snapshot(node.pid());
    node.try_run_pod(pod("one-more")).await.expect_err("still empty");
    node.scope.assert_same(&before, node.pid());
    pods.pop().unwrap().remove().await;
    node.run_pod(pod("replacement")).await;
    node.finish().await;
}

/// A machine beside the host: a namespace behind a veth, with a web server that says who asks.
struct Outside {
    name: String,
    address: String,
    host_address: String,
    server: std::process::Child,
}

impl Outside {
    fn new(node: &Node) -> Self {
        let name = format!("{}o", node.scope.bridge);
        let third = node.network().split('.').nth(2).unwrap().to_owned();
        let (host_address, address) = (format!("198.18.{third}.1"), format!("198.18.{third}.2"));
        let inside = format!("ip netns exec {name}");
        let dir = node.scratch().join("www");
        std::fs::create_dir_all(dir.join("cgi-bin")).unwrap();
        let script = dir.join("cgi-bin/who");
        std::fs::write(
            &script,
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s' \"$REMOTE_ADDR\"\n",
        )
        .unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        for line in [
            format!("ip netns add {name}"),
            format!("ip link add {name} type veth peer name eth0 netns {name}"),
            format!("ip addr add {host_address}/24 dev {name}"),
            format!("ip link set {name} up"),
            format!("{inside} ip addr add {address}/24 dev eth0"),
            format!("{inside} ip link set eth0 up"),
        ] {
            let mut words = line.split(' ');
            let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
            assert!(status.success(), "{line}");
        }
        let server = Command::new("ip")
            .args(["netns", "exec", &name, "busybox", "httpd", "-f", "-p", "0.0.0.0:8080", "-h"])
            .arg(&dir)
            .spawn()
            .unwrap();
        Self { name, address, host_address, server }
    }

    /// Standard output of a command there, whatever its exit code.
    fn run(&self, command: &[&str]) -> String {
        let output = Command::new("ip").args(["netns", "exec", &self.name]).args(command).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("ip").args(["link", "delete", &self.name]).status();
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}
