//! Specifications that nobody would write: none may panic, hang or cost much, whatever they say. The corpus is
//! replayed as it is; then its files are changed at random for a bounded time (`FUZZ_SECONDS`, default 2).

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use container::{Facts, Spec};
use serde_json::{Value, json};

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

fn corpus() -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let files = fs::read_dir(dir).expect("corpus").map(|e| e.expect("entry").path());
    let mut all: Vec<_> =
        files.map(|p| (p.display().to_string(), fs::read(&p).expect("read"))).collect();
    all.sort();
    assert!(all.len() >= 4, "the corpus is there");
    all
}

#[test]
fn the_corpus_is_decided_about() {
    for (name, text) in corpus() {
        must_be_decided(&text, &name);
    }
}

#[test]
fn what_the_corpus_becomes_by_chance_is_decided_about() {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2);
    let until = Instant::now() + Duration::from_secs(seconds);
    let corpus = corpus();
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970");
    let seed = since.as_nanos() as u64;
    let mut chance = Chance(seed);
    let mut rounds = 0u64;
    while Instant::now() < until {
        let (name, text) = &corpus[chance.below(corpus.len())];
        let changed = if chance.below(4) == 0 {
            bytes(text, &mut chance)
        } else {
            let mut value: Value = serde_json::from_slice(text).expect("the corpus is JSON");
            for _ in 0..=chance.below(4) {
                change(&mut value, &mut chance);
            }
            value.to_string().into_bytes()
        };
        must_be_decided(&changed, &format!("seed {seed}, round {rounds}, from {name}"));
        rounds += 1;
    }
    assert!(rounds > 100, "{rounds} rounds in {seconds} s");
}

/// splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
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

/// Goes down a random way and puts something else there.
fn change(value: &mut Value, chance: &mut Chance) {
    let stop = chance.below(5) == 0;
    match value {
        Value::Object(map) if !map.is_empty() && !stop => {
            let at = chance.below(map.len());
            if let Some((_, inner)) = map.iter_mut().nth(at) {
                change(inner, chance);
            }
        }
        Value::Array(list) if !list.is_empty() && !stop => {
            let at = chance.below(list.len());
            if chance.below(6) == 0 {
                list.push(list[at].clone());
            } else {
                change(&mut list[at], chance);
            }
        }
        other => *other = odd(chance),
    }
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
        2 => json!(number[chance.below(number.len())]),
        3 => json!(chance.next()),
        4 => json!(text[chance.below(text.len())]),
        5 => json!([text[chance.below(text.len())].repeat(1 + chance.below(400))]),
        _ => json!({ text[chance.below(text.len())]: number[chance.below(number.len())] }),
    }
}
