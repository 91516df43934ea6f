//! Profiles that nobody would write: none may panic, hang or cost much, whatever it says. The corpus is replayed as it
//! is; then its files are changed at random for a bounded time (`FUZZ_SECONDS`, default 2).

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use seccomp::{Compiler, Profile};
use serde_json::{Value, json};

/// No profile may take longer than this to be compiled, on a busy machine.
const SLOW: Duration = Duration::from_secs(5);

struct Target {
    compiler: Compiler,
    dir: tempfile::TempDir,
}

impl Target {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        Self { compiler: Compiler::open(dir.path().join("programs")).expect("open"), dir }
    }

    /// As a Localhost profile, and as the `linux.seccomp` of a specification. Refusals are fine.
    fn must_be_decided(&self, text: &[u8], from: &str) {
        let file = self.dir.path().join("profile.json");
        fs::write(&file, text).expect("write");
        let begun = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| {
            let _ = self.compiler.program(Profile::File(&file), &["SYS_ADMIN"]);
            let _ = self.compiler.document(Profile::File(&file), &[]);
            if let Ok(spec) = serde_json::from_slice(text) {
                let _ = seccomp::compile(&spec);
            }
        }));
        let shown = String::from_utf8_lossy(text);
        assert!(result.is_ok(), "{from} panics; add it to the corpus: {shown}");
        assert!(begun.elapsed() < SLOW, "{from} takes {:?}: {shown}", begun.elapsed());
    }
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
    let target = Target::new();
    for (name, text) in corpus() {
        target.must_be_decided(&text, &name);
    }
}

#[test]
fn what_the_corpus_becomes_by_chance_is_decided_about() {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2);
    let until = Instant::now() + Duration::from_secs(seconds);
    let (target, corpus) = (Target::new(), corpus());
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970");
    let seed = since.as_nanos() as u64;
    let mut chance = Chance(seed);
    let mut rounds = 0u64;
    while Instant::now() < until {
        let (name, text) = &corpus[chance.below(corpus.len())];
        let mut value: Value = serde_json::from_slice(text).expect("the corpus is JSON");
        for _ in 0..=chance.below(4) {
            change(&mut value, &mut chance);
        }
        let mut changed = value.to_string().into_bytes();
        if chance.below(4) == 0 {
            let at = chance.below(changed.len());
            changed[at] = chance.next() as u8;
        }
        target.must_be_decided(&changed, &format!("seed {seed}, round {rounds}, from {name}"));
        rounds += 1;
    }
    assert!(rounds > 20, "{rounds} rounds in {seconds} s");
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
            if chance.below(4) == 0 {
                // Grows: rules upon rules, conditions upon conditions.
                let copies = 1 + chance.below(64);
                let one = list[at].clone();
                list.extend(std::iter::repeat_n(one, copies));
            } else {
                change(&mut list[at], chance);
            }
        }
        other => *other = odd(chance),
    }
}

fn odd(chance: &mut Chance) -> Value {
    let number = [0, 1, 5, 6, 7, -1, i64::MIN, i64::MAX, 1 << 31, 1 << 32, 4095, 65_536];
    let text = [
        "",
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_NOTIFY",
        "SCMP_CMP_MASKED_EQ",
        "SCMP_CMP_GT",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_S390X",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "read",
        "socketcall",
        "clone3",
        "\u{0}",
        "é",
        "99.99",
        "CAP_ALL",
    ];
    match chance.below(6) {
        0 => Value::Null,
        1 => json!(chance.below(2) == 0),
        2 => json!(number[chance.below(number.len())]),
        3 => json!(chance.next()),
        4 => json!(text[chance.below(text.len())]),
        _ => json!([text[chance.below(text.len())].repeat(1 + chance.below(400))]),
    }
}
