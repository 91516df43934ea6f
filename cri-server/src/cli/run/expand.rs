//! `$(NAME)` references in commands, arguments and environment, as Kubernetes expands them. Pure.

/// Replaces each `$(NAME)` that `lookup` knows. An unknown reference stays as it is written, `$$`
/// stands for one `$` (so `$$(NAME)` is never expanded), and any other `$` means itself.
pub(crate) fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        let reference = after.strip_prefix('(').and_then(|open| open.split_once(')'));
        if let Some((name, behind)) = reference {
            match lookup(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.push_str(&format!("$({name})")),
            }
            rest = behind;
        } else {
            expanded.push('$');
            rest = after.strip_prefix('$').unwrap_or(after);
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_and_everything_else_is_kept() {
        for (text, expect) in [
            ("$(A)", "one"),
            ("x-$(A)-$(B)-y", "x-one-two words-y"),
            ("$(A)$(A)", "oneone"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$()", "$()"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$one"),
            ("$$$$(A)", "$$(A)"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("a$", "a$"),
            ("$A ${A} $ é$(A)", "$A ${A} $ éone"),
            ("", ""),
            ("$(NESTED)", "$(A)"),
        ] {
            let lookup = |name: &str| match name {
                "A" => Some("one"),
                "B" => Some("two words"),
                "NESTED" => Some("$(A)"),
                _ => None,
            };
            assert_eq!(expand(text, lookup), expect, "{text}");
        }
    }
}
