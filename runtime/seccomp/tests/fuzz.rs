//! Profiles that nobody would write: none may panic, hang or cost much, whatever it says. The corpus is replayed as it
//! is; then its files are changed at random for a bounded time (`FUZZ_SECONDS`, default 2).

#[path = "../../container/tests/chance/mod.rs"]
mod chance;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use seccomp::{Compiler, Profile};
use serde_json::{Value, json};

use chance::{Chance, corpus};

const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");

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

#[test]
fn the_corpus_is_decided_about() {
    let target = Target::new();
    for (name, text) in corpus(PACKAGE) {
        target.must_be_decided(&text, &name);
    }
}

#[test]
fn what_the_corpus_becomes_by_chance_is_decided_about() {
    let target = Target::new();
    chance::for_a_while(&corpus(PACKAGE), 20, |chance, text, from| {
        // Grows: rules upon rules, conditions upon conditions.
        let mut changed = chance::changed(text, chance, 64, odd);
        if chance.below(4) == 0 {
            let at = chance.below(changed.len());
            changed[at] = chance.next() as u8;
        }
        target.must_be_decided(&changed, from);
    });
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
        2 => json!(chance.one_of(&number)),
        3 => json!(chance.next()),
        4 => json!(chance.one_of(&text)),
        _ => json!([chance.one_of(&text).repeat(1 + chance.below(400))]),
    }
}
