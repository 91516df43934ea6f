//! The small init that a container can ask for.

use e2e::{ContainerSpec, Node, Options, Pod, container, image, pod};

const INIT: &str = "lapstrake.io/init";

/// Leaves a zombie whose parent is gone, and tells of signals.
const SCRIPT: &str = "trap 'echo asked; exit 5' TERM\n\
                      (sleep 0.01 &) ; (sh -c 'exit 0' &)\n\
                      echo ready\n\
                      while :; do sleep 0.02; done";

#[tokio::test]
async fn init_reaps_orphans_hands_signals_on_and_ends_as_the_program_does() {
    let (node, pod) = busybox_pod("").await;
    let spec = container("main", image::BUSYBOX).shell(SCRIPT).annotation(INIT, "true");
    let main = pod.start(&spec).await;
    main.wait_for_log("ready");
    assert_eq!(main.shell("cat /proc/1/comm").await, "init");
    let child = main.shell("cat /proc/2/comm; grep PPid /proc/2/status | cut -f2").await;
    assert_eq!(child, "sh\n1", "the program is its child");
    main.shell("for i in 1 2 3 4 5 6 7 8 9; do grep -ls 'State:.Z' /proc/[0-9]*/status || exit 0; sleep 0.1; done; exit 1")
        .await;
    main.shell("! (echo x > /proc/1/exe) 2>/dev/null").await;
    main.stop(20).await;
    main.wait_for_log("asked");
    assert_eq!(main.status().await.exit_code, 5);
    node.finish().await;
}

#[tokio::test]
async fn what_init_cannot_start_is_a_start_error_as_without_it() {
    let (node, pod) = busybox_pod("").await;
    for (name, command) in
        [("absent", "/no/such/program"), ("not-in-path", "nothing"), ("dir", "/etc")]
    {
        let spec = container(name, image::BUSYBOX).command(&[command]).annotation(INIT, "true");
        let main = pod.create(&spec).await;
        let error = main.try_start().await.unwrap_err();
        assert!(error.message().contains(command), "{error}");
        let status = main.status().await;
        assert_eq!((status.exit_code, &*status.reason), (128, "StartError"), "{name}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_handler_can_have_init_for_all_of_its_pods() {
    let (node, _) = busybox_pod("[runtime.handlers.with-init]\ninit = true\n").await;
    let pod = node.run_pod(pod("handled").handler("with-init")).await;
    let main = pod.start(&sleeper("main")).await;
    assert_eq!(main.shell("cat /proc/1/comm").await, "init");
    let without = pod.start(&sleeper("without").annotation(INIT, "false")).await;
    assert_eq!(without.shell("cat /proc/1/comm").await, "sleep");
    main.stop(0).await;
    assert_eq!(main.status().await.exit_code, 137);
    node.finish().await;
}

async fn busybox_pod(config: &str) -> (Node, Pod) {
    let node = Node::start_with(Options { config: config.into(), ..Options::default() }).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    let pod = node.run_pod(pod("pod")).await;
    (node, pod)
}

fn sleeper(name: &str) -> ContainerSpec {
    container(name, image::BUSYBOX).command(&["sleep", "1000"])
}
