//! What a manifest may say, and how everything else is refused.

use super::{
    super::container::{Env, EnvValue, Port, Propagation, Protocol, PullPolicy},
    *,
};

/// A pod whose `spec` is the given flow mapping's content.
fn with_spec(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec: {{{spec}}}\n")
}

/// A pod whose only container has the given fields beside its name and image.
fn with_container(fields: &str) -> String {
    with_spec(&format!("containers: [{{name: c, image: i, {fields}}}]"))
}

fn problems(text: &str) -> Vec<String> {
    match parse(text, None) {
        Ok(_) => Vec::new(),
        Err(Error::Faults(faults)) => faults.iter().map(Fault::to_string).collect(),
        Err(error) => vec![error.to_string()],
    }
}

#[track_caller]
fn refuses(text: &str, expect: &str) {
    assert_eq!(problems(text), [expect], "of {text}");
}

const WHOLE: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: 1234-5678
  creationTimestamp: null
  labels: {app: web}
  annotations: {note: "x: y"}
spec:
  hostname: www
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  shareProcessNamespace: true
  dnsPolicy: None
  dnsConfig:
    nameservers: [10.0.0.1]
    searches: [example.org]
    options: [{name: ndots, value: "2"}, {name: edns0}]
  securityContext:
    runAsUser: 1000
    runAsGroup: 1000
    supplementalGroups: [7, 8]
    sysctls: [{name: net.core.somaxconn, value: "1024"}]
  volumes:
    - {name: data, emptyDir: {}}
    - {name: fast, emptyDir: {medium: Memory, sizeLimit: 64Mi}}
    - {name: etc, hostPath: {path: /etc, type: Directory}}
  initContainers:
    - {name: init, image: busybox, command: [sh, -c, "true"]}
  containers:
    - name: nginx
      image: nginx:1.25
      imagePullPolicy: Always
      args: ["-g", "daemon off;"]
      workingDir: /srv
      env:
        - {name: A, value: one}
        - {name: EMPTY}
        - {name: IP, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: status.podIP}}}
        - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
      ports:
        - {name: http, containerPort: 80, hostPort: 8080, hostIP: 127.0.0.1}
        - {containerPort: 53, protocol: UDP}
      resources:
        requests: {cpu: 250m, memory: 32Mi}
        limits: {cpu: 1, memory: 64Mi}
      volumeMounts:
        - {name: data, mountPath: /data}
        - {name: etc, mountPath: /host/etc, readOnly: true, mountPropagation: HostToContainer}
      securityContext:
        runAsUser: 101
        readOnlyRootFilesystem: true
        allowPrivilegeEscalation: false
        capabilities: {add: [NET_ADMIN], drop: [ALL]}
      tty: true
      stdin: true
status: {}
"#;

#[test]
fn a_whole_manifest_is_understood() {
    let pod = parse(WHOLE, None).unwrap();
    assert_eq!((pod.name.as_str(), pod.namespace.as_str()), ("web", "shop"));
    assert_eq!(pod.uid.as_deref(), Some("1234-5678"));
    assert_eq!(pod.labels["app"], "web");
    assert_eq!(pod.annotations["note"], "x: y");
    assert_eq!(pod.hostname.as_deref(), Some("www"));
    assert_eq!(pod.restart_policy, Some(RestartPolicy::Never));
    assert_eq!(pod.grace_s, 5);
    assert!(pod.share_process_namespace && !pod.host_network && !pod.host_pid && !pod.host_ipc);
    assert_eq!(pod.dns.options, ["ndots:2", "edns0"]);
    assert!(!pod.dns.from_node);
    assert_eq!(pod.security.supplemental_groups, [7, 8]);
    assert_eq!(pod.security.sysctls["net.core.somaxconn"], "1024");
    let fast = VolumeSource::EmptyDir { medium: Medium::Memory, size_limit_bytes: Some(64 << 20) };
    assert_eq!(pod.volumes[1].source, fast);
    let etc = VolumeSource::HostPath { path: "/etc".to_owned(), kind: HostPathKind::Directory };
    assert_eq!(pod.volumes[2].source, etc);
    assert_eq!(pod.init_containers[0].command, ["sh", "-c", "true"]);
    assert_eq!(pod.init_containers[0].pull, PullPolicy::IfAbsent);
}

#[test]
fn a_whole_container_is_understood() {
    let pod = parse(WHOLE, None).unwrap();
    let nginx = &pod.containers[0];
    assert_eq!(nginx.pull, PullPolicy::Always);
    assert_eq!(nginx.args, ["-g", "daemon off;"]);
    assert_eq!(nginx.working_dir, "/srv");
    let env = |name: &str, value| Env { name: name.to_owned(), value };
    assert_eq!(
        nginx.env,
        [
            env("A", EnvValue::Text("one".to_owned())),
            env("EMPTY", EnvValue::Text(String::new())),
            env("IP", EnvValue::PodAddress),
            env("APP", EnvValue::Label("app".to_owned())),
        ]
    );
    let port = |container, host, host_ip: &str, protocol| Port {
        container,
        host,
        host_ip: host_ip.to_owned(),
        protocol,
    };
    assert_eq!(
        nginx.ports,
        [port(80, 8080, "127.0.0.1", Protocol::Tcp), port(53, 0, "", Protocol::Udp)]
    );
    assert_eq!(nginx.resources.cpu_request_milli, Some(250));
    assert_eq!(nginx.resources.cpu_limit_milli, Some(1000));
    assert_eq!(nginx.resources.memory_limit_bytes, Some(64 << 20));
    assert_eq!(nginx.mounts[1].path, "/host/etc");
    assert!(nginx.mounts[1].read_only && !nginx.mounts[0].read_only);
    assert_eq!(nginx.mounts[1].propagation, Propagation::HostToContainer);
    assert_eq!(nginx.security.run_as_user, Some(101));
    assert!(nginx.security.read_only_root && nginx.security.no_new_privs);
    assert_eq!(nginx.security.capabilities_drop, ["ALL"]);
    assert!(nginx.tty && nginx.stdin);
}

#[test]
fn what_is_not_said_has_the_default_of_kubernetes() {
    let pod = parse(&with_container("tty: false"), None).unwrap();
    assert_eq!(pod.namespace, "default");
    assert_eq!(pod.grace_s, GRACE_DEFAULT_S);
    assert_eq!(pod.uid, None);
    assert!(pod.dns.from_node);
}

#[test]
fn a_name_on_the_command_line_takes_the_place_of_the_manifests() {
    let text = with_container("").replace("name: web", "labels: {}");
    assert_eq!(parse(&text, Some("other")).unwrap().name, "other");
    refuses(&text, "metadata.name is missing");
    let error = parse(&text, Some("No Name")).unwrap_err().to_string();
    assert!(error.starts_with("metadata.name must be lower-case letters"), "{error}");
}

#[test]
fn unsupported_fields_are_refused_by_name() {
    let refusal = |path: &str| format!("{path} is not supported by lapstrake run");
    for field in
        ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "envFrom", "volumeDevices"]
    {
        let text = with_container(&format!("{field}: {{x: 1}}"));
        refuses(&text, &refusal(&format!("spec.containers[0].{field}")));
    }
    for field in ["nodeSelector", "affinity", "serviceAccountName", "hostAliases", "hostUsers"] {
        let text = with_spec(&format!("containers: [{{name: c, image: i}}], {field}: {{x: 1}}"));
        refuses(&text, &refusal(&format!("spec.{field}")));
    }
    for (container, path) in [
        ("securityContext: {seccompProfile: {type: Unconfined}}", "securityContext.seccompProfile"),
        ("securityContext: {procMount: Default}", "securityContext.procMount"),
        ("resources: {limits: {hugepages-2Mi: 4Mi}}", "resources.limits.hugepages-2Mi"),
        ("resources: {claims: []}", "resources.claims"),
        ("env: [{name: A, valueFrom: {secretKeyRef: {}}}]", "env[0].valueFrom.secretKeyRef"),
        ("ports: [{containerPort: 1, x: 1}]", "ports[0].x"),
    ] {
        refuses(&with_container(container), &refusal(&format!("spec.containers[0].{path}")));
    }
    refuses(
        &with_container("env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]"),
        "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath spec.nodeName is not supported \
         by lapstrake run",
    );
}

#[test]
fn a_volume_of_another_kind_or_a_sub_path_is_refused_by_name() {
    let text = with_spec(
        "volumes: [{name: v, configMap: {name: x}}], containers: [{name: c, image: i, \
         volumeMounts: [{name: v, mountPath: /v, subPath: x}]}]",
    );
    assert_eq!(
        problems(&text),
        [
            "spec.containers[0].volumeMounts[0].subPath is not supported by lapstrake run",
            "spec.volumes[0] must have a hostPath or an emptyDir",
            "spec.volumes[0].configMap is not supported by lapstrake run",
        ]
    );
}

#[test]
fn mistakes_in_a_container_are_named() {
    for (fields, expect) in [
        (
            "imagePullPolicy: Sometimes",
            "imagePullPolicy must be one of Always, IfNotPresent, Never, not \"Sometimes\"",
        ),
        ("command: sh", "command must be a list, not a text"),
        ("args: [1]", "args[0] must be a text: write \"1\" in quotes"),
        ("env: [{name: A, value: true}]", "env[0].value must be a text: write \"true\" in quotes"),
        ("env: [{name: \"A=B\"}]", "env[0].name must be printable ASCII without `=`"),
        ("env: [{value: x}]", "env[0].name is missing"),
        (
            "env: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]",
            "env[0].valueFrom cannot be combined with a value",
        ),
        ("ports: [{hostPort: 1}]", "ports[0].containerPort is missing"),
        (
            "ports: [{containerPort: 0}]",
            "ports[0].containerPort must be a whole number of 1 to 65535, not 0",
        ),
        (
            "ports: [{containerPort: 1, protocol: ICMP}]",
            "ports[0].protocol must be one of TCP, UDP, SCTP, not \"ICMP\"",
        ),
        ("ports: [{containerPort: 1, hostIP: here}]", "ports[0].hostIP must be an IP address"),
        (
            "resources: {limits: {cpu: lots}}",
            "resources.limits.cpu must be a quantity such as 250m, 64Mi or 1.5, not \"lots\"",
        ),
        (
            "resources: {requests: {cpu: 2}, limits: {cpu: 1}}",
            "resources.requests.cpu must not exceed the limit",
        ),
        (
            "volumeMounts: [{name: v, mountPath: v}]",
            "volumeMounts[0].mountPath must be absolute and without `..`",
        ),
        (
            "securityContext: {privileged: true, allowPrivilegeEscalation: false}",
            "securityContext.allowPrivilegeEscalation cannot be false for a container that is \
             privileged or has CAP_SYS_ADMIN",
        ),
        (
            "securityContext: {runAsUser: -1}",
            "securityContext.runAsUser must be a whole number of 0 to 2147483647, not -1",
        ),
        ("tty: 1", "tty must be true or false, not a number"),
    ] {
        let text = with_container(fields)
            .replace("spec: {", "spec: {volumes: [{name: v, emptyDir: {}}], ");
        refuses(&text, &format!("spec.containers[0].{expect}"));
    }
}

#[test]
fn mistakes_in_a_pod_are_named() {
    let container = "containers: [{name: c, image: i}]";
    for (spec, expect) in [
        ("containers: []".to_owned(), "spec.containers must name at least one container"),
        ("hostPID: false".to_owned(), "spec.containers is missing"),
        ("containers: [{name: c}]".to_owned(), "spec.containers[0].image is missing"),
        ("containers: [7]".to_owned(), "spec.containers[0] must be a mapping, not a number"),
        (
            "containers: [{name: c, image: i}, {name: c, image: j}]".to_owned(),
            "spec has two containers with the name \"c\"",
        ),
        (
            format!("{container}, hostPID: true, shareProcessNamespace: true"),
            "spec.shareProcessNamespace cannot be combined with hostPID",
        ),
        (
            format!("{container}, dnsPolicy: None"),
            "spec.dnsConfig must name nameservers when dnsPolicy is None",
        ),
        (
            format!("{container}, dnsConfig: {{nameservers: [dns.example.org]}}"),
            "spec.dnsConfig.nameservers[0] must be an IP address",
        ),
        (
            format!("{container}, volumes: [{{name: v, hostPath: {{path: ../x}}}}]"),
            "spec.volumes[0].hostPath.path must be absolute and without `..`",
        ),
        (
            format!(
                "{container}, volumes: [{{name: v, emptyDir: {{}}}}, {{name: v, emptyDir: {{}}}}]"
            ),
            "spec has two volumes with the name \"v\"",
        ),
        (
            format!("{container}, terminationGracePeriodSeconds: -1"),
            "spec.terminationGracePeriodSeconds must be a whole number of 0 to 86400, not -1",
        ),
    ] {
        refuses(&with_spec(&spec), expect);
    }
}

#[test]
fn what_several_fields_disagree_about_is_named() {
    refuses(
        &with_container("volumeMounts: [{name: gone, mountPath: /x}]"),
        "spec.containers[0].volumeMounts[0].name names a volume that is not there: gone",
    );
    refuses(
        &with_spec(
            "volumes: [{name: v, emptyDir: {}}], containers: [{name: c, image: i, volumeMounts: \
             [{name: v, mountPath: /x, mountPropagation: Bidirectional}]}]",
        ),
        "spec.containers[0].volumeMounts[0].mountPropagation Bidirectional needs a privileged \
         container",
    );
    refuses(
        &with_spec(
            "volumes: [{name: v, emptyDir: {}}], containers: [{name: c, image: i, volumeMounts: \
             [{name: v, mountPath: /x}, {name: v, mountPath: /x/}]}]",
        ),
        "spec.containers[0].volumeMounts[1].mountPath /x is taken by another mount",
    );
    refuses(
        &with_container(
            "ports: [{containerPort: 1, hostPort: 9}, {containerPort: 2, hostPort: 9}]",
        ),
        "spec.containers[0].ports[1].hostPort 9 is taken by another container",
    );
    refuses(
        &with_spec(
            "hostNetwork: true, containers: [{name: c, image: i, ports: [{containerPort: 1, \
             hostPort: 2}]}]",
        ),
        "spec.containers[0].ports[0].hostPort must be the containerPort in a pod with hostNetwork",
    );
    refuses(
        &with_spec(
            "hostNetwork: true, containers: [{name: c, image: i, env: [{name: IP, valueFrom: \
             {fieldRef: {fieldPath: status.podIP}}}]}]",
        ),
        "spec.containers[0].env[\"IP\"] cannot come from status.podIP in a pod with hostNetwork",
    );
}

#[test]
fn names_follow_the_rules_of_kubernetes() {
    let long = "a".repeat(254);
    for name in ["Web", "a_b", "-a", "a-", "a..b", "../x", "é", long.as_str()] {
        let text = with_container("").replace("name: web", &format!("name: {name:?}"));
        assert_eq!(problems(&text).len(), 1, "{name}");
    }
    for name in ["a", "a.b-c.0", "0", &long[..253]] {
        let text = with_container("").replace("name: web", &format!("name: {name:?}"));
        assert_eq!(problems(&text), [""; 0], "{name}");
    }
    let text = with_container("").replace("name: web", "name: web, uid: ../../etc");
    assert!(problems(&text)[0].starts_with("metadata.uid must be"), "a uid becomes a directory");
}

#[test]
fn an_overlong_name_is_not_repeated_in_full() {
    let text = with_container("").replace("name: web", &format!("name: {}", "A".repeat(1 << 20)));
    assert!(problems(&text)[0].len() < 300);
}

#[test]
fn another_kind_of_object_is_refused_once() {
    for (text, expect) in [
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {replicas: 1}",
            "kind must be Pod of apiVersion v1, not Deployment of apps/v1",
        ),
        ("apiVersion: v1\nmetadata: {}", "kind is missing"),
        ("[]", "the document must be a mapping, not a list"),
        ("just text", "the document must be a mapping, not a text"),
    ] {
        refuses(text, expect);
    }
}

#[test]
fn exactly_one_document_is_taken() {
    let pod = with_container("");
    refuses("", "0 documents; lapstrake run takes exactly one Pod");
    refuses("---\n---\n", "0 documents; lapstrake run takes exactly one Pod");
    let two = format!("{pod}---\n{pod}");
    refuses(&two, "2 documents; lapstrake run takes exactly one Pod");
    let framed = format!("---\n{pod}---\n");
    assert_eq!(problems(&framed), [""; 0], "an empty document beside the pod says nothing");
}

#[test]
fn what_is_not_yaml_is_said_to_be_none() {
    for text in ["a: [", "a: b: c", "a: 1\na: 2\n", "a:\n\t- b\n"] {
        let error = parse(text, None).unwrap_err();
        assert!(matches!(error, Error::Yaml(_)), "{text:?}: {error}");
        assert!(error.to_string().lines().count() == 1, "{error}");
    }
}

#[test]
fn json_is_yaml_too() {
    let text = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}"#;
    assert_eq!(parse(text, None).unwrap().name, "p");
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = with_spec("containers: [{name: c, imgae: i}], tolerations: []");
    let error = parse(&text, None).unwrap_err().to_string();
    assert_eq!(
        error,
        "3 mistakes:\
         \n  spec.containers[0].image is missing\
         \n  spec.containers[0].imgae is not supported by lapstrake run (did you mean image?)\
         \n  spec.tolerations is not supported by lapstrake run"
    );
}
