//! One device rule, checked: what it matches and what it says about it.

use std::fmt;

use crate::Error;
use crate::resources::DeviceRule;

pub(super) const FIELD: &str = "linux.resources.devices";

/// Kinds of access as the kernel's BPF context counts them (BPF_DEVCG_ACC_*), with their letters.
pub(super) const ACCESS: [(char, i32); 3] = [('r', 2), ('w', 4), ('m', 1)];
/// All of them.
pub(super) const EVERY_ACCESS: i32 = 7;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) allow: bool,
    /// None: character and block devices.
    pub(super) kind: Option<Kind>,
    /// None: any.
    pub(super) major: Option<i32>,
    pub(super) minor: Option<i32>,
    /// Bits of `ACCESS`.
    pub(super) access: i32,
}

/// With the kernel's numbers (BPF_DEVCG_DEV_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Block = 1,
    Char = 2,
}

impl Rule {
    pub(super) fn read(rule: &DeviceRule) -> Result<Self, Error> {
        let bad = |reason: String| Error::BadResource { field: FIELD.into(), reason };
        let kind = match rule.kind.as_deref().unwrap_or("a") {
            "a" => None,
            "b" => Some(Kind::Block),
            "c" => Some(Kind::Char),
            other => return Err(bad(format!("type {other:?} is none of a, b, c"))),
        };
        let letters = rule.access.as_deref().filter(|a| !a.is_empty()).unwrap_or("rwm");
        let access = letters.chars().try_fold(0, |bits, letter| {
            // `a` for all, as for the type, is in use, but no letter of the specification: it closes, and opens nothing.
            if letter == 'a' {
                return Ok(if rule.allow { bits } else { EVERY_ACCESS });
            }
            let known = ACCESS.iter().find(|(l, _)| *l == letter);
            known
                .map(|(_, bit)| bits | bit)
                .ok_or_else(|| bad(format!("access {letters:?} has letters other than r, w, m")))
        })?;
        // Negative is how some callers write "any".
        let number = |n: Option<i64>| {
            let given = n.filter(|n| *n >= 0);
            given
                .map(|n| i32::try_from(n).map_err(|_| bad(format!("{n} is no device number"))))
                .transpose()
        };
        let (major, minor) = (number(rule.major)?, number(rule.minor)?);
        Ok(Self { allow: rule.allow, kind, major, minor, access })
    }

    /// From the text form of the v1 files.
    pub(super) fn allow(text: &str) -> Result<Self, Error> {
        let mut parts = text.split([' ', ':']).map(str::to_owned);
        let kind = parts.next();
        let mut number = || parts.next().and_then(|n| n.parse().ok());
        let (major, minor) = (number(), number());
        Self::read(&DeviceRule { allow: true, kind, major, minor, access: parts.next() })
    }

    /// It matches whatever is asked for.
    pub(super) fn is_total(&self) -> bool {
        (self.kind, self.major, self.minor, self.access) == (None, None, None, EVERY_ACCESS)
    }
}

/// The text form of the v1 files.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            None => 'a',
            Some(Kind::Block) => 'b',
            Some(Kind::Char) => 'c',
        };
        let number = |n: Option<i32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let (major, minor) = (number(self.major), number(self.minor));
        let letters = ACCESS.iter().filter(|(_, bit)| self.access & bit != 0).map(|(l, _)| l);
        write!(f, "{kind} {major}:{minor} {}", letters.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_rule_is_refused_by_what_is_wrong_with_it() {
        let letter = DeviceRule { access: Some("rx".into()), ..Default::default() };
        let kind = DeviceRule { kind: Some("d".into()), ..Default::default() };
        let number = DeviceRule { major: Some(1 << 40), ..Default::default() };
        for (rule, want) in [(letter, "\"rx\""), (kind, "\"d\""), (number, "1099511627776")] {
            let error = Rule::read(&rule).expect_err(want).to_string();
            assert!(error.starts_with(FIELD) && error.contains(want), "{error}");
        }
    }

    #[test]
    fn an_a_among_the_letters_denies_everything_and_allows_nothing_more() {
        let rule = |allow| DeviceRule {
            allow,
            kind: Some("c".into()),
            major: Some(1),
            minor: Some(11),
            access: Some("rwa".into()),
        };
        assert_eq!(Rule::read(&rule(false)).expect("deny").to_string(), "c 1:11 rwm");
        assert_eq!(Rule::read(&rule(true)).expect("allow").to_string(), "c 1:11 rw");
    }

    #[test]
    fn a_rule_reads_back_as_it_was_written() {
        for text in ["c *:* m", "b 8:1 rw", "a *:* rwm", "c 136:* r"] {
            assert_eq!(Rule::allow(text).expect(text).to_string(), text);
        }
    }
}
