//! The page of the node, in a real browser without a screen.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use e2e::browser::{self, Browser};
use e2e::pod::SOON;
use e2e::{Node, container, http, image, pod, wait};
use serde_json::Value;

use crate::metrics::{address, left_to_the_host};

/// An answer must stay small enough for a telephone far away.
const PAGE_BYTES_MAX: usize = 100 << 10;

/// What a hostile owner of a pod might call it.
const HOSTILE: &str = "<img src=x onerror=document.title='owned'>";

/// Runs Chromium on the page. `what`: what it is to do with it.
fn chromium(address: &str, profile: &std::path::Path, what: &[&str]) -> String {
    let output = Command::new("timeout")
        .args(["90", "chromium", "--virtual-time-budget=4000"])
        .args(browser::FLAGS)
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(what)
        .arg(format!("http://{address}/"))
        .output()
        .expect("chromium is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn the_page_shows_the_node_and_runs_no_name_of_a_pod() {
    if left_to_the_host("the page (chromium)") {
        return;
    }
    let node = Node::with_busybox().await;
    let talker = node.run_pod(pod("talker")).await;
    let shell = "while :; do :; done";
    talker.start(&container("main", image::BUSYBOX).shell(shell)).await;
    let failed = talker.start(&container("failed", image::BUSYBOX).command(&["false"])).await;
    failed.exited().await;
    let mut spec = container(HOSTILE, image::BUSYBOX).command(&["sleep", "1000"]);
    spec.config.log_path.clear();
    let mut hostile = pod("hostile");
    hostile.metadata().namespace = HOSTILE.to_owned();
    let hostile = node.run_pod(hostile).await;
    hostile.start(&spec).await;
    let address = address(&node);
    wait::until("curves", SOON, || {
        let data = http::request("GET", &address, "/page.json", &[], &[]);
        let data: Value = serde_json::from_slice(&data.body).unwrap();
        let pods = data["pods"].as_array().unwrap();
        pods.iter().all(|pod| pod["cpuTrail"].as_array().unwrap().len() >= 2).then_some(())
    });
    let page = http::request("GET", &address, "/", &[], &[]);
    assert_eq!(page.status, 200);
    assert!(page.body.len() < PAGE_BYTES_MAX, "{} bytes", page.body.len());
    let source = String::from_utf8_lossy(&page.body);
    let foreign = ["src=\"http", "href=\"http", "@import", "url(http"];
    assert!(foreign.iter().all(|it| !source.contains(it)), "nothing comes from elsewhere");
    let policy = &page.headers["content-security-policy"];
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");

    let profile = tempfile::tempdir().unwrap();
    let seen = chromium(&address, profile.path(), &["--dump-dom"]);
    for text in ["talker", "live, ", "Pods ready", "Error (1)", "main", "created", "<path"] {
        assert!(seen.contains(text), "{text} is not in the page:\n{seen}");
    }
    assert!(!seen.contains("<title>owned"), "a name was run");
    assert!(!seen.contains("<img"), "a name became an element");
    assert!(seen.contains("&lt;img src=x onerror="), "and is shown as it is");
    // Pictures for people: E2E_SCREENSHOTS says where to put them.
    if let Some(dir) = std::env::var_os("E2E_SCREENSHOTS").map(PathBuf::from) {
        for (size, name) in [("390,1400", "phone"), ("1280,1000", "desktop")] {
            for (scheme, theme) in [("0", "dark"), ("1", "light")] {
                let file = dir.join(format!("{name}-{theme}.png"));
                chromium(
                    &address,
                    profile.path(),
                    &[
                        &format!("--screenshot={}", file.display()),
                        &format!("--window-size={size}"),
                        &format!("--blink-settings=preferredColorScheme={scheme}"),
                    ],
                );
                assert!(fs::metadata(&file).unwrap().len() > 10_000);
            }
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn everything_on_the_page_is_reached_and_opened_by_keys_alone() {
    if left_to_the_host("the page (chromium)") {
        return;
    }
    let node = Node::with_busybox().await;
    for name in ["web", "database"] {
        let pod = node.run_pod(pod(name)).await;
        pod.start(&container("main", image::BUSYBOX).command(&["sleep", "1000"])).await;
    }
    let mut page = Browser::open(&format!("http://{}/", address(&node)));
    page.until("document.querySelectorAll('#pods details').length === 2");

    // A slash goes to the filter and is not typed into it; one pod that fits is opened.
    page.press(browser::SLASH);
    page.until("document.activeElement.id === 'filter'");
    assert_eq!(page.value("document.activeElement.value"), "");
    page.type_text("database");
    page.until("document.querySelectorAll('#pods details').length === 1");
    page.until("document.querySelector('#pods details[open]').textContent.includes('database')");
    page.press(browser::ESCAPE);
    page.until("document.querySelectorAll('#pods details').length === 2");
    assert_eq!(page.value("document.activeElement === document.body"), true);

    // From the top, key by key: each stop can be seen, and nothing is a trap.
    page.value("document.querySelectorAll('#pods details').forEach(it => it.open = false)");
    page.value("document.activeElement.blur(), window.getSelection().removeAllRanges()");
    let mut stops = Vec::new();
    while stops.last() != Some(&"events".to_owned()) {
        assert!(stops.len() < 12, "{stops:?}");
        page.press(browser::TAB);
        let stop = "document.activeElement.id || document.activeElement.tagName.toLowerCase()";
        stops.push(page.value(stop).as_str().unwrap().to_owned());
        let outline = page.value("getComputedStyle(document.activeElement).outlineStyle");
        assert_eq!(outline, "solid", "the focus on {:?} can be seen", stops.last());
        if stops.last() == Some(&"summary".to_owned()) {
            page.press(browser::ENTER);
            page.until("document.activeElement.parentElement.open");
        }
    }
    let stops: Vec<&str> = stops.iter().map(String::as_str).filter(|it| *it != "filter").collect();
    assert_eq!(stops, ["summary", "summary", "slow", "events"]);

    // New data leaves open what is open, and the focus where it is.
    page.value("document.querySelector('#pods summary').focus()");
    let focus = "document.activeElement.closest('details').dataset.id";
    let before = page.value(focus);
    page.value("load()");
    assert_eq!(page.value(focus), before);
    assert_eq!(page.value("document.querySelectorAll('#pods details[open]').length"), 2);
    drop(page);
    node.finish().await;
}
