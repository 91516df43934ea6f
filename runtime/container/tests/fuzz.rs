//! Specifications that nobody would write: none may panic, hang or cost much, whatever they say. The corpus is
//! replayed as it is; then its files are changed at random for a bounded time (`FUZZ_SECONDS`, default 2).

mod chance;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use container::{Facts, Spec};
use serde_json::{Value, json};

use chance::{Chance, corpus};

const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");

/// No input may take longer than this to be decided about, on a busy machine.
const SLOW: Duration = Duration::from_secs(2);

/// All that is decided from a specification. Refusals are fine.
fn decide(text: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<Spec>(text) else { return };
    let facts = Facts {
        id: "c".into(),
        capabilities: u64::MAX,
        seccomp_compiled: true,
        selinux: true,
        later_hooks: true,
    };
    let Ok(plan) = container::plan(&spec, &facts) else { return };
    let v1 = cgroup::hierarchy::Hierarchy { controllers: vec!["cpu".into()], mount: "/".into() };
    for node in [
        cgroup::Hierarchies { v1: vec![v1.clone()], unified: None },
        cgroup::Hierarchies { v1: vec![], unified: Some("/".into()) },
    ] {
        let _ = cgroup::limits::settings(&plan.resources, &node);
    }
}

fn must_be_decided(text: &[u8], from: &str) {
    let begun = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| decide(text)));
    let shown = String::from_utf8_lossy(text);
    assert!(result.is_ok(), "{from} panics; add it to the corpus: {shown}");
    assert!(begun.elapsed() < SLOW, "{from} takes {:?}: {shown}", begun.elapsed());
}

#[test]
fn the_corpus_is_decided_about() {
    for (name, text) in corpus(PACKAGE) {
        must_be_decided(&text, &name);
    }
}

#[test]
fn what_the_corpus_becomes_by_chance_is_decided_about() {
    chance::for_a_while(&corpus(PACKAGE), 100, |chance, text, from| {
        let changed = match chance.below(4) {
            0 => bytes(text, chance),
            _ => chance::changed(text, chance, 1, odd),
        };
        must_be_decided(&changed, from);
    });
}

fn bytes(text: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut out = text.to_vec();
    for _ in 0..=chance.below(8) {
        let at = chance.below(out.len());
        match chance.below(3) {
            0 => out[at] = chance.next() as u8,
            1 => drop(out.drain(at..(at + chance.below(9)).min(out.len()))),
            _ => out.insert(at, b"{}[],:\"0-"[chance.below(9)]),
        }
        if out.is_empty() {
            out.push(b'{');
        }
    }
    out
}

fn odd(chance: &mut Chance) -> Value {
    let number = [0, 1, -1, i64::MIN, i64::MAX, 1 << 31, 1 << 32, 8191, 8192];
    let text = [
        "",
        "/",
        ".",
        "..",
        ":",
        "a:b:c",
        "-",
        "0-8191",
        "8191-0",
        "\u{0}",
        "é/ü",
        "CAP_ALL",
        "rro",
        "size=1",
        "r",
        "=",
        "max",
        "/proc/self/fd/9",
        "a-b.slice:c:d",
    ];
    match chance.below(7) {
        0 => Value::Null,
        1 => json!(chance.below(2) == 0),
        2 => json!(chance.one_of(&number)),
        3 => json!(chance.next()),
        4 => json!(chance.one_of(&text)),
        5 => json!([chance.one_of(&text).repeat(1 + chance.below(400))]),
        _ => json!({ chance.one_of(&text): chance.one_of(&number) }),
    }
}
