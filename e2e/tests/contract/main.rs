//! The wire contract, held against an independent copy: what the published crate `k8s-cri` knows
//! must be the same bytes, and what is newer than it must be exactly what is written down here.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::LazyLock;

use prost::Message;
use prost_types::FieldDescriptorProto;
use prost_types::field_descriptor_proto::{Label, Type};

use wire::Contract;

mod wire;

const PACKAGE: &str = ".runtime.v1.";

/// Where the two agree on the wire and differ in the type: any UTF-8 string is also valid bytes.
const WIDENED: [(&str, &str); 1] = [("KeyValue", "value")];

/// Calls `$check::<ours, theirs>(name)` for every message both know.
macro_rules! for_every_shared_message {
    ($check:ident: $($name:ident)*) => {
        [$({
            $check::<proto::cri::v1::$name, k8s_cri::v1::$name>(stringify!($name));
            stringify!($name)
        }),*]
    };
}

#[test]
fn every_message_that_both_know_is_the_same_bytes() {
    let checked = for_every_shared_message! { check_bytes:
        AttachRequest AttachResponse AuthConfig CdiDevice Capability CheckpointContainerRequest
        CheckpointContainerResponse Container ContainerAttributes ContainerConfig
        ContainerEventResponse ContainerFilter ContainerMetadata ContainerMetrics
        ContainerResources ContainerStateValue ContainerStats ContainerStatsFilter
        ContainerStatsRequest ContainerStatsResponse ContainerStatus ContainerStatusRequest
        ContainerStatusResponse ContainerUser CpuUsage CreateContainerRequest
        CreateContainerResponse DnsConfig Device ExecRequest ExecResponse ExecSyncRequest
        ExecSyncResponse FilesystemIdentifier FilesystemUsage GetEventsRequest HugepageLimit
        IdMapping Image ImageFilter ImageFsInfoRequest ImageFsInfoResponse ImageSpec
        ImageStatusRequest ImageStatusResponse Int64Value KeyValue LinuxContainerConfig
        LinuxContainerResources LinuxContainerSecurityContext LinuxContainerUser
        LinuxPodSandboxConfig LinuxPodSandboxStats LinuxPodSandboxStatus LinuxRuntimeConfiguration
        LinuxSandboxSecurityContext ListContainerStatsRequest ListContainerStatsResponse
        ListContainersRequest ListContainersResponse ListImagesRequest ListImagesResponse
        ListMetricDescriptorsRequest ListMetricDescriptorsResponse ListPodSandboxMetricsRequest
        ListPodSandboxMetricsResponse ListPodSandboxRequest ListPodSandboxResponse
        ListPodSandboxStatsRequest ListPodSandboxStatsResponse MemoryUsage Metric MetricDescriptor
        Mount Namespace NamespaceOption NetworkConfig NetworkInterfaceUsage NetworkUsage PodIp
        PodSandbox PodSandboxAttributes PodSandboxConfig PodSandboxFilter PodSandboxMetadata
        PodSandboxMetrics PodSandboxNetworkStatus PodSandboxStateValue PodSandboxStats
        PodSandboxStatsFilter PodSandboxStatsRequest PodSandboxStatsResponse PodSandboxStatus
        PodSandboxStatusRequest PodSandboxStatusResponse PortForwardRequest PortForwardResponse
        PortMapping ProcessUsage PullImageRequest PullImageResponse RemoveContainerRequest
        RemoveContainerResponse RemoveImageRequest RemoveImageResponse RemovePodSandboxRequest
        RemovePodSandboxResponse ReopenContainerLogRequest ReopenContainerLogResponse
        RunPodSandboxRequest RunPodSandboxResponse RuntimeCondition RuntimeConfig
        RuntimeConfigRequest RuntimeConfigResponse RuntimeFeatures RuntimeHandler
        RuntimeHandlerFeatures RuntimeStatus SeLinuxOption SecurityProfile StartContainerRequest
        StartContainerResponse StatusRequest StatusResponse StopContainerRequest
        StopContainerResponse StopPodSandboxRequest StopPodSandboxResponse SwapUsage UInt64Value
        UpdateContainerResourcesRequest UpdateContainerResourcesResponse
        UpdateRuntimeConfigRequest UpdateRuntimeConfigResponse UserNamespace VersionRequest
        VersionResponse WindowsContainerConfig WindowsContainerResources
        WindowsContainerSecurityContext WindowsContainerStats WindowsCpuGroupAffinity
        WindowsCpuUsage WindowsFilesystemUsage WindowsMemoryUsage WindowsNamespaceOption
        WindowsNetworkInterfaceUsage WindowsNetworkUsage WindowsPodSandboxConfig
        WindowsPodSandboxStats WindowsProcessUsage WindowsSandboxSecurityContext
    };
    let checked: BTreeSet<_> = checked.into_iter().map(str::to_lowercase).collect();
    let shared: BTreeSet<_> =
        top_level(theirs()).into_iter().map(|name| name.to_lowercase()).collect();
    assert_eq!(checked, shared, "the list above names every message of k8s-cri");
}

/// Bytes of every field `k8s-cri` knows pass through both unchanged; bytes of every field we know
/// pass through ours unchanged and are read by theirs, which drops what it does not know.
fn check_bytes<Ours: Message + Default, Theirs: Message + Default>(rust_name: &str) {
    let (ours, theirs) = (ours(), theirs());
    let name = theirs
        .messages
        .keys()
        .find(|it| it.strip_prefix(PACKAGE).is_some_and(|it| it.eq_ignore_ascii_case(rust_name)));
    let name = name.unwrap_or_else(|| panic!("k8s-cri has no message {rust_name}"));

    let old = theirs.bytes_of(name, &mut 0);
    assert_eq!(Theirs::decode(&*old).unwrap().encode_to_vec(), old, "theirs: {name}");
    assert_eq!(Ours::decode(&*old).unwrap().encode_to_vec(), old, "ours: {name}");

    let new = ours.bytes_of(name, &mut 0);
    assert_eq!(Ours::decode(&*new).unwrap().encode_to_vec(), new, "ours, all fields: {name}");
    let seen = Theirs::decode(&*new).unwrap().encode_to_vec();
    assert_eq!(Ours::decode(&*seen).unwrap().encode_to_vec(), seen, "there and back: {name}");
}

#[test]
fn no_field_that_both_know_differs() {
    let (ours, theirs) = (ours(), theirs());
    for name in top_level(theirs) {
        let full = format!("{PACKAGE}{name}");
        let message = ours.messages.get(&full).unwrap_or_else(|| panic!("{name} is missing"));
        for old in &theirs.messages[&full].field {
            let new = message.field.iter().find(|it| it.name() == old.name());
            let new = new.unwrap_or_else(|| panic!("{name}.{} is missing", old.name()));
            if !WIDENED.contains(&(&name, old.name())) {
                assert_eq!(shape(ours, new), shape(theirs, old), "{name}.{}", old.name());
            }
        }
    }
}

#[test]
fn enum_values_that_both_know_have_the_same_numbers() {
    let (ours, theirs) = (ours(), theirs());
    for (name, old) in &theirs.enums {
        let new = ours.enums.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        let values = |it: &prost_types::EnumDescriptorProto| -> Vec<(String, i32)> {
            it.value.iter().map(|it| (it.name().to_owned(), it.number())).collect()
        };
        assert_eq!(values(new), values(old), "{name}");
    }
}

#[test]
fn fields_newer_than_k8s_cri_are_those_of_kubernetes_1_37() {
    let (ours, theirs) = (ours(), theirs());
    let mut newer = BTreeSet::new();
    for name in top_level(ours) {
        let full = format!("{PACKAGE}{name}");
        let old = theirs.messages.get(&full);
        for field in &ours.messages[&full].field {
            if old.is_none_or(|it| it.field.iter().all(|it| it.name() != field.name())) {
                let (number, kind) = shape(ours, field);
                newer.insert((name.clone(), field.name().to_owned(), number, kind));
            }
        }
    }
    let expected = NEWER_FIELDS.iter().map(|&(message, field, number, kind)| {
        (message.to_owned(), field.to_owned(), number, kind.to_owned())
    });
    assert_eq!(newer, expected.collect());
}

#[test]
fn signals_have_the_numbers_of_kubernetes_1_37() {
    let signals = &ours().enums[".runtime.v1.Signal"].value;
    let names: Vec<_> = signals.iter().map(|it| it.name().trim_start_matches("SIGNAL_")).collect();
    assert_eq!(names, SIGNALS.split_whitespace().collect::<Vec<_>>());
    assert!(signals.iter().zip(0..).all(|(signal, place)| signal.number() == place));
}

#[test]
fn services_are_those_of_k8s_cri_and_the_newer_rpcs() {
    let mut expected = rpcs(theirs());
    expected.extend(NEWER_RPCS.iter().map(|&(service, rpc, request, response)| {
        (service.to_owned(), rpc.to_owned(), request.to_owned(), response.to_owned())
    }));
    assert_eq!(rpcs(ours()), expected);
}

/// What `k8s-cri` 0.11 does not have, from Kubernetes 1.37: (message, field, number, type).
#[rustfmt::skip]
const NEWER_FIELDS: &[(&str, &str, i32, &str)] = &[
    ("CheckpointPodRequest", "pod_sandbox_id", 1, "string"),
    ("CheckpointPodRequest", "output_path", 2, "string"),
    ("CheckpointPodRequest", "container_ids", 3, "repeated string"),
    ("CheckpointPodRequest", "options", 4, "map<string, string>"),
    ("ContainerConfig", "stop_signal", 18, "Signal"),
    ("ContainerStats", "io", 6, "IoUsage"),
    ("ContainerStatus", "stop_signal", 19, "Signal"),
    ("CpuUsage", "psi", 4, "PsiStats"),
    ("ImageSpec", "image_ref", 20, "string"),
    ("IoUsage", "timestamp", 1, "int64"),
    ("IoUsage", "psi", 2, "PsiStats"),
    ("LinuxPodSandboxStats", "io", 6, "IoUsage"),
    ("MemoryUsage", "psi", 8, "PsiStats"),
    ("Mount", "image_sub_path", 10, "string"),
    ("Mount", "mount_options", 11, "repeated string"),
    ("PsiData", "Total", 1, "uint64"),
    ("PsiData", "Avg10", 2, "double"),
    ("PsiData", "Avg60", 3, "double"),
    ("PsiData", "Avg300", 4, "double"),
    ("PsiStats", "Full", 1, "PsiData"),
    ("PsiStats", "Some", 2, "PsiData"),
    ("RestorePodRequest", "checkpoint_path", 1, "string"),
    ("RestorePodRequest", "config", 2, "PodSandboxConfig"),
    ("RestorePodRequest", "runtime_handler", 3, "string"),
    ("RestorePodRequest", "options", 4, "map<string, string>"),
    ("RestorePodRequest", "container_configs", 5, "repeated ContainerConfig"),
    ("RestorePodResponse", "pod_sandbox_id", 1, "string"),
    ("RestorePodResponse", "restored_containers", 2, "repeated RestoredContainer"),
    ("RestoredContainer", "name", 1, "string"),
    ("RestoredContainer", "container_id", 2, "string"),
    ("RuntimeFeatures", "user_namespaces_host_network", 2, "bool"),
    ("RuntimeFeatures", "mount_options", 3, "bool"),
    ("StreamContainerStatsRequest", "filter", 1, "ContainerStatsFilter"),
    ("StreamContainerStatsResponse", "container_stats", 1, "repeated ContainerStats"),
    ("StreamContainersRequest", "filter", 1, "ContainerFilter"),
    ("StreamContainersResponse", "containers", 1, "repeated Container"),
    ("StreamImagesRequest", "filter", 1, "ImageFilter"),
    ("StreamImagesResponse", "images", 1, "repeated Image"),
    ("StreamPodSandboxMetricsResponse", "pod_sandbox_metrics", 1, "repeated PodSandboxMetrics"),
    ("StreamPodSandboxStatsRequest", "filter", 1, "PodSandboxStatsFilter"),
    ("StreamPodSandboxStatsResponse", "pod_sandbox_stats", 1, "repeated PodSandboxStats"),
    ("StreamPodSandboxesRequest", "filter", 1, "PodSandboxFilter"),
    ("StreamPodSandboxesResponse", "pod_sandboxes", 1, "repeated PodSandbox"),
    ("UpdatePodSandboxResourcesRequest", "pod_sandbox_id", 1, "string"),
    ("UpdatePodSandboxResourcesRequest", "overhead", 2, "LinuxContainerResources"),
    ("UpdatePodSandboxResourcesRequest", "resources", 3, "LinuxContainerResources"),
];

/// By position: the number on the wire is the place in this list.
const SIGNALS: &str = "
    RUNTIME_DEFAULT SIGABRT SIGALRM SIGBUS SIGCHLD SIGCLD SIGCONT SIGFPE SIGHUP SIGILL
    SIGINT SIGIO SIGIOT SIGKILL SIGPIPE SIGPOLL SIGPROF SIGPWR SIGQUIT SIGSEGV SIGSTKFLT
    SIGSTOP SIGSYS SIGTERM SIGTRAP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGUSR1 SIGUSR2 SIGVTALRM
    SIGWINCH SIGXCPU SIGXFSZ SIGRTMIN SIGRTMINPLUS1 SIGRTMINPLUS2 SIGRTMINPLUS3
    SIGRTMINPLUS4 SIGRTMINPLUS5 SIGRTMINPLUS6 SIGRTMINPLUS7 SIGRTMINPLUS8 SIGRTMINPLUS9
    SIGRTMINPLUS10 SIGRTMINPLUS11 SIGRTMINPLUS12 SIGRTMINPLUS13 SIGRTMINPLUS14
    SIGRTMINPLUS15 SIGRTMAXMINUS14 SIGRTMAXMINUS13 SIGRTMAXMINUS12 SIGRTMAXMINUS11
    SIGRTMAXMINUS10 SIGRTMAXMINUS9 SIGRTMAXMINUS8 SIGRTMAXMINUS7 SIGRTMAXMINUS6
    SIGRTMAXMINUS5 SIGRTMAXMINUS4 SIGRTMAXMINUS3 SIGRTMAXMINUS2 SIGRTMAXMINUS1 SIGRTMAX
";

/// What `k8s-cri` 0.11 does not have: (service, RPC, request, response).
#[rustfmt::skip]
const NEWER_RPCS: &[(&str, &str, &str, &str)] = &[
    ("ImageService", "StreamImages", "StreamImagesRequest", "stream StreamImagesResponse"),
    ("RuntimeService", "CheckpointPod", "CheckpointPodRequest", "CheckpointPodResponse"),
    ("RuntimeService", "RestorePod", "RestorePodRequest", "RestorePodResponse"),
    ("RuntimeService", "StreamContainerStats", "StreamContainerStatsRequest", "stream StreamContainerStatsResponse"),
    ("RuntimeService", "StreamContainers", "StreamContainersRequest", "stream StreamContainersResponse"),
    ("RuntimeService", "StreamPodSandboxMetrics", "StreamPodSandboxMetricsRequest", "stream StreamPodSandboxMetricsResponse"),
    ("RuntimeService", "StreamPodSandboxStats", "StreamPodSandboxStatsRequest", "stream StreamPodSandboxStatsResponse"),
    ("RuntimeService", "StreamPodSandboxes", "StreamPodSandboxesRequest", "stream StreamPodSandboxesResponse"),
    ("RuntimeService", "UpdatePodSandboxResources", "UpdatePodSandboxResourcesRequest", "UpdatePodSandboxResourcesResponse"),
];

fn ours() -> &'static Contract {
    static OURS: LazyLock<Contract> = LazyLock::new(|| Contract::parse(proto::cri::DESCRIPTORS));
    &OURS
}

/// The contract as `k8s-cri` ships it in its sources; `protoc` is there, the crate needs it too.
fn theirs() -> &'static Contract {
    static THEIRS: LazyLock<Contract> = LazyLock::new(parse_k8s_cri);
    &THEIRS
}

fn parse_k8s_cri() -> Contract {
    // What other platforms need was never downloaded.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked"])
        .args(["--filter-platform", &platform])
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let k8s_cri = packages.iter().find(|it| it["name"] == "k8s-cri").unwrap();
    let manifest = k8s_cri["manifest_path"].as_str().unwrap();
    let include = manifest.replace("Cargo.toml", "proto");
    let parsed = Command::new("protoc")
        .args([&format!("-I{include}"), "--descriptor_set_out=/dev/stdout", "v1.proto"])
        .output()
        .expect("protoc (Debian: protobuf-compiler)");
    assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
    Contract::parse(&parsed.stdout)
}

/// Names of the messages that are not nested in others.
fn top_level(contract: &Contract) -> Vec<String> {
    let names = contract.messages.keys().filter_map(|it| it.strip_prefix(PACKAGE));
    names.filter(|it| !it.contains('.')).map(str::to_owned).collect()
}

/// Number and type, the type as a `.proto` file spells it.
fn shape(contract: &Contract, field: &FieldDescriptorProto) -> (i32, String) {
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().trim_start_matches(PACKAGE).to_owned(),
        other => format!("{other:?}").to_lowercase(),
    };
    let kind = match (field.label() == Label::Repeated, contract.messages.get(field.type_name())) {
        (true, Some(entry)) if entry.options.as_ref().is_some_and(|it| it.map_entry()) => {
            let [key, value] = [0, 1].map(|it| shape(contract, &entry.field[it]).1);
            format!("map<{key}, {value}>")
        }
        (true, _) => format!("repeated {kind}"),
        (false, _) => kind,
    };
    (field.number(), kind)
}

fn rpcs(contract: &Contract) -> BTreeSet<(String, String, String, String)> {
    let mut rpcs = BTreeSet::new();
    for service in &contract.services {
        for method in &service.method {
            assert!(!method.client_streaming());
            let stream = if method.server_streaming() { "stream " } else { "" };
            rpcs.insert((
                service.name().to_owned(),
                method.name().to_owned(),
                method.input_type().trim_start_matches(PACKAGE).to_owned(),
                format!("{stream}{}", method.output_type().trim_start_matches(PACKAGE)),
            ));
        }
    }
    rpcs
}
