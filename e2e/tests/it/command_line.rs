//! The operator's verbs: `lapstrake run` and `lapstrake images`, as a person types them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use e2e::{Node, archive, image};
use rustix::process::{Pid, Signal, kill_process};

#[tokio::test]
async fn run_follows_the_logs_and_ends_with_the_pods_code() {
    let node = Node::with_busybox().await;
    let manifest = write(
        &node,
        "job.yaml",
        &format!(
            "
apiVersion: v1
kind: Pod
metadata:
  name: job
spec:
  restartPolicy: Never
  initContainers:
  - name: prepare
    image: {image}
    command: [sh, -c, 'echo prepared > /work/file; echo first']
    volumeMounts: [{{ name: work, mountPath: /work }}]
  containers:
  - name: main
    image: {image}
    command: [sh, -c, 'cat /work/file; echo $GREETING; exit 3']
    env: [{{ name: GREETING, value: hello }}]
    resources: {{ limits: {{ cpu: 500m, memory: 64Mi }} }}
    volumeMounts: [{{ name: work, mountPath: /work }}]
  volumes:
  - name: work
    emptyDir: {{}}
",
            image = image::BUSYBOX
        ),
    );
    let output = node.verb(&["run", &manifest]);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    for (container, line) in [("prepare", "first"), ("main", "prepared"), ("main", "hello")] {
        assert!(
            text.lines().any(|it| it.contains(container) && it.contains(line)),
            "{container} {line}: {text}"
        );
    }
    assert!(text.contains(&node.network()), "the pod's address: {text}");
    node.finish().await;
}

#[tokio::test]
async fn run_cleans_up_on_ctrl_c() {
    let node = Node::with_busybox().await;
    let manifest = write(
        &node,
        "web.yaml",
        &format!(
            "
apiVersion: v1
kind: Pod
metadata: {{ name: web }}
spec:
  containers:
  - name: main
    image: {}
    command: [sh, -c, 'echo up; sleep 1000']
",
            image::BUSYBOX
        ),
    );
    let mut run = Command::new(e2e::node::binary("lapstrake"))
        .args(["run", &manifest, "--endpoint", &node.endpoint()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(run.stdout.take().unwrap()));
    assert!(lines.any(|it| it.unwrap().contains("up")), "the container's line is shown");
    kill_process(Pid::from_child(&run), Signal::INT).unwrap();
    run.wait().unwrap();
    node.assert_clean();
    node.finish().await;
}

#[tokio::test]
async fn run_refuses_by_name_what_it_does_not_do() {
    let node = Node::with_busybox().await;
    let manifest = write(
        &node,
        "odd.yaml",
        &format!(
            "
apiVersion: v1
kind: Pod
metadata: {{ name: odd }}
spec:
  containers:
  - name: main
    image: {}
    lifecycle: {{ preStop: {{ exec: {{ command: [x] }} }} }}
  volumes:
  - name: claim
    persistentVolumeClaim: {{ claimName: data }}
",
            image::BUSYBOX
        ),
    );
    let output = node.verb(&["run", &manifest]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for word in ["lifecycle", "persistentVolumeClaim"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    node.finish().await;
}

#[tokio::test]
async fn images_can_be_imported_from_a_file_and_listed() {
    let node = Node::start().await;
    let file = node.scratch().join("images.tar");
    fs::write(
        &file,
        archive::docker_save(&[
            (&image::busybox(), image::BUSYBOX),
            (&image::nginx(), image::NGINX),
        ]),
    )
    .unwrap();
    let output = node.verb(&["images", "import", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = node.verb(&["images", "ls"]);
    let text = String::from_utf8_lossy(&output.stdout);
    for (repository, id) in [("busybox", image::busybox().id()), ("nginx", image::nginx().id())] {
        let id = &id["sha256:".len()..][..12];
        assert!(
            text.lines().any(|it| it.contains(repository) && it.contains(id)),
            "{repository} {id}: {text}"
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_named() {
    let absent = "unix:///run/lapstrake-e2e/absent.sock";
    let output = Command::new(e2e::node::binary("lapstrake"))
        .args(["images", "ls", "--endpoint", absent])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("/run/lapstrake-e2e/absent.sock"), "{text}");
}

fn write(node: &Node, name: &str, manifest: &str) -> String {
    let file = node.scratch().join(name);
    fs::write(&file, manifest).unwrap();
    Path::display(&file).to_string()
}

#[tokio::test]
async fn doctor_says_what_this_node_lacks_without_a_daemon() {
    let node = Node::start().await;
    let output = Command::new(e2e::node::binary("lapstrake"))
        .args(["doctor", "--state", "/dev/shm/lapstrake", "--root"])
        .arg(node.root_dir())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // Pods run on this machine: a test has just seen one.
    assert!(output.status.success(), "{text}");
    let line = |topic: &str| {
        let found = text.lines().find(|line| line.get(7..).is_some_and(|it| it.starts_with(topic)));
        found.unwrap_or_else(|| panic!("nothing about {topic:?} in:\n{text}"))
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(line("kernel").contains(release.trim()), "{text}");
    assert!(line("state directory").starts_with("ok"), "{text}");
    assert!(line("overlayfs").starts_with("ok"), "{text}");
    let apparmor = Path::new("/sys/module/apparmor").exists();
    assert_eq!(line("AppArmor").starts_with("ok"), apparmor, "{text}");
    node.finish().await;
}
