//! No field of the runtime specification is ignored in silence: the fields are walked as the published types of the
//! specification list them, and each is in a table here with what it changes, or by which name it is refused.

use std::cell::RefCell;
use std::collections::BTreeMap;

use container::{Facts, Plan, Spec};
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Value, json};

/// What becomes of a field.
enum Fate {
    /// The plan or the limits are others with it.
    Counts(Value),
    /// An error names it.
    Refused(Value, &'static str),
    /// It says nothing to a runtime on Linux, or nothing that could be done differently.
    Idle(&'static str),
}

use Fate::{Counts, Idle, Refused};

fn linux(value: Value) -> Value {
    json!({ "linux": value })
}

fn process(value: Value) -> Value {
    json!({ "process": value })
}

fn resources(value: Value) -> Value {
    linux(json!({ "resources": value }))
}

fn mount(value: Value) -> Value {
    let mut base = json!({ "destination": "/d", "type": "tmpfs", "source": "s" });
    merge(&mut base, &value);
    json!({ "mounts": [base] })
}

fn ids() -> Value {
    json!([{ "containerID": 0, "hostID": 7, "size": 9 }])
}

/// A user namespace whose ids differ from the base's in one number.
fn users(key: &str, line: Value) -> Value {
    let mut value = json!({ "namespaces": [{ "type": "mount" }, { "type": "user" }],
        "uidMappings": ids(), "gidMappings": ids() });
    value[key] = json!([line]);
    linux(value)
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn table() -> Vec<(&'static str, Fate)> {
    let foreign = "another platform's";
    let hook = json!([{ "path": "/h", "args": ["h"], "env": ["A=b"], "timeout": 1 }]);
    let hooks = |name: &str| Counts(json!({ "hooks": { name: hook.clone() } }));
    let mut all = vec![
        ("ociVersion", Counts(json!({ "ociVersion": "1.1.0" }))),
        ("root.path", Idle("the caller opens it: `Rootfs`")),
        ("root.readonly", Counts(json!({ "root": { "readonly": true } }))),
        ("hostname", Counts(json!({ "hostname": "h" }))),
        ("domainname", Counts(json!({ "domainname": "d" }))),
        ("annotations.*", Counts(json!({ "annotations": { "a": "b" } }))),
        ("mounts.destination", Counts(mount(json!({ "destination": "/e" })))),
        ("mounts.type", Counts(mount(json!({ "type": "ramfs" })))),
        ("mounts.source", Counts(mount(json!({ "source": "t" })))),
        ("mounts.options", Counts(mount(json!({ "options": ["ro"] })))),
        ("process.terminal", Counts(process(json!({ "terminal": true })))),
        (
            "process.consoleSize.height",
            Counts(process(json!({ "consoleSize": { "height": 1, "width": 2 } }))),
        ),
        (
            "process.consoleSize.width",
            Counts(process(json!({ "consoleSize": { "height": 2, "width": 1 } }))),
        ),
        ("process.user.uid", Counts(process(json!({ "user": { "uid": 1 } })))),
        ("process.user.gid", Counts(process(json!({ "user": { "gid": 1 } })))),
        ("process.user.umask", Counts(process(json!({ "user": { "umask": 1 } })))),
        (
            "process.user.additionalGids",
            Counts(process(json!({ "user": { "additionalGids": [1] } }))),
        ),
        ("process.user.username", Idle(foreign)),
        ("process.args", Counts(process(json!({ "args": ["y"] })))),
        ("process.commandLine", Idle(foreign)),
        ("process.env", Counts(process(json!({ "env": ["A=b"] })))),
        ("process.cwd", Counts(process(json!({ "cwd": "/c" })))),
        (
            "process.rlimits.type",
            Counts(process(json!({ "rlimits": [{ "type": "RLIMIT_CPU", "soft": 1, "hard": 2 }] }))),
        ),
        (
            "process.rlimits.hard",
            Counts(process(json!({ "rlimits": [{ "type": "RLIMIT_AS", "soft": 1, "hard": 3 }] }))),
        ),
        (
            "process.rlimits.soft",
            Counts(process(json!({ "rlimits": [{ "type": "RLIMIT_AS", "soft": 2, "hard": 2 }] }))),
        ),
        ("process.noNewPrivileges", Counts(process(json!({ "noNewPrivileges": true })))),
        ("process.apparmorProfile", Counts(process(json!({ "apparmorProfile": "p" })))),
        ("process.oomScoreAdj", Counts(process(json!({ "oomScoreAdj": 1 })))),
        ("process.selinuxLabel", Counts(process(json!({ "selinuxLabel": "u:r:t:s0" })))),
        (
            "process.ioPriority.class",
            Counts(process(
                json!({ "ioPriority": { "class": "IOPRIO_CLASS_IDLE", "priority": 0 } }),
            )),
        ),
        (
            "process.ioPriority.priority",
            Counts(process(json!({ "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 1 } }))),
        ),
        (
            "process.execCPUAffinity.initial",
            Counts(process(json!({ "execCPUAffinity": { "initial": "0" } }))),
        ),
        (
            "process.execCPUAffinity.final",
            Counts(process(json!({ "execCPUAffinity": { "final": "0" } }))),
        ),
        ("hooks.prestart", hooks("prestart")),
        ("hooks.createRuntime", hooks("createRuntime")),
        ("hooks.createContainer", hooks("createContainer")),
        ("hooks.startContainer", hooks("startContainer")),
        ("hooks.poststart", hooks("poststart")),
        ("hooks.poststop", hooks("poststop")),
        (
            "linux.namespaces.type",
            Counts(linux(json!({ "namespaces": [{ "type": "mount" }, { "type": "pid" }] }))),
        ),
        (
            "linux.namespaces.path",
            Counts(linux(
                json!({ "namespaces": [{ "type": "mount" }, { "type": "pid", "path": "/p" }] }),
            )),
        ),
        (
            "linux.uidMappings",
            Counts(users("uidMappings", json!({ "containerID": 0, "hostID": 8, "size": 9 }))),
        ),
        (
            "linux.gidMappings",
            Counts(users("gidMappings", json!({ "containerID": 0, "hostID": 8, "size": 9 }))),
        ),
        (
            "linux.devices",
            Counts(linux(
                json!({ "devices": [{ "type": "b", "path": "/v", "major": 1, "minor": 2, "fileMode": 3, "uid": 4, "gid": 5 }] }),
            )),
        ),
        ("linux.cgroupsPath", Counts(linux(json!({ "cgroupsPath": "/p" })))),
        ("linux.rootfsPropagation", Counts(linux(json!({ "rootfsPropagation": "rshared" })))),
        ("linux.maskedPaths", Counts(linux(json!({ "maskedPaths": ["/m"] })))),
        ("linux.readonlyPaths", Counts(linux(json!({ "readonlyPaths": ["/r"] })))),
        (
            "linux.sysctl.*",
            Counts(linux(
                json!({ "namespaces": [{ "type": "mount" }, { "type": "ipc" }, { "type": "uts" }], "sysctl": { "kernel.shmmax": "1" } }),
            )),
        ),
        (
            "linux.seccomp",
            Refused(
                linux(json!({ "seccomp": { "defaultAction": "SCMP_ACT_ALLOW" } })),
                "linux.seccomp",
            ),
        ),
        ("linux.mountLabel", Counts(linux(json!({ "mountLabel": "u:r:t:s0" })))),
        (
            "linux.timeOffsets.*.secs",
            Counts(linux(
                json!({ "namespaces": [{ "type": "mount" }, { "type": "time" }], "timeOffsets": { "boottime": { "secs": 1 } } }),
            )),
        ),
        (
            "linux.timeOffsets.*.nanosecs",
            Counts(linux(
                json!({ "namespaces": [{ "type": "mount" }, { "type": "time" }], "timeOffsets": { "boottime": { "nanosecs": 1 } } }),
            )),
        ),
        ("linux.intelRdt.closID", Counts(linux(json!({ "intelRdt": { "closID": "a" } })))),
        (
            "linux.intelRdt.schemata",
            Counts(linux(json!({ "intelRdt": { "schemata": ["L3:0=1"] } }))),
        ),
        (
            "linux.intelRdt.l3CacheSchema",
            Counts(linux(json!({ "intelRdt": { "l3CacheSchema": "L3:0=1" } }))),
        ),
        (
            "linux.intelRdt.memBwSchema",
            Counts(linux(json!({ "intelRdt": { "memBwSchema": "MB:0=1" } }))),
        ),
        ("linux.intelRdt.enableCmt", Counts(linux(json!({ "intelRdt": { "enableCMT": true } })))),
        ("linux.intelRdt.enableMbm", Counts(linux(json!({ "intelRdt": { "enableMBM": true } })))),
        (
            "linux.intelRdt.enableMonitoring",
            Counts(linux(json!({ "intelRdt": { "enableMonitoring": true } }))),
        ),
        (
            "linux.memoryPolicy.mode",
            Counts(linux(json!({ "memoryPolicy": { "mode": "MPOL_LOCAL" } }))),
        ),
        (
            "linux.memoryPolicy.nodes",
            Counts(linux(json!({ "memoryPolicy": { "mode": "MPOL_BIND", "nodes": "1" } }))),
        ),
        (
            "linux.memoryPolicy.flags",
            Counts(linux(
                json!({ "memoryPolicy": { "mode": "MPOL_BIND", "nodes": "1", "flags": ["MPOL_F_STATIC_NODES"] } }),
            )),
        ),
        (
            "linux.netDevices.*.name",
            Counts(linux(json!({
                "namespaces": [{ "type": "mount" }, { "type": "uts" }, { "type": "network" }],
                "netDevices": { "eth1": { "name": "e" } },
            }))),
        ),
        (
            "linux.personality.domain",
            Counts(linux(json!({ "personality": { "domain": "LINUX32" } }))),
        ),
        (
            "linux.personality.flags",
            Refused(
                linux(json!({ "personality": { "domain": "LINUX", "flags": ["f"] } })),
                "linux.personality.flags",
            ),
        ),
        (
            "linux.resources.devices",
            Counts(resources(
                json!({ "devices": [{ "allow": true, "type": "c", "major": 1, "minor": 2, "access": "r" }] }),
            )),
        ),
        ("linux.resources.memory.limit", Counts(resources(json!({ "memory": { "limit": 1 } })))),
        (
            "linux.resources.memory.reservation",
            Counts(resources(json!({ "memory": { "reservation": 1 } }))),
        ),
        (
            "linux.resources.memory.swap",
            Counts(resources(json!({ "memory": { "limit": 1, "swap": 2 } }))),
        ),
        (
            "linux.resources.memory.kernel",
            Refused(
                resources(json!({ "memory": { "kernel": 1 } })),
                "linux.resources.memory.kernel",
            ),
        ),
        (
            "linux.resources.memory.kernelTCP",
            Counts(resources(json!({ "memory": { "kernelTCP": 1 } }))),
        ),
        (
            "linux.resources.memory.swappiness",
            Counts(resources(json!({ "memory": { "swappiness": 1 } }))),
        ),
        (
            "linux.resources.memory.disableOOMKiller",
            Counts(resources(json!({ "memory": { "disableOOMKiller": true } }))),
        ),
        (
            "linux.resources.memory.useHierarchy",
            Refused(
                resources(json!({ "memory": { "useHierarchy": false } })),
                "linux.resources.memory.useHierarchy",
            ),
        ),
        (
            "linux.resources.memory.checkBeforeUpdate",
            Idle("a new group uses nothing; `update` looks"),
        ),
        ("linux.resources.cpu.shares", Counts(resources(json!({ "cpu": { "shares": 2 } })))),
        ("linux.resources.cpu.quota", Counts(resources(json!({ "cpu": { "quota": 1 } })))),
        ("linux.resources.cpu.burst", Counts(resources(json!({ "cpu": { "burst": 1 } })))),
        ("linux.resources.cpu.period", Counts(resources(json!({ "cpu": { "period": 1 } })))),
        (
            "linux.resources.cpu.realtimeRuntime",
            Counts(resources(json!({ "cpu": { "realtimeRuntime": 1 } }))),
        ),
        (
            "linux.resources.cpu.realtimePeriod",
            Counts(resources(json!({ "cpu": { "realtimePeriod": 1 } }))),
        ),
        ("linux.resources.cpu.cpus", Counts(resources(json!({ "cpu": { "cpus": "0" } })))),
        ("linux.resources.cpu.mems", Counts(resources(json!({ "cpu": { "mems": "0" } })))),
        ("linux.resources.cpu.idle", Counts(resources(json!({ "cpu": { "idle": 1 } })))),
        ("linux.resources.pids.limit", Counts(resources(json!({ "pids": { "limit": 1 } })))),
        (
            "linux.resources.blockIO.weight",
            Counts(resources(json!({ "blockIO": { "weight": 10 } }))),
        ),
        (
            "linux.resources.blockIO.leafWeight",
            Refused(
                resources(json!({ "blockIO": { "leafWeight": 10 } })),
                "linux.resources.blockIO.leafWeight",
            ),
        ),
        (
            "linux.resources.blockIO.weightDevice",
            Counts(resources(
                json!({ "blockIO": { "weightDevice": [{ "major": 1, "minor": 2, "weight": 10 }] } }),
            )),
        ),
        (
            "linux.resources.hugepageLimits.pageSize",
            Counts(resources(json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }] }))),
        ),
        (
            "linux.resources.hugepageLimits.limit",
            Counts(resources(json!({ "hugepageLimits": [{ "pageSize": "1GB", "limit": 1 }] }))),
        ),
        (
            "linux.resources.network.classID",
            Counts(resources(json!({ "network": { "classID": 1 } }))),
        ),
        (
            "linux.resources.network.priorities",
            Counts(resources(
                json!({ "network": { "priorities": [{ "name": "e", "priority": 1 }] } }),
            )),
        ),
        (
            "linux.resources.rdma.*.hcaHandles",
            Counts(resources(json!({ "rdma": { "m": { "hcaHandles": 1 } } }))),
        ),
        (
            "linux.resources.rdma.*.hcaObjects",
            Counts(resources(json!({ "rdma": { "m": { "hcaObjects": 1 } } }))),
        ),
        (
            "linux.resources.unified.*",
            Counts(resources(json!({ "unified": { "memory.high": "1" } }))),
        ),
    ];
    for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
        let mut sets = json!({ "permitted": ["CAP_KILL"], "inheritable": ["CAP_KILL"] });
        if let Some(list) = sets.get_mut(set).and_then(Value::as_array_mut) {
            list.push("CAP_CHOWN".into());
        } else {
            sets[set] = json!(["CAP_KILL"]);
        }
        let path: &'static str = format!("process.capabilities.{set}").leak();
        all.push((path, Counts(process(json!({ "capabilities": sets })))));
    }
    for (key, sample) in [
        ("policy", json!({ "policy": "SCHED_BATCH" })),
        ("nice", json!({ "policy": "SCHED_OTHER", "nice": 1 })),
        ("priority", json!({ "policy": "SCHED_FIFO", "priority": 1 })),
        ("flags", json!({ "policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_RESET_ON_FORK"] })),
        ("runtime", json!({ "policy": "SCHED_DEADLINE", "runtime": 1 })),
        ("deadline", json!({ "policy": "SCHED_DEADLINE", "deadline": 1 })),
        ("period", json!({ "policy": "SCHED_DEADLINE", "period": 1 })),
    ] {
        let path: &'static str = format!("process.scheduler.{key}").leak();
        all.push((path, Counts(process(json!({ "scheduler": sample })))));
    }
    for key in [
        "throttleReadBpsDevice",
        "throttleWriteBpsDevice",
        "throttleReadIOPSDevice",
        "throttleWriteIOPSDevice",
    ] {
        let path: &'static str = format!("linux.resources.blockIO.{key}").leak();
        let device = json!([{ "major": 1, "minor": 2, "rate": 3 }]);
        all.push((path, Counts(resources(json!({ "blockIO": { key: device } })))));
    }
    for key in ["uidMappings", "gidMappings"] {
        let mut value = json!({ "type": "bind", "uidMappings": ids(), "gidMappings": ids() });
        value[key][0]["hostID"] = 8.into();
        let path: &'static str = format!("mounts.{key}").leak();
        all.push((path, Counts(mount(value))));
    }
    for platform in ["solaris", "windows", "vm", "zos"] {
        all.push((platform, Idle(foreign)));
    }
    // The published types put them at the top as well; the specification does not.
    all.push(("uidMappings", Idle("belongs to linux")));
    all.push(("gidMappings", Idle("belongs to linux")));
    all
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// What is decided: the plan, and the limits on both versions of control groups.
fn decide(change: &Value) -> Result<(Plan, String), String> {
    let mut json = json!({
        "ociVersion": "1.3.0",
        "process": { "args": ["x"], "cwd": "/", "rlimits": [{ "type": "RLIMIT_AS", "soft": 1, "hard": 2 }],
            "capabilities": { "permitted": ["CAP_KILL"], "inheritable": ["CAP_KILL"] },
            "consoleSize": { "height": 2, "width": 2 } },
        "mounts": [{ "destination": "/d", "type": "tmpfs", "source": "s" }],
        "linux": { "namespaces": [{ "type": "mount" }, { "type": "uts" }] },
    });
    merge(&mut json, change);
    let spec: Spec = serde_json::from_value(json).map_err(|e| e.to_string())?;
    let facts = Facts {
        id: "c".into(),
        capabilities: u64::MAX,
        selinux: true,
        later_hooks: true,
        ..Default::default()
    };
    let plan = container::plan(&spec, &facts).map_err(|e| e.to_string())?;
    let v1 = cgroup::hierarchy::Hierarchy { controllers: vec!["cpu".into()], mount: "/v1".into() };
    let nodes = [
        cgroup::Hierarchies { v1: vec![v1], unified: None },
        cgroup::Hierarchies { v1: vec![], unified: Some("/v2".into()) },
    ];
    let limits =
        nodes.map(|n| cgroup::limits::settings(&plan.resources, &n).map_err(|e| e.to_string()));
    if let [Err(one), Err(other)] = &limits {
        return Err(format!("{one} {other}"));
    }
    let rules = plan.resources.devices.clone();
    Ok((plan, format!("{limits:?} {rules:?}")))
}

#[test]
fn every_field_of_the_specification_counts_or_is_refused_by_name() {
    let (base, base_limits) = decide(&json!({})).expect("the base is valid");
    let table = table();
    for (path, fate) in &table {
        match fate {
            Counts(change) => {
                let (mut plan, limits) = decide(change).unwrap_or_else(|e| panic!("{path}: {e}"));
                // What is only carried along does not count; the limits made of it do.
                plan.resources = base.resources.clone();
                assert!(plan != base || limits != base_limits, "{path} makes no difference");
            }
            Refused(change, name) => {
                let error = decide(change).expect_err(path);
                assert!(error.contains(name), "{path}: {error}");
            }
            Idle(why) => assert!(!why.is_empty()),
        }
    }
    let known: BTreeMap<&str, ()> = table.iter().map(|(path, _)| (*path, ())).collect();
    let covered = |path: &str| {
        let mut prefix = path;
        loop {
            if known.contains_key(prefix) {
                return true;
            }
            match prefix.rsplit_once('.') {
                Some((shorter, _)) => prefix = shorter,
                None => return false,
            }
        }
    };
    let fields = fields();
    assert!(fields.len() > 100, "the walk has seen the specification: {}", fields.len());
    let missing: Vec<&String> = fields.iter().filter(|f| !covered(f)).collect();
    assert!(missing.is_empty(), "fields without a line in the table: {missing:?}");
}

/// Every field of the published types, by a deserialiser that is asked for them and gives each something.
fn fields() -> Vec<String> {
    let seen = RefCell::new(Vec::new());
    let walk = Walk { path: String::new(), seen: &seen };
    let result = <oci_spec::runtime::Spec as de::Deserialize>::deserialize(walk);
    result.unwrap_or_else(|e| panic!("the walk stopped: {e}; seen {:?}", seen.borrow().last()));
    let mut fields = seen.into_inner();
    fields.sort();
    // An object is its fields: what follows a path that it begins has more of them.
    let inner = |n: usize| {
        let next = fields.get(n + 1).and_then(|next: &String| next.strip_prefix(&fields[n]));
        next.is_some_and(|rest| rest.starts_with('.'))
    };
    let leaves = (0..fields.len()).filter(|n| !inner(*n));
    leaves.map(|n| fields[n].clone()).collect()
}

#[derive(Clone)]
struct Walk<'a> {
    path: String,
    seen: &'a RefCell<Vec<String>>,
}

type Failure = de::value::Error;

impl Walk<'_> {
    fn at(&self, key: &str) -> Self {
        let path =
            if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        self.seen.borrow_mut().push(path.clone());
        Self { path, seen: self.seen }
    }

    /// Some fields are read as words of their own.
    fn word(&self) -> &'static str {
        match self.path.as_str() {
            p if p.contains("capabilities") => "CAP_KILL",
            p if p.ends_with("ociVersion") => "1.0.0",
            _ => "1",
        }
    }
}

impl<'de> Deserializer<'de> for Walk<'_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_str(self.word())
    }

    fn deserialize_bool<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_bool(true)
    }

    fn deserialize_option<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        v: V,
    ) -> Result<V::Value, Failure> {
        v.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_seq(One(Some(self)))
    }

    fn deserialize_map<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_map(Entries { walk: self, keys: ["*"].iter(), now: "" })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        v: V,
    ) -> Result<V::Value, Failure> {
        v.visit_map(Entries { walk: self, keys: fields.iter(), now: "" })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        v: V,
    ) -> Result<V::Value, Failure> {
        let first: StrDeserializer<'_, Failure> = variants[0].into_deserializer();
        v.visit_enum(first)
    }

    serde::forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }

    fn deserialize_i8<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_i8(1)
    }
    fn deserialize_i16<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_i16(1)
    }
    fn deserialize_i32<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_i32(1)
    }
    fn deserialize_i64<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_i64(1)
    }
    fn deserialize_u8<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_u8(1)
    }
    fn deserialize_u16<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_u16(1)
    }
    fn deserialize_u32<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_u32(1)
    }
    fn deserialize_u64<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_u64(1)
    }
    fn deserialize_f32<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_f32(1.0)
    }
    fn deserialize_f64<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Failure> {
        v.visit_f64(1.0)
    }
}

struct One<'a>(Option<Walk<'a>>);

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Failure> {
        self.0.take().map(|walk| seed.deserialize(walk)).transpose()
    }
}

struct Entries<'a, 'k> {
    walk: Walk<'a>,
    keys: std::slice::Iter<'k, &'static str>,
    now: &'static str,
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Failure> {
        let Some(key) = self.keys.next() else { return Ok(None) };
        self.now = key;
        let key: StrDeserializer<'_, Failure> = (*key).into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Failure> {
        seed.deserialize(self.walk.at(self.now))
    }
}
