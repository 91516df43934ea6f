//! Chance for tests that feed a parser what nobody would write: a corpus, and what becomes of it. Also the seccomp
//! crate's.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

/// splitmix64.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// The files of `tests/corpus` with their names.
pub(crate) fn corpus(package: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(package).join("tests/corpus");
    let files = fs::read_dir(dir).expect("corpus").map(|e| e.expect("entry").path());
    let mut all: Vec<_> =
        files.map(|p| (p.display().to_string(), fs::read(&p).expect("read"))).collect();
    all.sort();
    assert!(all.len() >= 4, "the corpus is there");
    all
}

/// Asks again and again what chance makes of a file, for `FUZZ_SECONDS` (default 2). Each question comes with a
/// sentence that says how to ask it again.
pub(crate) fn for_a_while(
    corpus: &[(String, Vec<u8>)],
    rounds_min: u64,
    ask: impl Fn(&mut Chance, &[u8], &str),
) {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2);
    let until = Instant::now() + Duration::from_secs(seconds);
    let seed = SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_nanos() as u64;
    let (mut chance, mut rounds) = (Chance(seed), 0);
    while Instant::now() < until {
        let (name, text) = &corpus[chance.below(corpus.len())];
        ask(&mut chance, text, &format!("seed {seed}, round {rounds}, from {name}"));
        rounds += 1;
    }
    assert!(rounds > rounds_min, "{rounds} rounds in {seconds} s");
}

/// JSON with some of its values changed: each time a random way down leads to a list that grows by up to `copies_max`,
/// or to something `odd`.
pub(crate) fn changed(
    text: &[u8],
    chance: &mut Chance,
    copies_max: usize,
    odd: fn(&mut Chance) -> Value,
) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(text).expect("the corpus is JSON");
    for _ in 0..=chance.below(4) {
        change(&mut value, chance, copies_max, odd);
    }
    value.to_string().into_bytes()
}

fn change(
    value: &mut Value,
    chance: &mut Chance,
    copies_max: usize,
    odd: fn(&mut Chance) -> Value,
) {
    let stop = chance.below(5) == 0;
    match value {
        Value::Object(map) if !map.is_empty() && !stop => {
            let at = chance.below(map.len());
            if let Some((_, inner)) = map.iter_mut().nth(at) {
                change(inner, chance, copies_max, odd);
            }
        }
        Value::Array(list) if !list.is_empty() && !stop => {
            let at = chance.below(list.len());
            if chance.below(4) == 0 {
                let copies = 1 + chance.below(copies_max);
                let one = list[at].clone();
                list.extend(std::iter::repeat_n(one, copies));
            } else {
                change(&mut list[at], chance, copies_max, odd);
            }
        }
        other => *other = odd(chance),
    }
}
