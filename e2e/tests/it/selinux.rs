//! Labels of SELinux on a kernel that looks at them: in the vm ring's guest, under a policy just large enough to know
//! containers, which refuses nothing but labels that it does not have.

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::{ContainerSpec, Node, PodSpec, container, guest, image, pod};
use k8s_cri::v1 as cri;
use tonic::Code;

use crate::refused::refused;

const SELINUXFS: &str = "/sys/fs/selinux";

#[tokio::test]
async fn processes_and_files_of_a_pod_have_labels_that_no_other_pod_has() {
    if !guest::inside() || !Path::new(SELINUXFS).exists() {
        println!("SKIPPED: this kernel runs without SELinux, `make test-vm` has one with it");
        return;
    }
    load_policy();
    let node = Node::with_busybox().await;
    let volume = node.scratch().join("volume");
    fs::create_dir_all(volume.join("sub")).unwrap();
    let one = node.run_pod(pod("one")).await;
    let mut spec = sleeper("main").mount(&volume.display().to_string(), "/data", false);
    spec.config.mounts[0].selinux_relabel = true;
    let main = one.start(&spec).await;
    let second = one.start(&sleeper("second")).await;
    let (main_pid, second_pid) = (node.pid_of(&main).await, node.pid_of(&second).await);

    let label = process_label(main_pid);
    let level = label.strip_prefix("system_u:system_r:container_t:").expect("the node's default");
    assert!(level.starts_with("s0:c") && level.contains(','), "{level}");
    assert_eq!(process_label(second_pid), label, "containers of a pod share it");
    assert_eq!(main.shell("cat /proc/self/attr/current").await.trim_end_matches('\0'), label);
    let files = format!("system_u:object_r:container_file_t:{level}");
    let root = format!("/proc/{main_pid}/root");
    for path in ["bin/busybox", "dev/shm", "dev/null", "etc/resolv.conf", "data/sub"] {
        assert_eq!(file_label(&Path::new(&root).join(path)), files, "{path}");
    }
    assert_eq!(file_label(&volume), files);
    main.shell("echo x > /new && test \"$(cat /new)\" = x").await;

    let two = node.run_pod(pod("two")).await;
    let other = two.start(&sleeper("main")).await;
    assert_ne!(process_label(node.pid_of(&other).await), label, "another pod has another level");

    let three = node.run_pod(asking("three", "", "s0:c7,c9")).await;
    let mut spec = sleeper("main");
    spec.security().selinux_options = Some(options("container_t", "s0:c7,c9"));
    let asked = three.start(&spec).await;
    let asked = process_label(node.pid_of(&asked).await);
    assert_eq!(asked, "system_u:system_r:container_t:s0:c7,c9");
    let unknown = node.try_run_pod(asking("four", "no_such_t", "")).await;
    refused(unknown.map(drop), Code::InvalidArgument, &["selinux_options", "no_such_t"]);
    node.finish().await;
}

fn sleeper(name: &str) -> ContainerSpec {
    container(name, image::BUSYBOX).command(&["sleep", "1000"])
}

fn options(kind: &str, level: &str) -> cri::SeLinuxOption {
    cri::SeLinuxOption { r#type: kind.into(), level: level.into(), ..Default::default() }
}

fn asking(name: &str, kind: &str, level: &str) -> PodSpec {
    let mut spec = pod(name);
    let security = spec.linux().security_context.get_or_insert_default();
    security.selinux_options = Some(options(kind, level));
    spec
}

fn process_label(pid: i32) -> String {
    let label = fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap();
    label.trim_end_matches('\0').to_owned()
}

#[track_caller]
fn file_label(path: &Path) -> String {
    let mut value = [0; 256];
    let length = rustix::fs::getxattr(path, "security.selinux", &mut value[..]);
    let length = length.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    String::from_utf8(value[..length].to_vec()).unwrap().trim_end_matches('\0').to_owned()
}

/// Loads the policy and says, as container-selinux does, what containers are labelled with.
fn load_policy() {
    if !Path::new(SELINUXFS).join("load").exists() {
        let mounted = Command::new("mount").args(["-t", "selinuxfs", "none", SELINUXFS]).status();
        assert!(mounted.unwrap().success(), "mount {SELINUXFS}");
    }
    let dir = tempfile::tempdir().unwrap();
    let [source, binary] = ["policy.cil", "policy"].map(|name| dir.path().join(name));
    fs::write(&source, policy()).unwrap();
    let version = fs::read_to_string(Path::new(SELINUXFS).join("policyvers")).unwrap();
    let mut compiler = Command::new("secilc");
    compiler.args(["-c", version.trim(), "-f", "/dev/null", "-o"]).arg(&binary).arg(&source);
    let compiled = compiler.output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    fs::write(Path::new(SELINUXFS).join("load"), fs::read(&binary).unwrap()).unwrap();
    let contexts = Path::new("/etc/selinux/small/contexts");
    fs::create_dir_all(contexts).unwrap();
    fs::write("/etc/selinux/config", "SELINUX=permissive\nSELINUXTYPE=small\n").unwrap();
    let text = "process = \"system_u:system_r:container_t:s0\"\n\
                file = \"system_u:object_r:container_file_t:s0\"\n";
    fs::write(contexts.join("lxc_contexts"), text).unwrap();
}

/// In CIL. What the kernel must find in any policy, and the labels that the test is about.
fn policy() -> String {
    const SIDS: &str = "kernel security unlabeled fs file file_labels init any_socket port netif \
        netmsg node igmp_packet icmp_socket tcp_socket sysctl_modprobe sysctl sysctl_fs \
        sysctl_kernel sysctl_net sysctl_net_unix sysctl_vm sysctl_dev kmod policy scmp_packet \
        devnull";
    const REST: &str = "
        (handleunknown allow)
        (mls true)
        (policycap nnp_nosuid_transition)
        (class process (transition dyntransition))
        (class process2 (nnp_transition nosuid_transition))
        (class filesystem (relabelfrom))
        (class file (relabelto))
        (class dir (relabelto))
        (class lnk_file (relabelto))
        (class chr_file (relabelto))
        (class fifo_file (relabelto))
        (class sock_file (relabelto))
        (classorder (process process2 filesystem file dir lnk_file chr_file fifo_file sock_file))
        (sensitivity s0)
        (sensitivityorder (s0))
        (sensitivitycategory s0 (range c0 c1023))
        (level low (s0))
        (level high (s0 (range c0 c1023)))
        (levelrange all (low high))
        (levelrange none (low low))
        (user system_u)
        (role system_r)
        (role object_r)
        (type kernel_t)
        (type container_t)
        (type file_t)
        (type container_file_t)
        (userrole system_u system_r)
        (userrole system_u object_r)
        (userlevel system_u low)
        (userrange system_u all)
        (roletype system_r kernel_t)
        (roletype system_r container_t)
        (roletype object_r file_t)
        (roletype object_r container_file_t)
        (context of_kernel (system_u system_r kernel_t none))
        (context of_files (system_u object_r file_t none))
        (allow kernel_t container_t (process (transition)))
        (allow kernel_t container_t (process2 (nnp_transition nosuid_transition)))
        (fsuse xattr ext4 of_files)
        (fsuse xattr overlay of_files)
        (fsuse trans tmpfs of_files)
        (fsuse trans devpts of_files)
        (fsuse trans mqueue of_files)
        (genfscon proc \"/\" of_files)
        (genfscon sysfs \"/\" of_files)
        (genfscon cgroup2 \"/\" of_files)
        (genfscon selinuxfs \"/\" of_files)
        ";
    let categories: Vec<_> = (0..1024).map(|n| format!("c{n}")).collect();
    let declared: String = categories.iter().map(|it| format!("(category {it})")).collect();
    let sids = SIDS.split_whitespace();
    let contexts: String =
        sids.map(|sid| format!("(sid {sid})(sidcontext {sid} of_kernel)")).collect();
    let order = categories.join(" ");
    format!("{REST}{declared}(categoryorder ({order})){contexts}(sidorder ({SIDS}))")
}
