//! The operator's verbs: `lapstrake run` and `lapstrake images`, as a person types them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::registry::Form;
use e2e::{Node, Options, Registry, RegistryAuth, archive, container, image, pod, wait};
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

#[tokio::test(flavor = "multi_thread")]
async fn why_tells_what_a_container_waits_for() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("slow")).await;
    let stubborn = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    let container = pod.start(&container("main", image::BUSYBOX).shell(stubborn)).await;
    container.wait_for_log("up");
    let why = |word: &str| {
        let output = node.verb(&["why", word]);
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    };
    let idle = why("default/slow");
    assert!(idle.contains("nothing is under way") && idle.contains("container main"), "{idle}");
    let stops = async {
        let told = wait::until_async("the stop is told", Duration::from_secs(20), || async {
            Some(why("main")).filter(|text| text.contains("under way: StopContainer"))
        });
        let told = told.await;
        let pid = format!("(pid {})", node.pid_of(&container).await);
        assert!(told.contains(&pid) && told.contains("memory "), "{told}");
        container.stop(0).await;
    };
    tokio::join!(container.stop(600), stops);
    assert!(why("main").contains("exit code 137"), "{}", why("main"));
    let top = node.verb(&["top"]);
    let top = String::from_utf8_lossy(&top.stdout);
    assert!(top.contains("RECEIVED / SENT") && top.contains("default/slow"), "{top}");
    let unknown = why("nobody");
    assert!(unknown.contains("nobody") && unknown.contains("does not exist"), "{unknown}");
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

#[tokio::test]
async fn images_are_explained_exported_pinned_verified_and_listed_with_their_users() {
    let registry = Registry::start(RegistryAuth::Anonymous);
    registry.push(&image::busybox(), "app", "v", Form::Oci);
    let mirrors = vec![("r.example".into(), registry.address.clone())];
    let node = Node::start_with(Options { mirrors, ..Options::default() }).await;
    let said = |arguments: &[&str]| {
        let output = node.verb(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };

    let (good, out, _) = said(&["explain", "r.example/app:v"]);
    assert!(good && out.contains(&registry.address) && out.contains("has it: sha256:"), "{out}");
    let (good, out, _) = said(&["explain", "r.example/none:v"]);
    assert!(!good && out.contains("404"), "{out}");

    let (good, id, notes) = said(&["images", "pull", "r.example/app:v"]);
    assert!(good && notes.contains("pulled r.example/app:v"), "{notes}");
    let id = id.trim().to_owned();
    let pod = node.run_pod(pod("web")).await;
    let container = pod.start(&container("main", &id).shell("sleep 1000")).await;
    let (_, out, _) = said(&["images", "ls"]);
    assert!(out.contains("/web/main ("), "{out}");

    assert!(said(&["images", "pin", "r.example/app:v"]).0);
    let (_, out, _) = said(&["images", "ls", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(list["images"][0]["pinned"], true, "{out}");
    assert_eq!(list["images"][0]["usedBy"][0]["container"], container.id, "{out}");
    assert!(said(&["images", "pin", "--undo", "r.example/app:v"]).0);

    let archive = node.scratch().join("app.tar").display().to_string();
    let (good, _, notes) = said(&["images", "export", "r.example/app:v", "-o", &archive]);
    assert!(good && notes.contains("keep_blobs"), "a new id is told: {notes}");
    let broken = node.scratch().join("broken.tar");
    let export = ["images", "export", "r.example/none:v", "-o", broken.to_str().unwrap()];
    let (good, _, notes) = said(&export);
    assert!(!good && notes.contains("`lapstrake images ls`"), "{notes}");
    assert!(!broken.exists() && !broken.with_added_extension("part").exists());
    let layout = node.scratch().join("layout");
    fs::create_dir(&layout).unwrap();
    let tar = Command::new("tar").args(["-xf", &archive, "-C"]).arg(&layout).status().unwrap();
    assert!(tar.success());
    let (good, from_file, notes) = said(&["images", "import", &archive]);
    assert!(good, "{notes}");
    let (good, from_directory, notes) = said(&["images", "import", &layout.display().to_string()]);
    assert!(good && from_directory == from_file, "{notes}");

    // The import took the name; the old image is there by its id.
    let (good, out, _) = said(&["images", "verify", &id]);
    assert!(good && out.contains("good"), "{out}");
    let layers = node.root_dir().join("layers");
    let mut find = Command::new("busybox");
    let found =
        find.arg("find").arg(&layers).args(["-name", "busybox", "-type", "f"]).output().unwrap();
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    for file in found.lines() {
        let mut bytes = fs::read(file).unwrap();
        bytes[5000] ^= 1;
        // Over it: the container runs the old file on.
        fs::remove_file(file).unwrap();
        fs::write(file, bytes).unwrap();
    }
    let (good, out, notes) = said(&["images", "verify", &id]);
    assert!(!good && out.contains("busybox: has other content"), "{out}{notes}");
    assert!(said(&["images", "pull", "r.example/app:v"]).0);
    let (good, out, _) = said(&["images", "verify", &id]);
    assert!(good, "{out}");
    node.finish().await;
}
