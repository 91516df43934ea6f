//! Two nodes: daemons in network namespaces of their own, joined by a cable, pods on both.

use std::time::Duration;

use e2e::{Container, Host, Node, Options, Pod, container, image, pod, wait, wire};

const SOON: Duration = Duration::from_secs(20);

/// Addresses of the cable.
const HOSTS: [&str; 2] = ["198.18.1.1", "198.18.1.2"];

/// A node with a web server behind a host port, and somebody who asks.
struct Side {
    node: Node,
    web: Pod,
    shell: Container,
}

impl Side {
    async fn new(host: &Host, network: &str) -> Side {
        let node = Node::start_with(Options {
            netns: Some(host.name.clone()),
            network: network.to_owned(),
            ..Options::default()
        })
        .await;
        node.import(&image::busybox(), image::BUSYBOX).await;
        let web = node.run_pod(pod("web").port(8080, 80)).await;
        let serve = "mkdir -p /www/cgi-bin; cd /www; \
                     printf '#!/bin/sh\\nprintf \"Content-Type: text/plain\\\\r\\\\n\\\\r\\\\n\"; echo -n $REMOTE_ADDR' \
                     > cgi-bin/who; chmod +x cgi-bin/who; exec httpd -f -p 0.0.0.0:8080 -h /www";
        web.start(&container("httpd", image::BUSYBOX).shell(serve)).await;
        let asker = node.run_pod(pod("asker")).await;
        let shell = asker.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
        Side { node, web, shell }
    }

    /// Who a server says is asking; nothing when it cannot be reached.
    async fn ask(&self, address: &str) -> String {
        let script = format!("timeout 3 wget -qO- http://{address}/cgi-bin/who || true");
        self.shell.shell(&script).await
    }

    async fn asker(&self) -> String {
        let addresses = self.shell.shell("ip -4 -o addr show eth0").await;
        let word = addresses.split_whitespace().nth(3).unwrap();
        word.split('/').next().unwrap().to_owned()
    }
}

async fn until_answered(side: &Side, address: &str, expected: &str) {
    wait::until_async(&format!("{address} is reached as {expected}"), SOON, || async {
        (side.ask(address).await == expected).then_some(())
    })
    .await;
}

/// Pods of both nodes reach each other as themselves, host ports work, the world sees the node, and
/// a cut cable heals without anybody's help.
async fn prove(hosts: [&Host; 2], sides: [Side; 2]) {
    let [a, b] = &sides;
    let (web_b, asker_a) = (b.web.address().await, a.asker().await);
    let (web_a, asker_b) = (a.web.address().await, b.asker().await);
    until_answered(a, &format!("{web_b}:8080"), &asker_a).await;
    until_answered(b, &format!("{web_a}:8080"), &asker_b).await;
    // Through the other node's host port, as its own node: that address is no pod's. And through its
    // own node's.
    until_answered(a, &format!("{}:80", HOSTS[1]), HOSTS[0]).await;
    let itself = a.ask(&format!("{}:80", HOSTS[0])).await;
    assert!(itself.starts_with(&a.node.network()), "hairpin by the own node: {itself:?}");
    // From the node itself to a pod of the other: with the node's address.
    let seen = hosts[0].fetch(&format!("http://{web_b}:8080/cgi-bin/who"));
    assert!(!seen.is_empty() && !seen.starts_with(&b.node.network()), "{seen:?}");

    hosts[0].run("ip link set uplink down");
    assert_eq!(a.ask(&format!("{web_b}:8080")).await, "", "the cable is cut");
    let to_own = a.ask(&format!("{web_a}:8080")).await;
    assert_eq!(to_own, asker_a, "the pods of one node do not notice");
    hosts[0].run("ip link set uplink up");
    // Routes by a link go with it; who routes a cluster puts them back.
    for line in [format!("ip route replace {}0/24 via {} dev uplink", b.node.network(), HOSTS[1])] {
        if hosts[0].attempt("ip link show vxlan0").0 {
            break;
        }
        hosts[0].run(&line);
    }
    until_answered(a, &format!("{web_b}:8080"), &asker_a).await;
    for side in sides {
        side.node.finish().await;
    }
}

/// The CIDR of the whole cluster keeps its addresses; all else is masqueraded.
const ROUTED: &str = "no_masquerade = [\"10.213.0.0/16\"]";

#[tokio::test]
async fn pods_of_two_nodes_reach_each_other_by_routes() {
    let (one, two) = Host::pair(&["198.18.1.1/24"], &["198.18.1.2/24"]);
    let sides = [Side::new(&one, ROUTED).await, Side::new(&two, ROUTED).await];
    for (host, other, gateway) in
        [(&one, &sides[1].node, HOSTS[1]), (&two, &sides[0].node, HOSTS[0])]
    {
        host.run(&format!("ip route add {}0/24 via {gateway}", other.network()));
    }
    // Beyond the cluster a pod is its node.
    let (_far, address) = world_behind(&two);
    one.run(&format!("ip route add {address}/32 via {}", HOSTS[1]));
    until_answered(&sides[0], &format!("{address}:8080"), HOSTS[0]).await;
    prove([&one, &two], sides).await;
}

#[tokio::test]
async fn pods_of_two_nodes_reach_each_other_through_vxlan() {
    let (one, two) = Host::pair(&["198.18.1.1/24"], &["198.18.1.2/24"]);
    let network = format!("{ROUTED}\nmtu = 1450");
    let sides = [Side::new(&one, &network).await, Side::new(&two, &network).await];
    for (host, own, other, far) in [
        (&one, &sides[0].node, &sides[1].node, HOSTS[1]),
        (&two, &sides[1].node, &sides[0].node, HOSTS[0]),
    ] {
        // As flannel does it: a device with the network's own address, the other's by onlink.
        host.run(&format!(
            "ip link add vxlan0 type vxlan id 1 remote {far} dstport 8472 dev uplink"
        ));
        host.run(&format!("ip addr add {}0/32 dev vxlan0", own.network()));
        host.run("ip link set vxlan0 up");
        let (network, gateway) = (other.network(), format!("{}0", other.network()));
        host.run(&format!("ip route add {network}0/24 via {gateway} dev vxlan0 onlink"));
    }
    let inside = wire::run_in(
        std::path::Path::new(&format!("/proc/{}/ns/net", pid_of(&sides[0]).await)),
        "ip link show eth0",
    );
    assert!(inside.contains("mtu 1450"), "{inside}");
    prove([&one, &two], sides).await;
}

async fn pid_of(side: &Side) -> i32 {
    side.node.pid_of(&side.shell).await
}

/// A host that only one of the nodes is joined to, with a server that says who asks.
fn world_behind(node: &Host) -> (Far, String) {
    let far = Host::new();
    let address = "198.18.2.2";
    node.run(&format!("ip link add far type veth peer name uplink netns {}", far.name));
    node.run("ip addr add 198.18.2.1/24 dev far");
    node.run("ip link set far up");
    far.run(&format!("ip addr add {address}/24 dev uplink"));
    far.run("ip link set uplink up");
    far.run("ip route add default via 198.18.2.1");
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("cgi-bin/who");
    std::fs::create_dir(dir.path().join("cgi-bin")).unwrap();
    let text = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s' \"$REMOTE_ADDR\"\n";
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let line = format!("busybox httpd -f -p 0.0.0.0:8080 -h {}", dir.path().display());
    let server = far.command(&line).spawn().unwrap();
    (Far { server, _host: far, _dir: dir }, address.to_owned())
}

struct Far {
    server: std::process::Child,
    _host: Host,
    _dir: tempfile::TempDir,
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
