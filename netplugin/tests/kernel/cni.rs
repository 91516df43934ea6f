//! `lapstrake-bridge` driven as a CNI runtime drives plugins.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use netplugin::Network;
use serde_json::{Value, json};

use crate::host::{
    Host, ask_tcp, eventually, link_names, on_a_host, own_netns, path_of, run, run_in, serve_tcp,
};

const OURS: &str = env!("CARGO_BIN_EXE_lapstrake-bridge");

/// A container as its runtime sees it.
struct Container {
    id: &'static str,
    netns: OwnedFd,
}

impl Container {
    fn new(id: &'static str) -> Container {
        Container { id, netns: Network::loopback_only(None).unwrap() }
    }

    /// Calls a plugin: its answer, or its error.
    fn call(&self, plugin: &str, command: &str, config: &Value) -> Result<Value, Value> {
        let mut child = Command::new(plugin)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.id)
            .env("CNI_NETNS", path_of(&self.netns))
            .env("CNI_IFNAME", "net0")
            .env("CNI_PATH", "/usr/lib/cni")
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME={}", self.id),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let answer =
            if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        if output.status.success() { Ok(answer) } else { Err(answer) }
    }
}

fn config(host: &Host, version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "net", "type": "lapstrake-bridge", "bridge": "br-cni",
        "ranges": ["10.9.0.0/24"], "dataDir": host.dir.path().join("cni"),
    })
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

#[test]
fn a_container_lives_through_add_check_and_del() {
    on_a_host(|host| {
        let one = Container::new("one");
        let conf = config(host, "1.1.0");
        let result = one.call(OURS, "ADD", &conf).unwrap();
        assert_eq!(result["cniVersion"], "1.1.0");
        assert_eq!(result["ips"][0]["address"], "10.9.0.2/24");
        assert_eq!(result["ips"][0]["gateway"], "10.9.0.1");
        assert_eq!(result["routes"][0]["dst"], "0.0.0.0/0");
        let inside = &result["interfaces"][2];
        assert_eq!(inside["name"], "net0");
        assert_eq!(inside["sandbox"], path_of(&one.netns));
        assert_eq!(inside["mtu"], 1500);
        assert!(run_in(&one.netns, "ip addr show net0").contains("10.9.0.2/24"));

        let check = with(conf.clone(), "prevResult", result.clone());
        one.call(OURS, "CHECK", &check).unwrap();
        run_in(&one.netns, "ip addr del 10.9.0.2/24 dev net0");
        let error = one.call(OURS, "CHECK", &check).unwrap_err();
        assert_eq!(error["code"], 101);
        assert!(error["msg"].as_str().unwrap().contains("address 10.9.0.2/24 on net0 is missing"));

        one.call(OURS, "DEL", &check).unwrap();
        one.call(OURS, "DEL", &check).unwrap();
        assert_eq!(
            link_names().len(),
            2,
            "lo and the bridge: the namespace lives, its link does not"
        );
        let two = Container::new("two");
        let result = two.call(OURS, "ADD", &conf).unwrap();
        assert_eq!(result["ips"][0]["address"], "10.9.0.3/24", "not the one just released");
    });
}

#[test]
fn results_have_the_form_of_their_version() {
    on_a_host(|host| {
        for (id, version) in [("a", "0.3.1"), ("b", "0.4.0"), ("c", "1.0.0"), ("d", "1.1.0")] {
            let result = Container::new(id).call(OURS, "ADD", &config(host, version)).unwrap();
            assert_eq!(result["cniVersion"], version);
            let old = version < "1";
            assert_eq!(result["ips"][0].get("version").is_some(), old, "{version}");
            assert_eq!(result["interfaces"][2].get("mtu").is_some(), version == "1.1.0");
        }
        let error = Container::new("e").call(OURS, "ADD", &config(host, "2.0.0")).unwrap_err();
        assert_eq!(error["code"], 1);
        let versions = Container::new("f").call(OURS, "VERSION", &config(host, "1.0.0")).unwrap();
        assert_eq!(versions["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    });
}

#[test]
fn ports_and_bandwidth_come_as_capabilities_and_a_conflict_names_the_pod() {
    on_a_host(|host| {
        let world = host.neighbour("192.168.7.1/24", "192.168.7.2/24");
        let wants = json!({
            "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
            "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 800_000 },
        });
        let conf = with(config(host, "1.0.0"), "runtimeConfig", wants);
        let one = Container::new("one");
        let result = one.call(OURS, "ADD", &conf).unwrap();
        serve_tcp(&one.netns, "0.0.0.0:80");
        assert_eq!(ask_tcp(&world, "192.168.7.1:8080").unwrap(), "192.168.7.2");
        let host_link = result["interfaces"][1]["name"].as_str().unwrap();
        assert!(run(&format!("tc qdisc show dev {host_link}")).contains("tbf"));
        let error = Container::new("two").call(OURS, "ADD", &conf).unwrap_err();
        assert_eq!(error["code"], 103);
        assert!(error["msg"].as_str().unwrap().contains("taken by ns/one"), "{error}");
    });
}

#[test]
fn status_and_gc_answer_for_the_network() {
    on_a_host(|host| {
        let conf = config(host, "1.1.0");
        let (one, two) = (Container::new("one"), Container::new("two"));
        one.call(OURS, "STATUS", &conf).unwrap();
        let empty = with(conf.clone(), "ranges", json!([]));
        assert_eq!(one.call(OURS, "STATUS", &empty).unwrap_err()["code"], 50);
        one.call(OURS, "ADD", &conf).unwrap();
        two.call(OURS, "ADD", &conf).unwrap();
        let valid = json!([{ "containerID": "one", "ifname": "net0" }]);
        let gc = with(conf.clone(), "cni.dev/valid-attachments", valid);
        one.call(OURS, "GC", &gc).unwrap();
        eventually("the end of the link of two", || link_names().len() == 3);
        run_in(&one.netns, "busybox ping -c 1 -W 2 10.9.0.1");
        assert!(!run_in(&two.netns, "ip link").contains("net0"));
    });
}

#[test]
fn other_plugins_can_be_chained_behind_it() {
    on_a_host(|host| {
        let world = host.neighbour("192.168.7.1/24", "192.168.7.2/24");
        let one = Container::new("one");
        let conf = config(host, "1.0.0");
        let mut result = one.call(OURS, "ADD", &conf).unwrap();
        let chain = [
            json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.net0.arp_filter": "1" } }),
            json!({ "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000,
                    "egressRate": 8_000_000, "egressBurst": 8_000_000 }),
            json!({ "type": "portmap", "runtimeConfig": {
                "portMappings": [{ "hostPort": 9090, "containerPort": 80, "protocol": "tcp" }] } }),
        ];
        let mut configs = Vec::new();
        for mut next in chain {
            next["cniVersion"] = "1.0.0".into();
            next["name"] = "net".into();
            next["prevResult"] = result;
            let plugin = format!("/usr/lib/cni/{}", next["type"].as_str().unwrap());
            result = one.call(&plugin, "ADD", &next).unwrap();
            configs.push((plugin, next));
        }
        let address: IpAddr = Ipv4Addr::new(10, 9, 0, 2).into();
        assert_eq!(result["ips"][0]["address"], format!("{address}/24"));
        serve_tcp(&one.netns, "0.0.0.0:80");
        assert_eq!(ask_tcp(&world, "192.168.7.1:9090").unwrap(), "192.168.7.2");
        ask_tcp(&own_netns(), "192.168.7.1:9090").unwrap();
        for (plugin, config) in configs.iter().rev() {
            one.call(plugin, "DEL", config).unwrap();
        }
        one.call(OURS, "DEL", &with(conf, "prevResult", result)).unwrap();
        let links = link_names();
        assert_eq!(links.iter().filter(|name| name.starts_with("lap")).count(), 0, "{links:?}");
    });
}

#[test]
fn eight_calls_at_once_take_turns() {
    on_a_host(|host| {
        let conf = config(host, "1.0.0");
        let ids = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let containers = ids.map(Container::new);
        let host_ns = own_netns();
        let mut addresses: Vec<String> = std::thread::scope(|scope| {
            let calls: Vec<_> = containers
                .iter()
                .map(|container| {
                    let (conf, host_ns) = (&conf, &host_ns);
                    scope.spawn(move || {
                        let add = || container.call(OURS, "ADD", conf).unwrap();
                        crate::host::inside(host_ns, add)["ips"][0]["address"].to_string()
                    })
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), ids.len());
    });
}
