//! Reads an untyped document field by field and collects every mistake with its path, because a
//! derived deserializer stops at the first one and cannot say what is not supported by name.

use std::{cell::RefCell, collections::BTreeMap, fmt};

use serde_json::{Map, Value};

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// As in `spec.containers[0].image`.
    pub(crate) path: String,
    pub(crate) problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.path, self.problem)
    }
}

/// Every mistake found so far.
#[derive(Debug, Default)]
pub(crate) struct Faults(RefCell<Vec<Fault>>);

impl Faults {
    pub(crate) fn add(&self, path: impl Into<String>, problem: impl Into<String>) {
        self.0.borrow_mut().push(Fault { path: path.into(), problem: problem.into() });
    }

    pub(crate) fn into_vec(self) -> Vec<Fault> {
        self.0.into_inner()
    }
}

/// One mapping of the document. Fields that nobody asked for are refused when it is done; a field
/// that is null says nothing and counts as absent.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
    known: Vec<&'static str>,
    faults: &'a Faults,
}

impl<'a> Fields<'a> {
    /// Reads `value` as a mapping, then refuses what `read` left over.
    pub(crate) fn read<T>(
        path: &str,
        value: &'a Value,
        faults: &'a Faults,
        read: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        let Value::Object(map) = value else {
            faults.add(here(path), format!("must be a mapping, not {}", kind(value)));
            return None;
        };
        let mut fields = Self { path: path.to_owned(), map, known: Vec::new(), faults };
        let answer = read(&mut fields);
        fields.refuse_the_rest();
        Some(answer)
    }

    /// The path of a field of this mapping.
    pub(crate) fn path(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    pub(crate) fn fault(&self, key: &str, problem: impl Into<String>) {
        self.faults.add(self.path(key), problem);
    }

    /// Reports a mistake of the mapping as a whole.
    pub(crate) fn fault_here(&self, problem: impl Into<String>) {
        self.faults.add(here(&self.path), problem);
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    pub(crate) fn is_empty_list(&self, key: &str) -> bool {
        self.map.get(key).and_then(Value::as_array).is_some_and(Vec::is_empty)
    }

    pub(crate) fn string(&mut self, key: &'static str) -> Option<String> {
        let value = self.take(key)?;
        self.as_string(&self.path(key), value)
    }

    pub(crate) fn required(&mut self, key: &'static str) -> String {
        if !self.has(key) {
            self.known.push(key);
            self.fault(key, "is missing");
            return String::new();
        }
        self.string(key).unwrap_or_default()
    }

    pub(crate) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        if value.as_bool().is_none() {
            self.fault(key, format!("must be true or false, not {}", kind(value)));
        }
        value.as_bool()
    }

    /// A whole number within `range`.
    pub(crate) fn integer(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<i64> {
        let value = self.take(key)?;
        self.as_integer(&self.path(key), value, &range)
    }

    /// One of the listed words.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let word = self.string(key)?;
        let found = choices.iter().find(|(name, _)| *name == word);
        if found.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.fault(key, format!("must be one of {}, not {word:?}", names.join(", ")));
        }
        found.map(|(_, choice)| *choice)
    }

    pub(crate) fn strings(&mut self, key: &'static str) -> Vec<String> {
        let items = self.items(key);
        items.into_iter().filter_map(|(path, value)| self.as_string(&path, value)).collect()
    }

    pub(crate) fn string_map(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let path = self.path(key);
        match self.take(key) {
            None => BTreeMap::new(),
            Some(Value::Object(map)) => map
                .iter()
                .filter_map(|(name, value)| {
                    let value = self.as_string(&format!("{path}[{name:?}]"), value)?;
                    Some((name.clone(), value))
                })
                .collect(),
            Some(value) => {
                self.fault(key, format!("must be a mapping, not {}", kind(value)));
                BTreeMap::new()
            }
        }
    }

    pub(crate) fn object<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Fields<'a>) -> T,
    ) -> Option<T> {
        let value = self.take(key)?;
        Fields::read(&self.path(key), value, self.faults, read)
    }

    pub(crate) fn objects<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Fields<'a>) -> T,
    ) -> Vec<T> {
        let items = self.items(key);
        items
            .into_iter()
            .filter_map(|(path, value)| Fields::read(&path, value, self.faults, &mut read))
            .collect()
    }

    /// A text or number, as Kubernetes writes quantities.
    pub(crate) fn scalar(&mut self, key: &'static str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            value => {
                self.fault(key, format!("must be a quantity, not {}", kind(value)));
                None
            }
        }
    }

    pub(crate) fn integers(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Vec<i64> {
        let items = self.items(key);
        items
            .into_iter()
            .filter_map(|(path, value)| self.as_integer(&path, value, &range))
            .collect()
    }

    /// Says nothing about a field, whatever is in it.
    pub(crate) fn ignore(&mut self, key: &'static str) {
        self.known.push(key);
    }

    /// Reports a field that is not there; one that is there and wrong has been reported.
    pub(crate) fn needs(&self, key: &str) {
        if !self.has(key) {
            self.fault(key, "is missing");
        }
    }

    /// Accepts a field that says nothing when it is empty, as `status: {}` does.
    pub(crate) fn only_empty(&mut self, key: &'static str) {
        if self.map.get(key).and_then(Value::as_object).is_some_and(Map::is_empty) {
            self.known.push(key);
        }
    }

    fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn items(&mut self, key: &'static str) -> Vec<(String, &'a Value)> {
        let path = self.path(key);
        match self.take(key) {
            None => Vec::new(),
            Some(Value::Array(items)) => items
                .iter()
                .enumerate()
                .map(|(index, value)| (format!("{path}[{index}]"), value))
                .collect(),
            Some(value) => {
                self.fault(key, format!("must be a list, not {}", kind(value)));
                Vec::new()
            }
        }
    }

    fn as_integer(
        &self,
        path: &str,
        value: &Value,
        range: &std::ops::RangeInclusive<i64>,
    ) -> Option<i64> {
        let number = value.as_i64().filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            let found = if value.is_number() { value.to_string() } else { kind(value).to_owned() };
            let problem = format!("must be a whole number of {least} to {most}, not {found}");
            self.faults.add(path, problem);
        }
        number
    }

    fn as_string(&self, path: &str, value: &Value) -> Option<String> {
        match value {
            Value::String(text) if text.contains('\0') => {
                self.faults.add(path, "must not contain a NUL character");
                None
            }
            Value::String(text) => Some(text.clone()),
            Value::Bool(_) | Value::Number(_) => {
                let problem = format!("must be a text: write \"{value}\" in quotes");
                self.faults.add(path, problem);
                None
            }
            _ => {
                self.faults.add(path, format!("must be a text, not {}", kind(value)));
                None
            }
        }
    }

    fn refuse_the_rest(self) {
        for (key, value) in self.map {
            if value.is_null() || self.known.contains(&key.as_str()) {
                continue;
            }
            let mut problem = "is not supported by lapstrake run".to_owned();
            if let Some(near) = self.known.iter().find(|known| is_slip_of(key, known)) {
                problem.push_str(&format!(" (did you mean {near}?)"));
            }
            self.fault(key, problem);
        }
    }
}

fn here(path: &str) -> &str {
    if path.is_empty() { "the document" } else { path }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// Whether `word` is `known` with another case or with at most two letters wrong: what a slip of
/// the finger makes of it. Short words are too near to each other to guess.
fn is_slip_of(word: &str, known: &str) -> bool {
    const SLIPS_MAX: usize = 2;
    const GUESSABLE_LENGTH_MIN: usize = 5;
    word.eq_ignore_ascii_case(known)
        || (known.len() >= GUESSABLE_LENGTH_MIN
            && word.len().abs_diff(known.len()) <= SLIPS_MAX
            && edits(word.as_bytes(), known.as_bytes()) <= SLIPS_MAX)
}

/// Levenshtein distance, one row at a time.
fn edits(left: &[u8], right: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, letter) in left.iter().enumerate() {
        let mut diagonal = above;
        row[0] = above + 1;
        for (column, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(value: &Value, read: impl FnOnce(&mut Fields<'_>)) -> Vec<String> {
        let faults = Faults::default();
        Fields::read("", value, &faults, read);
        faults.into_vec().iter().map(Fault::to_string).collect()
    }

    #[test]
    fn every_mistake_is_reported_with_its_path() {
        let document = json!({"spec": {"count": "7", "names": ["a", 1], "extra": {}}});
        let found = faults(&document, |top| {
            top.required("name");
            top.object("spec", |spec| {
                spec.integer("count", 0..=9);
                spec.strings("names");
            });
        });
        assert_eq!(
            found,
            [
                "name is missing",
                "spec.count must be a whole number of 0 to 9, not a text",
                "spec.names[1] must be a text: write \"1\" in quotes",
                "spec.extra is not supported by lapstrake run",
            ]
        );
    }

    #[test]
    fn a_null_field_counts_as_absent() {
        let found = faults(&json!({"a": null, "unknown": null}), |top| {
            assert_eq!(top.string("a"), None);
        });
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn a_slip_of_the_finger_gets_a_suggestion() {
        for (word, expect) in [
            ("contianers", Some("containers")),
            ("Containers", Some("containers")),
            ("container", Some("containers")),
            ("tolerations", None),
        ] {
            let found = faults(&json!({word: []}), |top| {
                top.strings("containers");
            });
            let hint = expect.map_or(String::new(), |near| format!(" (did you mean {near}?)"));
            assert_eq!(found, [format!("{word} is not supported by lapstrake run{hint}")]);
        }
    }
}
