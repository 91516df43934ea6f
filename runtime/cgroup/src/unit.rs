//! systemd's names for groups: `slice:prefix:name` is a scope unit, and the unit is a path. Pure.

use crate::Error;

/// A scope that systemd makes for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// `kubepods-pod12.slice`
    pub slice: String,
    /// `lapstrake-0123.scope`
    pub scope: String,
}

/// Where a unit goes that names no slice.
const DEFAULT_SLICE: &str = "system.slice";
/// Longer names are refused by systemd.
const NAME_MAX: usize = 255;

impl Unit {
    /// Whether a `cgroupsPath` is in this form rather than a path.
    pub fn is_form(path: &str) -> bool {
        path.contains(':')
    }

    /// Reads `slice:prefix:name`; an empty slice is the system's.
    ///
    /// # Errors
    /// Another form, or a name that systemd would not take.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let fail = |why: &str| Err(Error::BadPath(format!("{text:?} {why}")));
        let parts: Vec<&str> = text.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            return fail("is not of the form slice:prefix:name");
        };
        let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
        let scope = if prefix.is_empty() {
            format!("{name}.scope")
        } else {
            format!("{prefix}-{name}.scope")
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.@\\".contains(c);
        if name.is_empty() || scope.len() > NAME_MAX || !scope.chars().all(allowed) {
            return fail("is no name for a unit: 1 to 255 letters, digits, `-`, `_`, `.` and `@`");
        }
        slice_path(slice)?;
        Ok(Self { slice: slice.to_owned(), scope })
    }

    /// The unit whose group this is, when it is a scope in a slice.
    pub fn of_group(group: &str) -> Option<Self> {
        let (slices, scope) = group.rsplit_once('/')?;
        let slice = slices.rsplit('/').next()?;
        let fits = scope.ends_with(".scope") && slice_path(slice).ok()? == slices;
        fits.then(|| Self { slice: slice.to_owned(), scope: scope.to_owned() })
    }

    /// The group's path, in every hierarchy.
    pub fn group(&self) -> String {
        let slice = slice_path(&self.slice).unwrap_or_default(); // it was checked when it was read
        format!("{slice}/{}", self.scope)
    }
}

/// A slice's path: `a-b.slice` lies in `a.slice`. The root slice `-.slice` is the empty path.
///
/// # Errors
/// What is no name of a slice.
pub fn slice_path(slice: &str) -> Result<String, Error> {
    let fail = || Error::BadPath(format!("{slice:?} is no name of a systemd slice (a-b.slice)"));
    let name = slice.strip_suffix(".slice").ok_or_else(fail)?;
    if name == "-" {
        return Ok(String::new());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.@\\".contains(c);
    let parts: Vec<&str> = name.split('-').collect();
    if slice.len() > NAME_MAX || parts.iter().any(|p| p.is_empty() || !p.chars().all(allowed)) {
        return Err(fail());
    }
    Ok((1..=parts.len()).map(|n| format!("/{}.slice", parts[..n].join("-"))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_lies_in_those_that_its_name_begins_with() {
        for (slice, path) in [
            ("system.slice", "/system.slice"),
            ("-.slice", ""),
            (
                "kubepods-besteffort-pod1_2.slice",
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice",
            ),
        ] {
            assert_eq!(slice_path(slice).expect(slice), path);
        }
        for bad in ["", "system", ".slice", "a--b.slice", "-a.slice", "a-.slice", "a/b.slice"] {
            assert!(slice_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_three_parts_are_a_scope_in_a_slice() {
        for (text, group) in [
            ("a-b.slice:lap:c1", "/a.slice/a-b.slice/lap-c1.scope"),
            (":lap:c1", "/system.slice/lap-c1.scope"),
            ("-.slice::c1", "/c1.scope"),
        ] {
            assert_eq!(Unit::parse(text).expect(text).group(), group);
        }
        let unit = Unit::parse("a-b.slice:lap:c1").expect("a unit");
        assert_eq!(Unit::of_group(&unit.group()), Some(unit));
        for other in ["/a/c1", "/a.slice/c1", "/b/a.slice/c1.scope", "c1.scope", ""] {
            assert_eq!(Unit::of_group(other), None, "{other:?}");
        }
        for bad in ["a.slice:b", "a.slice:b:c:d", "a.slice:b:", "a.slice:b:x/y", "a:b:c"] {
            assert!(Unit::parse(bad).is_err(), "{bad:?}");
        }
    }
}
