//! What doctor makes of nodes, each one thing away from a node that lacks nothing.

use std::path::PathBuf;

use super::*;
use crate::doctor::facts::{Cgroups, Directory};
use crate::network::mode::Mode;

fn healthy() -> Facts {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    let directory = |path: &str, file_system| Directory {
        path: PathBuf::from(path),
        file_system: Some(file_system),
        free_bytes: 50_000_000_000,
        free_inodes: 1_000_000,
    };
    Facts {
        root_user: true,
        kernel: "6.18.2-cloud-amd64".to_owned(),
        cgroups: Cgroups { unified: Some(words("cpu cpuset io memory pids")), v1: words("") },
        capabilities: Some(u64::MAX),
        overlay: Ok(()),
        user_namespaces_max: Some(15_000),
        seccomp_actions: words("kill_process errno user_notif allow"),
        ip_forward: Some("1".to_owned()),
        pod_network: Some(Ok(netplugin::Survey::default())),
        ipv6: true,
        ipv6_switched_off: Vec::new(),
        network_mode: Mode::Auto,
        plugins: Ok(vec!["cluster".to_owned()]),
        apparmor: true,
        apparmor_parser: true,
        selinux: crate::selinux::Node::Off,
        hosts_mounts: Some(true),
        root_is_shared: Some(true),
        root_dir: directory("/var/lib/lapstrake", 0xef53),
        state_dir: directory("/run/lapstrake", TMPFS),
        shim: PathBuf::from("/usr/libexec/lapstrake-shim"),
        shim_is_there: true,
        open_files: Some(1 << 20),
        missing_handlers: Vec::new(),
    }
}

/// Of all the findings exactly the one of `topic` is not fine; it says `words` and has a fix.
#[track_caller]
fn check(change: impl FnOnce(&mut Facts), topic: &str, verdict: Verdict, words: &str) {
    let mut facts = healthy();
    change(&mut facts);
    let mut found = findings(&facts);
    found.retain(|finding| finding.verdict != Verdict::Fine);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].topic, found[0].verdict), (topic, verdict), "{found:#?}");
    assert!(found[0].says.contains(words), "{found:#?}");
    assert!(found[0].fix.is_some());
}

#[test]
fn a_node_that_lacks_nothing_is_fine_throughout() {
    let found = findings(&healthy());
    assert!(found.iter().all(|it| it.verdict == Verdict::Fine && it.fix.is_none()), "{found:#?}");
}

#[test]
fn what_keeps_pods_from_running_is_broken() {
    use Verdict::Broken;
    check(|it| it.root_user = false, "user", Broken, "not root");
    check(|it| it.capabilities = Some(!(1 << 21)), "user", Broken, "CAP_SYS_ADMIN");
    check(|it| it.cgroups.unified = None, "cgroups", Broken, "none are mounted");
    check(|it| it.overlay = Err("no such device".into()), "overlayfs", Broken, "no such device");
    check(|it| it.root_dir.file_system = Some(NFS), "root directory", Broken, "NFS");
    check(|it| it.root_dir.file_system = Some(OVERLAYFS), "root directory", Broken, "overlay");
    check(|it| it.shim_is_there = false, "shim", Broken, "does not exist");
}

#[test]
fn what_works_with_less_is_lacking() {
    use Verdict::Lacking;
    check(|it| it.capabilities = Some(!(1 << 24)), "user", Lacking, "CAP_SYS_RESOURCE");
    check(|it| it.kernel = "6.8.0-42-generic".into(), "kernel", Lacking, "exit code");
    check(|it| it.cgroups.v1 = ["cpu".into()].into(), "cgroups", Lacking, "version 1");
    check(
        |it| it.cgroups.unified.as_mut().unwrap().retain(|it| it != "pids"),
        "cgroups",
        Lacking,
        "without pids",
    );
    check(|it| it.user_namespaces_max = Some(0), "user namespaces", Lacking, "forbidden");
    check(|it| it.user_namespaces_max = None, "user namespaces", Lacking, "not in this kernel");
    check(|it| it.seccomp_actions.clear(), "seccomp", Lacking, "no filters");
    check(|it| it.ipv6 = false, "IPv6", Lacking, "not in this kernel");
    check(|it| it.apparmor = false, "AppArmor", Lacking, "not enabled");
    check(|it| it.apparmor_parser = false, "AppArmor", Lacking, "cannot be loaded");
    check(|it| it.hosts_mounts = Some(false), "mount namespace", Lacking, "not init's");
    check(|it| it.root_is_shared = Some(false), "propagation", Lacking, "not a shared mount");
    check(|it| it.root_dir.free_bytes = 1 << 20, "root directory", Lacking, "0.0 GB free");
    check(|it| it.root_dir.free_inodes = 10, "root directory", Lacking, "10 inodes");
    check(|it| it.root_dir.file_system = Some(TMPFS), "root directory", Lacking, "in memory");
    check(|it| it.state_dir.file_system = None, "state directory", Lacking, "not on a tmpfs");
    check(|it| it.open_files = Some(1024), "open files", Lacking, "128 pods");
    check(
        |it| it.missing_handlers = vec![("kata".into(), "/opt/kata".into())],
        "handler",
        Lacking,
        "/opt/kata does not exist",
    );
}

#[test]
fn a_kernel_that_is_too_old_is_broken() {
    let facts = Facts { kernel: "5.10.0-9-amd64".into(), ..healthy() };
    assert_eq!(kernel(&facts).verdict, Verdict::Broken);
    assert_eq!(user_namespaces(&facts).verdict, Verdict::Lacking);
}

#[test]
fn what_keeps_pods_from_a_network_is_broken() {
    use netplugin::Error;
    let refused = |number| std::io::Error::from_raw_os_error(number);
    let no_tables = || Error::NoNfTables {
        stage: "look into table",
        object: "t".into(),
        source: refused(libc::EINVAL),
    };
    let taken = || Error::Bridge { name: "br0".into(), reason: "it is a veth link".into() };
    let closed = || Error::File {
        stage: "enable forwarding in",
        path: "/proc/sys/net/ipv4/ip_forward".into(),
        source: refused(libc::EROFS),
    };
    let dropped = || Error::Blocked { chains: "ip filter FORWARD".into(), bridge: "br0".into() };
    let cases: [(&dyn Fn() -> Error, &str, &str); 4] = [
        (&no_tables, "no nf_tables", "network.mode"),
        (&taken, "br0 cannot be the pod bridge: it is a veth link", "ip link delete br0"),
        (&closed, "ip_forward: Read-only", "sysctl -w net.ipv4.ip_forward=1"),
        (&dropped, "ip filter FORWARD", "admit_forwarding"),
    ];
    for (error, says, fix) in cases {
        let survey = netplugin::Survey { obstacles: vec![error()], ..Default::default() };
        check(|it| it.pod_network = Some(Ok(survey)), "pod network", Verdict::Broken, says);
        let facts = Facts { pod_network: Some(Err(error())), ..healthy() };
        let found = network::built_in(&facts);
        assert!(found.len() == 1 && found[0].fix.as_ref().unwrap().contains(fix), "{found:?}");
    }
}

#[test]
fn a_network_that_has_lost_something_or_ends_is_lacking() {
    use Verdict::Lacking;
    let changed = |change: &dyn Fn(&mut netplugin::Survey), topic, says| {
        let mut survey = netplugin::Survey::default();
        change(&mut survey);
        check(|it| it.pod_network = Some(Ok(survey)), topic, Lacking, says);
    };
    let topic = "pod network";
    changed(&|it| it.obstacles = vec![netplugin::Error::NoRange], topic, "no pod address range");
    let net = |text: &str| text.parse().unwrap();
    let overlap = (net("10.244.0.0/24"), net("10.0.0.7/8"));
    changed(&|it| it.overlaps = vec![overlap], topic, "10.0.0.7/8, which this node is in");
    let lost = || vec!["nftables table t is gone".to_owned(), "pod a/b has no link".to_owned()];
    changed(&|it| it.lost = lost(), topic, "table t is gone, and 1 more");
    let pool = |leased, ipv6| netplugin::Pool {
        ranges: "10.244.0.0/24".into(),
        ipv6,
        usable: 253,
        leased,
    };
    changed(
        &|it| it.pools = vec![pool(230, false)],
        topic,
        "230 of 253 addresses of 10.244.0.0/24",
    );
    let six = || netplugin::Survey { pools: vec![pool(227, true)], ..Default::default() };
    let switched_off = |it: &mut Facts| {
        it.ipv6_switched_off = vec!["net.ipv6.conf.all.disable_ipv6"];
        it.pod_network = Some(Ok(six()));
    };
    check(switched_off, "IPv6", Lacking, "net.ipv6.conf.all.disable_ipv6");
    check(
        |it| (it.network_mode, it.plugins) = (Mode::Cni, Err("no conf".into())),
        "plugins",
        Lacking,
        "no conf",
    );
}

#[test]
fn what_the_pod_network_does_not_need_is_fine() {
    let is_fine = |facts: &Facts| findings(facts).iter().all(|it| it.verdict == Verdict::Fine);
    let forwarding_comes_with_the_first_pod = Facts { ip_forward: Some("0".into()), ..healthy() };
    assert!(is_fine(&forwarding_comes_with_the_first_pod));
    let off = vec!["net.ipv6.conf.all.disable_ipv6"];
    assert!(is_fine(&Facts { ipv6_switched_off: off, ..healthy() }), "no range is of IPv6");
    let of_plugins = Facts { pod_network: None, network_mode: Mode::Cni, ..healthy() };
    assert!(is_fine(&of_plugins));
}

#[test]
fn versions_are_read_from_what_distributions_make_of_them() {
    for (release, expected) in [
        ("6.1.0-42-cloud-amd64", Some((6, 1))),
        ("6.18", Some((6, 18))),
        ("5.15.0-1051-aws", Some((5, 15))),
        ("linux", None),
        ("", None),
    ] {
        assert_eq!(version(release), expected, "{release}");
    }
}
