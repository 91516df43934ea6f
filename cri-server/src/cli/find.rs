//! Finds the pod or container that a user means by an id, the beginning of one, or a name. Pure.

/// Something a user may mean.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) id: String,
    /// From the shortest to the one that tells it from all others.
    pub(crate) names: Vec<String>,
}

/// Why no object, or more than one, was meant.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    #[error("there is no {kind} {word:?}; `lapstrake ps` shows what there is")]
    None { kind: &'static str, word: String },
    #[error("{word:?} may mean any of these {kind}s: {}", matches.join(", "))]
    Many { kind: &'static str, word: String, matches: Vec<String> },
}

/// The one candidate with that id, else with that name, else whose id begins with the word.
pub(crate) fn one<'a>(
    kind: &'static str,
    word: &str,
    candidates: &'a [Candidate],
) -> Result<&'a Candidate, Error> {
    let by_id = |candidate: &Candidate| candidate.id == word;
    let by_name = |candidate: &Candidate| candidate.names.iter().any(|name| name == word);
    let by_prefix = |candidate: &Candidate| !word.is_empty() && candidate.id.starts_with(word);
    let tests: [&dyn Fn(&Candidate) -> bool; 3] = [&by_id, &by_name, &by_prefix];
    for test in tests {
        let matches: Vec<&Candidate> = candidates.iter().filter(|each| test(each)).collect();
        match matches.as_slice() {
            [] => {}
            [candidate] => return Ok(candidate),
            matches => return Err(many(kind, word, matches)),
        }
    }
    Err(Error::None { kind, word: word.to_owned() })
}

fn many(kind: &'static str, word: &str, matches: &[&Candidate]) -> Error {
    let describe = |candidate: &&Candidate| {
        let name = candidate.names.last().map_or("", String::as_str);
        format!("{name} ({})", super::console::short_id(&candidate.id))
    };
    Error::Many { kind, word: word.to_owned(), matches: matches.iter().map(describe).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates() -> Vec<Candidate> {
        [("abc1", "web"), ("abd2", "db"), ("web9", "other"), ("eee4", "db")]
            .map(|(id, name)| Candidate {
                id: id.to_owned(),
                names: vec![name.to_owned(), format!("default/{name}")],
            })
            .to_vec()
    }

    #[test]
    fn an_id_comes_before_a_name_and_a_name_before_the_beginning_of_an_id() {
        let candidates = candidates();
        for (word, expect) in
            [("abc1", "abc1"), ("web", "abc1"), ("default/web", "abc1"), ("abc", "abc1")]
        {
            assert_eq!(one("pod", word, &candidates).unwrap().id, expect, "{word}");
        }
    }

    #[test]
    fn what_is_unknown_or_unclear_is_said() {
        let candidates = candidates();
        for word in ["nothing", ""] {
            let error = one("pod", word, &candidates).unwrap_err();
            assert!(matches!(error, Error::None { .. }), "{word}: {error}");
        }
        let error = one("pod", "db", &candidates).unwrap_err().to_string();
        assert_eq!(
            error,
            r#""db" may mean any of these pods: default/db (abd2), default/db (eee4)"#
        );
        assert!(matches!(one("pod", "ab", &candidates), Err(Error::Many { .. })));
    }
}
