//! Plugins as they are in the field: shell scripts that answer, hang, crash and talk rubbish.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use cni::{Attachment, Cache, Error, Network, Plugins};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Answers like a plugin that makes one link, and notes what it was told.
const GOOD: &str = r#"
kind=$(basename $0)
cat > DIR/$kind.$CNI_COMMAND.input
env | grep ^CNI_ > DIR/$kind.$CNI_COMMAND.env
echo "$kind $CNI_COMMAND" >> DIR/calls
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":0,"address":"10.0.0.2/24"}]}';;
esac
"#;

struct Bench {
    dir: TempDir,
    plugins: Plugins,
}

impl Bench {
    fn new() -> Bench {
        let dir = TempDir::new().unwrap();
        let plugins = Plugins { dirs: vec![dir.path().to_owned()], limit: Duration::from_secs(20) };
        Bench { dir, plugins }
    }

    fn plugin(&self, name: &str, script: &str) {
        let path = self.dir.path().join(name);
        let script = script.replace("DIR", &self.dir.path().display().to_string());
        // A program that is open for writing cannot be run, by whoever forks meanwhile.
        let aside = path.with_extension("new");
        fs::write(&aside, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&aside, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(aside, path).unwrap();
    }

    fn network(&self, version: &str, plugins: &[&str]) -> Network {
        let conf = self.dir.path().join("conf");
        fs::create_dir_all(&conf).unwrap();
        let plugins: Vec<Value> = plugins
            .iter()
            .map(|kind| json!({ "type": kind, "capabilities": { "portMappings": true } }))
            .collect();
        let list = json!({ "cniVersion": version, "name": "net", "plugins": plugins });
        fs::write(conf.join("10-net.conflist"), list.to_string()).unwrap();
        cni::load(&conf, 1).unwrap().remove(0)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }
}

fn attachment() -> Attachment {
    Attachment {
        container_id: "c1".into(),
        netns: Some("/run/netns/c1".into()),
        ifname: "eth0".into(),
        args: vec![("IgnoreUnknown".into(), "1".into())],
        capabilities: [("portMappings".to_owned(), json!([{ "hostPort": 80 }]))]
            .into_iter()
            .collect(),
    }
}

#[tokio::test]
async fn a_chain_is_called_in_order_and_back() {
    let bench = Bench::new();
    bench.plugin("one", GOOD);
    bench.plugin("two", GOOD);
    let network = bench.network("1.0.0", &["one", "two"]);
    let answer = bench.plugins.add(&network, &attachment()).await.unwrap();
    assert_eq!(answer.addresses(), ["10.0.0.2".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(bench.json("one.ADD.input").get("prevResult"), None);
    assert_eq!(bench.json("two.ADD.input")["prevResult"]["ips"][0]["address"], "10.0.0.2/24");
    assert_eq!(bench.json("two.ADD.input")["runtimeConfig"]["portMappings"][0]["hostPort"], 80);
    let environment = bench.read("one.ADD.env");
    for line in ["CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=/run/netns/c1"] {
        assert!(environment.contains(line), "{environment}");
    }
    assert!(environment.contains(&format!("CNI_PATH={}", bench.dir.path().display())));
    bench.plugins.check(&network, &attachment(), &answer).await.unwrap();
    bench.plugins.del(&network, &attachment(), Some(&answer)).await.unwrap();
    assert_eq!(bench.json("one.DEL.input")["prevResult"], *answer.json());
    // 1.0.0 knows neither; a plugin must not be surprised.
    bench.plugins.status(&network).await.unwrap();
    bench.plugins.gc(&network, &[]).await.unwrap();
    assert_eq!(bench.read("calls"), "one ADD\ntwo ADD\none CHECK\ntwo CHECK\ntwo DEL\none DEL\n");
}

#[tokio::test]
async fn old_versions_are_told_less_and_new_ones_asked_more() {
    let bench = Bench::new();
    bench.plugin("one", GOOD);
    let old = bench.network("0.3.1", &["one"]);
    let answer = bench.plugins.add(&old, &attachment()).await.unwrap();
    assert_eq!(answer.json()["ips"][0]["version"], "4", "translated to what the chain speaks");
    bench.plugins.check(&old, &attachment(), &answer).await.unwrap();
    bench.plugins.del(&old, &attachment(), Some(&answer)).await.unwrap();
    assert_eq!(bench.json("one.DEL.input").get("prevResult"), None);
    let new = bench.network("1.1.0", &["one"]);
    bench.plugins.status(&new).await.unwrap();
    bench.plugins.gc(&new, &[("c2".into(), "eth0".into())]).await.unwrap();
    let valid = &bench.json("one.GC.input")["cni.dev/valid-attachments"];
    assert_eq!(*valid, json!([{ "containerID": "c2", "ifname": "eth0" }]));
    assert_eq!(bench.read("calls"), "one ADD\none DEL\none STATUS\none GC\n");
}

#[tokio::test]
async fn every_fault_of_a_plugin_is_named() {
    let bench = Bench::new();
    for (name, script, expected) in [
        (
            "says-why",
            r#"echo '{"code":11,"msg":"try later","details":"busy"}'; exit 1"#,
            "try later (code 11); busy",
        ),
        ("complains", "echo no memory >&2; exit 3", "exit status: 3; it said: no memory"),
        ("crashes", "kill -SEGV $$", "signal: 11"),
        ("silent", "exit 0", "cannot be understood"),
        ("rubbish", "echo hello", "hello"),
        ("newer", r#"echo '{"cniVersion":"9.0.0"}'"#, "speaks version 9.0.0"),
        ("floods", "head -c 100000000 /dev/zero", "answered more than 4194304 bytes"),
        ("no-program", "", ""),
    ] {
        if name != "no-program" {
            bench.plugin(name, script);
        }
        let network = bench.network("1.0.0", &[name]);
        let error = bench.plugins.add(&network, &attachment()).await.unwrap_err().to_string();
        let expected = if name == "no-program" { "there is no such program in" } else { expected };
        assert!(error.contains(expected), "{name}: {error}");
        assert!(error.starts_with(&format!("ADD of plugin {name} in network net: ")), "{error}");
    }
    bench.plugin("no-shell", "");
    fs::write(bench.dir.path().join("no-shell"), "#!/nonexistent\n").unwrap();
    let network = bench.network("1.0.0", &["no-shell"]);
    let error = bench.plugins.add(&network, &attachment()).await.unwrap_err().to_string();
    assert!(error.contains("start ") && error.contains("No such file"), "{error}");
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children() {
    let mut bench = Bench::new();
    bench.plugins.limit = Duration::from_millis(500);
    bench.plugin("hangs", "sleep 1000 & echo $! > DIR/child; wait");
    let network = bench.network("1.0.0", &["hangs"]);
    let begun = Instant::now();
    let error = bench.plugins.add(&network, &attachment()).await.unwrap_err().to_string();
    assert!(error.contains("did not end within 0 s and was killed"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    let child = bench.read("child").trim().to_owned();
    let end = Instant::now() + Duration::from_secs(10);
    let is_dead = || match fs::read_to_string(format!("/proc/{child}/stat")) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    };
    while !is_dead() {
        assert!(Instant::now() < end, "its child {child} lives");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_is_no_fault_is_none() {
    let bench = Bench::new();
    let answer = r#"echo '{"ips":[{"address":"10.0.0.2/24"}]}'"#;
    // Chatters, does not read what it is told, leaves a child that holds its pipes.
    bench.plugin("chatters", &format!("head -c 3000000 /dev/zero >&2; {answer}"));
    bench.plugin("deaf", answer);
    bench.plugin("forks", &format!("sleep 1000 & echo $! > DIR/child; {answer}"));
    let mut huge = attachment();
    huge.capabilities.insert("portMappings".into(), json!("x".repeat(1 << 20)));
    for kind in ["chatters", "deaf", "forks"] {
        let network = bench.network("1.0.0", &[kind]);
        let answer = bench.plugins.add(&network, &huge).await;
        assert_eq!(answer.unwrap_or_else(|it| panic!("{kind}: {it}")).addresses().len(), 1);
    }
    let child = bench.read("child").trim().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(child).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[tokio::test]
async fn a_way_down_stops_at_the_first_fault_and_can_be_walked_again() {
    let bench = Bench::new();
    bench.plugin("one", GOOD);
    bench.plugin("two", GOOD);
    let network = bench.network("1.0.0", &["one", "two"]);
    let answer = bench.plugins.add(&network, &attachment()).await.unwrap();
    fs::remove_file(bench.dir.path().join("two")).unwrap();
    let error = bench.plugins.del(&network, &attachment(), Some(&answer)).await.unwrap_err();
    assert!(matches!(&error, Error::Plugin { plugin, .. } if plugin == "two"), "{error}");
    assert!(!bench.read("calls").contains("one DEL"));
    bench.plugin("two", GOOD);
    bench.plugins.del(&network, &attachment(), Some(&answer)).await.unwrap();
    assert!(bench.read("calls").ends_with("two DEL\none DEL\n"));
}

#[tokio::test]
async fn a_plugin_that_does_not_speak_the_version_is_known_before_a_pod_comes() {
    let bench = Bench::new();
    bench.plugin("old", r#"echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0"]}'"#);
    bench.plugin("mute", "exit 1");
    let error = bench.plugins.speak(&bench.network("1.0.0", &["mute", "old"])).await.unwrap_err();
    let expected = "VERSION of plugin old in network net: it speaks version 0.3.1, 0.4.0 of CNI, \
                    and the configuration 1.0.0";
    assert_eq!(error.to_string(), expected);
    bench.plugins.speak(&bench.network("0.4.0", &["mute", "old"])).await.unwrap();
    let error = bench.plugins.status(&bench.network("1.0.0", &["gone"])).await.unwrap_err();
    assert!(error.to_string().contains("plugin gone"), "{error}");
}

#[tokio::test]
async fn the_cache_has_the_form_of_the_specifications_own_library() {
    let bench = Bench::new();
    bench.plugin("one", GOOD);
    let network = bench.network("1.0.0", &["one"]);
    let answer = bench.plugins.add(&network, &attachment()).await.unwrap();
    let cache = Cache::at(bench.dir.path());
    cache.put(&network, &attachment(), &answer).unwrap();
    let entry = bench.json("results/net-c1-eth0");
    assert_eq!(entry["kind"], "cniCacheV1");
    assert_eq!(entry["containerId"], "c1");
    assert_eq!(entry["cniArgs"], json!([["IgnoreUnknown", "1"]]));
    assert_eq!(entry["result"], *answer.json());
    assert_eq!(entry["netns"], "/run/netns/c1");
    cache.remove(&network, &attachment()).unwrap();
    cache.remove(&network, &attachment()).unwrap();
    assert_eq!(fs::read_dir(bench.dir.path().join("results")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_directory_is_read_in_the_order_of_names_and_watched_before_it_exists() {
    let dir = TempDir::new().unwrap();
    let conf = dir.path().join("etc/cni/net.d");
    let mut watch = cni::Watch::open(vec![conf.clone()]).unwrap();
    assert!(matches!(cni::load(&conf, 1), Err(Error::NoConfiguration { .. })));
    let mut noticed = async |what: &str, done: &dyn Fn() -> bool| {
        let end = tokio::time::Instant::now() + Duration::from_secs(10);
        while !done() {
            let changed = tokio::time::timeout_at(end, watch.changed()).await;
            changed.unwrap_or_else(|_| panic!("{what} was not noticed")).unwrap();
        }
    };
    fs::create_dir_all(&conf).unwrap();
    let text = |name: &str| format!(r#"{{"cniVersion":"1.0.0","name":"{name}","type":"x"}}"#);
    fs::write(conf.join("20-b.conf"), text("b")).unwrap();
    noticed("a file", &|| cni::load(&conf, 1).is_ok_and(|it| it[0].name() == "b")).await;
    fs::write(conf.join("10-a.conf"), text("a")).unwrap();
    fs::write(conf.join("00-not-one.txt"), "x").unwrap();
    noticed("an earlier file", &|| cni::load(&conf, 1).is_ok_and(|it| it[0].name() == "a")).await;
    let both: Vec<_> = cni::load(&conf, 5).unwrap().iter().map(|it| it.name().to_owned()).collect();
    assert_eq!(both, ["a", "b"]);
    // A chain with plugins in files of their own.
    let list = r#"{"cniVersion":"1.1.0","name":"l","plugins":[{"type":"p"}]}"#;
    fs::write(conf.join("05-l.conflist"), list).unwrap();
    fs::create_dir(conf.join("l")).unwrap();
    fs::write(conf.join("l/50-q.conf"), r#"{"type":"q"}"#).unwrap();
    let network = cni::load(&conf, 1).unwrap().remove(0);
    assert_eq!(network.types().collect::<Vec<_>>(), ["p", "q"]);
    fs::write(conf.join("00-broken.conf"), "{").unwrap();
    let error = cni::load(&conf, 1).unwrap_err().to_string();
    assert!(error.contains("00-broken.conf"), "{error}");
}
