//! Runs the CRI conformance suite (`critest` of kubernetes-sigs/cri-tools) against a daemon of its
//! own, with the images from a registry on loopback, and prints what passed, failed and was
//! skipped, and why.
#![allow(clippy::unwrap_used, reason = "a run that cannot begin may stop where it stands")]
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use e2e::critest::{HOSTS, push_images};
use e2e::registry::{Registry, RegistryAuth};
use e2e::{Node, Options};
use serde_json::Value;

/// Specs that need something of the world outside.
const OUTSIDE: [(&str, &str); 1] = [(
    "public image with digest should be pulled and removed",
    "names an image by a digest that only the public registry has",
)];

#[derive(Debug, Parser)]
struct Arguments {
    /// The suite's binary.
    critest: PathBuf,
    /// A busybox whose shell looks for commands in PATH first.
    #[arg(long)]
    busybox: PathBuf,
    /// How many times in a row.
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Specs at the same time; needs the program `ginkgo`, in PATH or beside the suite's.
    #[arg(long, default_value_t = 1)]
    parallel: u32,
    /// In another order each time.
    #[arg(long)]
    random: bool,
    /// Only specs whose name matches.
    #[arg(long)]
    focus: Option<String>,
    /// Only tell what is skipped, not what passes.
    #[arg(long)]
    brief: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let registry = Registry::start(RegistryAuth::Anonymous);
    push_images(&registry, &arguments.busybox);
    let mirrors = HOSTS.iter().map(|host| ((*host).to_owned(), registry.address.clone())).collect();
    let node = Node::start_with(Options { mirrors, ..Options::default() }).await;
    let mut failed = 0;
    for number in 1..=arguments.runs {
        let began = std::time::Instant::now();
        let report = run(&arguments, &node);
        let count = told(&report, &arguments);
        println!(
            "run {number} of {}: {} passed, {} failed, {} skipped in {} s",
            arguments.runs,
            count.passed,
            count.failed,
            count.skipped,
            began.elapsed().as_secs()
        );
        failed += count.failed + u32::from(count.passed == 0);
    }
    for (spec, reason) in OUTSIDE {
        println!("not run: {spec}: {reason}");
    }
    if failed == 0 {
        // The suite removes what it makes; whatever is left now is the daemon's.
        let mut node = node;
        node.remove_images().await;
        node.finish().await;
        return ExitCode::SUCCESS;
    }
    println!("the daemon's log:\n{}", tail(&node.log()));
    ExitCode::FAILURE
}

/// One run of the suite, and the report it wrote.
fn run(arguments: &Arguments, node: &Node) -> Vec<Value> {
    let report = node.scratch().join("critest.json");
    let log = fs::File::create(node.scratch().join("critest.log")).unwrap();
    let mut command = Command::new(&arguments.critest);
    command
        .arg(format!("-runtime-endpoint={}", node.endpoint()))
        .arg(format!("-image-endpoint={}", node.endpoint()))
        .arg("-ginkgo.no-color")
        .arg(format!("-ginkgo.json-report={}", report.display()))
        .current_dir(node.scratch())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    for (spec, _) in OUTSIDE {
        command.arg(format!("-ginkgo.skip={spec}"));
    }
    if arguments.parallel > 1 {
        // It starts itself through ginkgo, and looks for both in PATH.
        let own = arguments.critest.parent().unwrap().display();
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .arg(format!("-parallel={}", arguments.parallel))
            .env("PATH", format!("{own}:{path}"));
    }
    if arguments.random {
        command.arg("-ginkgo.randomize-all");
    }
    if let Some(focus) = &arguments.focus {
        command.arg(format!("-ginkgo.focus={focus}"));
    }
    let _ = fs::remove_file(&report);
    // Its exit code says no more than the report.
    command.status().unwrap_or_else(|error| panic!("{}: {error}", arguments.critest.display()));
    read(&report).unwrap_or_else(|| {
        let said = fs::read_to_string(node.scratch().join("critest.log")).unwrap_or_default();
        panic!("the suite wrote no report:\n{}", tail(&said))
    })
}

fn read(report: &Path) -> Option<Vec<Value>> {
    let suites: Value = serde_json::from_slice(&fs::read(report).ok()?).ok()?;
    let specs = suites.as_array()?.iter().filter_map(|suite| suite["SpecReports"].as_array());
    Some(specs.flatten().filter(|spec| spec["LeafNodeType"] == "It").cloned().collect())
}

#[derive(Debug, Default)]
struct Count {
    passed: u32,
    failed: u32,
    skipped: u32,
}

fn told(specs: &[Value], arguments: &Arguments) -> Count {
    let mut count = Count::default();
    for spec in specs {
        let containers = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
        let mut name: Vec<_> = containers.filter_map(Value::as_str).collect();
        name.extend(spec["LeafNodeText"].as_str());
        let name = name.join(" / ");
        let reason = spec["Failure"]["Message"].as_str().unwrap_or_default();
        match spec["State"].as_str().unwrap_or_default() {
            "passed" => {
                count.passed += 1;
                if !arguments.brief {
                    println!("pass  {name}");
                }
            }
            // Not chosen, or chosen not to be.
            "skipped" | "pending" if reason.is_empty() => {}
            "skipped" | "pending" => {
                count.skipped += 1;
                println!("skip  {name}: {}", reason.lines().next().unwrap_or_default());
            }
            state => {
                count.failed += 1;
                println!("FAIL  {name} ({state}): {reason}");
            }
        }
    }
    count
}

/// The last part of a text, at a whole line.
fn tail(text: &str) -> &str {
    const LINES: usize = 200;
    let start = text.rmatch_indices('\n').nth(LINES).map_or(0, |(at, _)| at + 1);
    &text[start..]
}
