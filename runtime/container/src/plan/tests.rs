//! Specification to plan, field by field.

use super::*;

fn spec(json: &str) -> Spec {
    serde_json::from_str(json).expect("spec")
}

fn with(linux: &str, rest: &str) -> Result<Plan, Error> {
    let json = format!(
        r#"{{"process":{{"args":["/bin/true"],"cwd":"/"}},"linux":{{"namespaces":[{{"type":"mount"}}]{linux}}}{rest}}}"#
    );
    plan(&spec(&json), &Facts { id: "c1".into(), capabilities: u64::MAX, ..Default::default() })
}

fn process(json: &str) -> Result<Process, Error> {
    let p: spec::Process = serde_json::from_str(json).expect("process");
    plan_process(&p, &Facts { capabilities: u64::MAX, ..Default::default() })
}

#[test]
fn each_namespace_is_made_or_joined_as_asked() {
    let kinds = [
        ("pid", Namespace::Pid),
        ("network", Namespace::Net),
        ("ipc", Namespace::Ipc),
        ("uts", Namespace::Uts),
        ("cgroup", Namespace::Cgroup),
        ("time", Namespace::Time),
        ("user", Namespace::User),
    ];
    for (word, kind) in kinds {
        let id = r#"[{"containerID":0,"hostID":9,"size":1}]"#;
        let ids = if word == "user" {
            format!(r#","uidMappings":{id},"gidMappings":{id}"#)
        } else {
            String::new()
        };
        let made = format!(
            r#"{{"linux":{{"namespaces":[{{"type":"mount"}},{{"type":"{word}"}}]{ids}}},
            "process":{{"args":["x"],"cwd":"/"}}}}"#
        );
        let plan_made = plan(&spec(&made), &Facts::default()).expect(word);
        assert_eq!(plan_made.namespaces.new, Namespace::Mount as u64 | kind as u64, "{word}");
        let joined = made
            .replace(&format!(r#""{word}"}}"#), &format!(r#""{word}","path":"/proc/1/ns/x"}}"#));
        let plan_joined = plan(&spec(&joined), &Facts::default()).expect(word);
        assert_eq!(plan_joined.namespaces.join, [(kind, PathBuf::from("/proc/1/ns/x"))], "{word}");
    }
}

#[test]
fn mounts_are_shared_where_no_namespace_says_otherwise_but_not_from_a_user_namespace() {
    let bare = spec(r#"{"process":{"args":["x"],"cwd":"/"}}"#);
    let plan_bare = plan(&bare, &Facts::default()).expect("shares the caller's mounts");
    assert_eq!(plan_bare.namespaces, Namespaces::default());
    let id = r#"[{"containerID":0,"hostID":9,"size":1}]"#;
    let users = spec(&format!(
        r#"{{"process":{{"args":["x"],"cwd":"/"}},"linux":{{"namespaces":[{{"type":"user"}}],
        "uidMappings":{id},"gidMappings":{id}}}}}"#
    ));
    let error = plan(&users, &Facts::default()).expect_err("it may not mount there");
    assert_eq!(error.stage, "linux.namespaces");
}

#[test]
fn mounts_named_by_the_path_of_the_root_are_the_containers_own() {
    let json = r#","mounts":[
        {"destination":"/b/r/x","source":"/b/r/y","options":["bind"]},
        {"destination":"/x","source":"r/y","options":["bind"]},
        {"destination":"/x","source":"/b/r/../y","options":["bind"]},
        {"destination":"/x","source":"/b/rest","options":["bind"]},
        {"destination":"/b/r","type":"tmpfs"}]"#;
    let plan = with("", json).expect("plan").at(Path::new("/b"), Path::new("/b/r"));
    let got: Vec<_> = plan.mounts.into_iter().map(|m| (m.destination, m.from)).collect();
    let want = [
        ("/x", From::Inside("/y".into())),
        ("/x", From::Inside("/y".into())),
        ("/x", From::Bind("/b/r/../y".into())),
        ("/x", From::Bind("/b/rest".into())),
        ("/", From::New { kind: "tmpfs".into(), source: String::new() }),
    ];
    assert_eq!(got, want.map(|(to, from)| (PathBuf::from(to), from)));
}

#[test]
fn fields_that_are_not_served_are_refused_by_name() {
    let linux = [
        (r#","seccomp":{"defaultAction":"SCMP_ACT_ALLOW"}"#, "linux.seccomp"),
        (r#","netDevices":{"eth1":{}}"#, "linux.netDevices"), // without a network namespace
        (r#","mountLabel":"x""#, "linux.mountLabel"),
    ];
    for (json, field) in linux {
        assert_eq!(with(json, "").expect_err(field).stage, field);
    }
    let json = r#"{"args":["x"],"cwd":"/","selinuxLabel":"x"}"#;
    assert_eq!(process(json).expect_err("SELinux").stage, "process.selinuxLabel");
}

#[test]
fn an_unknown_property_is_ignored_as_the_specification_wants() {
    assert!(with(r#","aFieldOfTheFuture":1"#, r#","another":{}"#).is_ok());
}

#[test]
fn null_reads_as_absent() {
    assert!(
        with(
            r#","devices":null,"maskedPaths":null,"resources":null"#,
            r#","mounts":null,"hooks":null"#
        )
        .is_ok()
    );
}

#[test]
fn a_sysctl_outside_the_containers_namespaces_is_refused() {
    let ipc = r#"{"linux":{"namespaces":[{"type":"mount"},{"type":"ipc"}],"sysctl":{"KEY":"1"}},
        "process":{"args":["x"],"cwd":"/"}}"#;
    let cases = [
        ("kernel.shmmax", true),
        ("kernel/shmmax", true),
        ("fs.mqueue.msg_max", true),
        ("net.ipv4.ip_forward", false),
        ("kernel.panic", false),
        ("kernel..shmmax", false),
        ("net/../../kernel/panic", false),
    ];
    for (key, accepted) in cases {
        let got = plan(&spec(&ipc.replace("KEY", key)), &Facts::default());
        assert_eq!(got.is_ok(), accepted, "{key}: {got:?}");
    }
}

#[test]
fn a_sysctl_of_an_interface_with_a_dot_keeps_it() {
    let linux = spec::Linux {
        sysctl: Some([("net.ipv4.conf.eth0/1.forwarding".to_owned(), "1".to_owned())].into()),
        ..Default::default()
    };
    let got = sysctls::sysctls(&linux, &|_| true).expect("valid");
    assert_eq!(got[0].0, PathBuf::from("net/ipv4/conf/eth0.1/forwarding"));
}

#[test]
fn a_bind_of_dev_keeps_its_own_nodes() {
    let with_bind =
        with("", r#","mounts":[{"destination":"/dev","source":"/dev","options":["rbind"]}]"#);
    assert!(!with_bind.expect("plan").make_dev);
    assert!(with("", "").expect("plan").make_dev);
}

#[test]
fn mounts_are_told_apart_by_type_and_options() {
    let json = r#","mounts":[
        {"destination":"/a","type":"bind","source":"/s"},
        {"destination":"/b","type":"none","source":"/s","options":["rbind"]},
        {"destination":"/c","type":"tmpfs","source":"tmpfs"},
        {"destination":"/d","type":"cgroup","source":"cgroup"}]"#;
    let got: Vec<_> = with("", json).expect("plan").mounts.into_iter().map(|m| m.from).collect();
    let want = [
        From::Bind("/s".into()),
        From::Bind("/s".into()),
        From::New { kind: "tmpfs".into(), source: "tmpfs".into() },
        From::Cgroup,
    ];
    assert_eq!(got, want);
}

#[test]
fn a_relative_destination_is_relative_to_the_root() {
    let plan = with("", r#","mounts":[{"destination":"a/b","type":"tmpfs"}]"#).expect("plan");
    assert_eq!(plan.mounts[0].destination, Path::new("/a/b"));
}

#[test]
fn of_a_variable_that_is_set_twice_the_later_counts_and_an_empty_home_is_none() {
    let p = process(r#"{"args":["x"],"cwd":"/","env":["A=1","HOME=","B=2","A=3"]}"#);
    let env: Vec<_> = p.expect("process").env.iter().map(|e| e.to_owned()).collect();
    assert_eq!(env, [c"B=2".to_owned(), c"A=3".to_owned()]);
}

#[test]
fn a_path_that_is_masked_twice_is_masked_once() {
    let plan = with(r#","maskedPaths":["/proc/kcore","/proc/keys","/proc/kcore"]"#, "");
    assert_eq!(plan.expect("plan").masked, [Path::new("/proc/kcore"), Path::new("/proc/keys")]);
}

#[test]
fn a_mount_without_type_or_destination_is_refused() {
    for bad in [
        r#"{"destination":"/a"}"#,
        r#"{"destination":"","type":"tmpfs"}"#,
        r#"{"destination":"/a","type":"bind"}"#,
    ] {
        assert!(with("", &format!(r#","mounts":[{bad}]"#)).is_err(), "{bad}");
    }
}

#[test]
fn rlimits_have_the_kernels_numbers() {
    let p = process(
        r#"{"args":["x"],"cwd":"/","rlimits":[{"type":"RLIMIT_NOFILE","soft":1,"hard":2},
        {"type":"RLIMIT_RTTIME","soft":3,"hard":4}]}"#,
    )
    .expect("process");
    assert_eq!(p.rlimits[0], Rlimit { resource: 7, soft: 1, hard: 2 });
    assert_eq!(p.rlimits[1].resource, 15);
}

#[test]
fn a_soft_limit_above_the_hard_one_is_refused() {
    assert!(
        process(r#"{"args":["x"],"cwd":"/","rlimits":[{"type":"RLIMIT_CORE","soft":2,"hard":1}]}"#)
            .is_err()
    );
}

#[test]
fn a_process_needs_a_command_and_an_absolute_directory() {
    for bad in [
        r#"{"cwd":"/"}"#,
        r#"{"args":[],"cwd":"/"}"#,
        r#"{"args":[""],"cwd":"/"}"#,
        r#"{"args":["x"],"cwd":"a"}"#,
    ] {
        assert!(process(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_zero_byte_in_the_environment_is_refused() {
    assert_eq!(
        process(r#"{"args":["x"],"cwd":"/","env":["A=\u0000"]}"#).expect_err("NUL").stage,
        "process.env"
    );
}

#[test]
fn the_cgroup_is_the_named_one_or_the_id() {
    assert_eq!(with("", "").expect("plan").cgroup, "/c1");
    assert_eq!(with(r#","cgroupsPath":"/a/b""#, "").expect("plan").cgroup, "/a/b");
    let unit = with(r#","cgroupsPath":"a-b.slice:p:c""#, "").expect("plan").cgroup;
    assert_eq!(unit, "/a.slice/a-b.slice/p-c.scope");
    assert!(with(r#","cgroupsPath":"a:p:c""#, "").is_err());
}

#[test]
fn a_hostname_needs_a_uts_namespace() {
    assert!(with("", r#","hostname":"h""#).is_err());
}

#[test]
fn a_class_has_a_name_and_lines_that_are_what_they_should_be() {
    let rdt =
        |json: &str| with(&format!(r#","intelRdt":{json}"#), "").map(|plan| plan.rdt.expect("rdt"));
    let own = rdt(r#"{"enableMonitoring":true}"#).expect("of the container alone");
    assert_eq!((&*own.class, own.own, own.monitor.as_deref()), ("c1", true, Some("c1")));
    let root = rdt(r#"{"closID":"/"}"#).expect("the root's");
    assert_eq!((&*root.class, root.own), ("", false));
    let both = r#"{"closID":"fast","l3CacheSchema":"L3:0=f\nMB:0=1","memBwSchema":"MB:0=50","schemata":["L2:0=1"]}"#;
    assert_eq!(rdt(both).expect("both").schemata, ["L3:0=f", "MB:0=50", "L2:0=1"]);
    for (json, field) in [
        (r#"{"closID":"../x"}"#, "closID"),
        (r#"{"closID":"info"}"#, "closID"),
        (r#"{"memBwSchema":"L3:0=f"}"#, "memBwSchema"),
        (r#"{"schemata":["MB:0=1\nL3:0=f"]}"#, "schemata"),
    ] {
        assert_eq!(rdt(json).expect_err(json).stage, format!("linux.intelRdt.{field}"));
    }
}
