//! The CRI messages that manifests become.

use super::{super::manifest, *};

fn facts() -> Facts {
    Facts {
        uid: "uid-1".to_owned(),
        log_directory: PathBuf::from("/logs"),
        volumes: BTreeMap::from([("data".to_owned(), PathBuf::from("/scratch/data"))]),
        resolv_conf: "# comment\nsearch old.example\nsearch node.example\nnameserver 192.0.2.1\n\
                      options ndots:1 timeout:2\n"
            .to_owned(),
    }
}

fn image() -> Image {
    Image { id: "sha256:abc".to_owned(), uid: Some(33), username: String::new() }
}

fn pod(spec: &str) -> Pod {
    let text = format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: web, labels: {{app: shop}}, annotations: {{a: b}}}}\nspec: {{{spec}}}\n"
    );
    manifest::parse(&text, None).unwrap()
}

fn pod_with(container: &str) -> Pod {
    pod(&format!(
        "volumes: [{{name: data, emptyDir: {{}}}}], containers: [{{name: c, image: i, {container}}}]"
    ))
}

/// The only container of a pod, as it is sent.
fn planned(pod: &Pod) -> cri::ContainerConfig {
    container(pod, &pod.containers[0], &facts(), &image(), "10.0.0.9")
}

fn strings<const N: usize>(pairs: [(&str, &str); N]) -> HashMap<String, String> {
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

#[test]
fn a_plain_pod_becomes_a_plain_sandbox() {
    let expect = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: "web".to_owned(),
            uid: "uid-1".to_owned(),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: "web".to_owned(),
        log_directory: "/logs".to_owned(),
        dns_config: None,
        port_mappings: vec![cri::PortMapping {
            protocol: cri::Protocol::Tcp.into(),
            container_port: 80,
            host_port: 8080,
            host_ip: "127.0.0.1".to_owned(),
        }],
        labels: strings([
            ("app", "shop"),
            ("io.kubernetes.pod.name", "web"),
            ("io.kubernetes.pod.namespace", "default"),
            ("io.kubernetes.pod.uid", "uid-1"),
        ]),
        annotations: strings([("a", "b")]),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(cri::NamespaceOption {
                    network: cri::NamespaceMode::Pod.into(),
                    pid: cri::NamespaceMode::Container.into(),
                    ipc: cri::NamespaceMode::Pod.into(),
                    ..Default::default()
                }),
                seccomp: Some(seccomp(cri::security_profile::ProfileType::RuntimeDefault)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        windows: None,
    };
    let pod = pod_with("ports: [{containerPort: 80, hostPort: 8080, hostIP: 127.0.0.1}]");
    assert_eq!(sandbox(&pod, &facts()), expect);
}

#[test]
fn a_plain_container_is_sent_as_the_kubelet_would() {
    let pod = pod_with(
        "command: [sh], args: [-c, x], workingDir: /srv, env: [{name: A, value: b}], tty: true, \
         volumeMounts: [{name: data, mountPath: /data, readOnly: true}], \
         resources: {requests: {cpu: 250m}, limits: {cpu: 500m, memory: 64Mi}}",
    );
    let expect = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "c".to_owned(), attempt: 0 }),
        image: Some(cri::ImageSpec {
            image: "sha256:abc".to_owned(),
            user_specified_image: "i".to_owned(),
            ..Default::default()
        }),
        command: vec!["sh".to_owned()],
        args: vec!["-c".to_owned(), "x".to_owned()],
        working_dir: "/srv".to_owned(),
        envs: vec![cri::KeyValue { key: "A".to_owned(), value: b"b".to_vec() }],
        mounts: vec![cri::Mount {
            container_path: "/data".to_owned(),
            host_path: "/scratch/data".to_owned(),
            readonly: true,
            ..Default::default()
        }],
        labels: strings([
            ("io.kubernetes.container.name", "c"),
            ("io.kubernetes.pod.name", "web"),
            ("io.kubernetes.pod.namespace", "default"),
            ("io.kubernetes.pod.uid", "uid-1"),
        ]),
        log_path: "c/0.log".to_owned(),
        tty: true,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources {
                cpu_shares: 256,
                cpu_period: 100_000,
                cpu_quota: 50_000,
                memory_limit_in_bytes: 64 << 20,
                ..Default::default()
            }),
            security_context: Some(cri::LinuxContainerSecurityContext {
                capabilities: Some(cri::Capability::default()),
                namespace_options: Some(cri::NamespaceOption {
                    pid: cri::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                masked_paths: MASKED_PATHS.map(str::to_owned).to_vec(),
                readonly_paths: READONLY_PATHS.map(str::to_owned).to_vec(),
                seccomp: Some(seccomp(cri::security_profile::ProfileType::Unconfined)),
                ..Default::default()
            }),
        }),
        ..Default::default()
    };
    assert_eq!(planned(&pod), expect);
}

#[test]
fn host_namespaces_are_asked_for_one_by_one() {
    use cri::NamespaceMode::{Container, Node, Pod};
    for (spec, network, pid, ipc) in [
        ("hostNetwork: true", Node, Container, Pod),
        ("hostPID: true", Pod, Node, Pod),
        ("hostIPC: true", Pod, Container, Node),
        ("shareProcessNamespace: true", Pod, Pod, Pod),
    ] {
        let options = namespaces(&pod(&format!("{spec}, containers: [{{name: c, image: i}}]")));
        assert_eq!(
            (options.network(), options.pid(), options.ipc()),
            (network, pid, ipc),
            "{spec}"
        );
    }
}

#[test]
fn a_pod_in_the_hosts_network_has_no_name_and_no_ports_of_its_own() {
    let pod = pod("hostNetwork: true, hostname: x, containers: [{name: c, image: i, ports: \
                   [{containerPort: 80}]}]");
    let config = sandbox(&pod, &facts());
    assert_eq!((config.hostname.as_str(), config.port_mappings.len()), ("", 0));
}

#[test]
fn a_long_pod_name_is_cut_to_a_host_name() {
    let name = format!("{}-{}", "a".repeat(62), "b".repeat(10));
    let mut pod = pod_with("");
    pod.name = name;
    assert_eq!(hostname(&pod), "a".repeat(62));
}

#[test]
fn variables_refer_to_those_above_and_commands_to_all() {
    let pod = pod_with(
        "env: [{name: LATE, value: $(B)}, {name: A, value: one}, {name: B, value: $(A)-two}, \
         {name: A, value: three}, \
         {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, \
         {name: APP, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}, \
         {name: NONE, valueFrom: {fieldRef: {fieldPath: \"metadata.annotations['x']\"}}}, \
         {name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}], \
         command: [echo, $(IP)], args: [$(A), $$(A), $(UNKNOWN)]",
    );
    let config = planned(&pod);
    let envs: Vec<(String, String)> = config
        .envs
        .into_iter()
        .map(|env| (env.key, String::from_utf8(env.value).unwrap()))
        .collect();
    let expect = [
        ("LATE", "$(B)"),
        ("A", "one"),
        ("B", "one-two"),
        ("A", "three"),
        ("IP", "10.0.0.9"),
        ("APP", "shop"),
        ("NONE", ""),
        ("WHO", "uid-1"),
    ];
    assert_eq!(envs, expect.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert_eq!(config.command, ["echo", "10.0.0.9"]);
    assert_eq!(config.args, ["three", "$(A)", "$(UNKNOWN)"]);
}

#[test]
fn resources_become_weights_quotas_and_limits() {
    for (text, shares, quota, memory) in [
        ("{}", 0, 0, 0),
        ("{requests: {cpu: 1m}}", SHARES_MIN, 0, 0),
        ("{requests: {cpu: 2}}", 2048, 0, 0),
        ("{limits: {cpu: 100m}}", 102, 10_000, 0),
        ("{limits: {cpu: 1m}}", SHARES_MIN, CPU_QUOTA_MIN_US, 0),
        ("{requests: {cpu: 0}, limits: {cpu: 0}}", SHARES_MIN, 0, 0),
        ("{requests: {memory: 1Gi}, limits: {memory: 1Gi}}", 0, 0, 1 << 30),
    ] {
        let pod = pod_with(&format!("resources: {text}"));
        let limits = resources(&pod.containers[0].resources);
        let found = (limits.cpu_shares, limits.cpu_quota, limits.memory_limit_in_bytes);
        assert_eq!(found, (shares, quota, memory), "{text}");
        assert_eq!(limits.cpu_period, if quota == 0 { 0 } else { CPU_PERIOD_US }, "{text}");
    }
}

#[test]
fn a_container_runs_as_its_own_user_before_the_pods() {
    let user = |pod_level: &str, own: &str, image: &Image| {
        let pod = pod(&format!(
            "securityContext: {{{pod_level}}}, containers: [{{name: c, image: i, \
             securityContext: {{{own}}}}}]"
        ));
        let context = security(&pod, &pod.containers[0], image);
        let number = |id: Option<cri::Int64Value>| id.map(|id| id.value);
        (number(context.run_as_user), context.run_as_username, number(context.run_as_group))
    };
    let by_number = image();
    let by_name = Image { uid: None, username: "www".to_owned(), ..image() };
    let none = String::new;
    assert_eq!(user("", "", &by_number), (None, none(), None));
    assert_eq!(user("runAsUser: 1", "", &by_number), (Some(1), none(), None));
    assert_eq!(user("runAsUser: 1", "runAsUser: 2", &by_number), (Some(2), none(), None));
    assert_eq!(user("runAsGroup: 5", "", &by_number), (Some(33), none(), Some(5)));
    assert_eq!(user("runAsGroup: 5", "", &by_name), (None, "www".to_owned(), Some(5)));
}

#[test]
fn a_privileged_container_sees_everything_and_makes_its_sandbox_privileged() {
    let pod = pod_with("securityContext: {privileged: true}");
    let context = security(&pod, &pod.containers[0], &image());
    assert!(context.privileged && context.masked_paths.is_empty());
    assert!(context.readonly_paths.is_empty());
    let linux = sandbox(&pod, &facts()).linux.unwrap();
    assert!(linux.security_context.unwrap().privileged);
}

#[test]
fn dns_is_the_nodes_unless_the_pod_says_more() {
    let planned = |spec: &str| {
        let pod = pod(&format!("containers: [{{name: c, image: i}}], {spec}"));
        dns(&pod, &facts().resolv_conf)
    };
    assert_eq!(planned("dnsPolicy: Default"), None);
    let more = planned(
        "dnsConfig: {nameservers: [192.0.2.2, 192.0.2.1], searches: [pod.example], \
         options: [{name: ndots, value: \"5\"}, {name: edns0}]}",
    )
    .unwrap();
    assert_eq!(more.servers, ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(more.searches, ["node.example", "pod.example"]);
    assert_eq!(more.options, ["timeout:2", "ndots:5", "edns0"]);
    let own = planned("dnsPolicy: None, dnsConfig: {nameservers: [192.0.2.2]}").unwrap();
    assert_eq!(own.servers, ["192.0.2.2"]);
    assert!(own.searches.is_empty() && own.options.is_empty());
}
