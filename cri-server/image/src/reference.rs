//! Image references as people write them, made whole: `busybox` is `docker.io/library/busybox:latest`.

use std::fmt;

use crate::digest::Digest;

/// A parsed reference with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("it is empty")]
    Empty,
    #[error("it is longer than {REFERENCE_MAX} bytes")]
    TooLong,
    #[error("the registry host {0:?} is malformed")]
    Host(String),
    #[error("the repository name must be lower case")]
    UpperCase,
    #[error("the repository name {0:?} is malformed")]
    Path(String),
    #[error("the repository name is longer than {NAME_MAX} characters")]
    NameTooLong,
    #[error("64 hexadecimal digits are an image id, not a name")]
    LooksLikeId,
    #[error("the tag {0:?} is malformed")]
    Tag(String),
    #[error(transparent)]
    Digest(#[from] crate::digest::NotADigest),
}

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// The distribution specification's bound on a repository name.
const NAME_MAX: usize = 255;
/// The distribution specification's bound on a tag.
const TAG_MAX: usize = 128;
/// A name, a tag and a sha512 digest with their separators fit.
const REFERENCE_MAX: usize = NAME_MAX + TAG_MAX + 140;

impl Reference {
    /// Parses `[host[:port]/]path[:tag][@digest]`. A reference with neither tag nor digest gets the
    /// tag `latest`; one with both keeps both, and the digest decides what is pulled.
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > REFERENCE_MAX {
            return Err(ReferenceError::TooLong);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let name_at = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_at..].find(':') {
            Some(colon) if name_at > 0 || !is_bare_host(&rest[name_at..]) => {
                (&rest[..name_at + colon], Some(&rest[name_at + colon + 1..]))
            }
            Some(_) | None => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let (domain, path) = split_domain(name);
        check_host(&domain)?;
        check_path(&path)?;
        if domain.len() + 1 + path.len() > NAME_MAX {
            return Err(ReferenceError::NameTooLong);
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Reference { domain, path, tag, digest })
    }

    /// A name without a registry in it, and what follows the name (`:tag`, `@digest`).
    pub(crate) fn short(text: &str) -> Option<(&str, &str)> {
        let end = text.find('@').unwrap_or(text.len());
        let name_at = text[..end].rfind('/').map_or(0, |slash| slash + 1);
        let colon = text[name_at..end].find(':').map(|colon| name_at + colon);
        let (name, rest) = text.split_at(colon.unwrap_or(end));
        (!name.is_empty() && !is_bare_host(name) && host(name).is_none()).then_some((name, rest))
    }

    /// The registry's name as it stands in the reference, for example `docker.io` or `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry, for example `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// What an image pulled by this reference is listed under as a tag; none for a digest pull.
    pub fn repo_tag(&self) -> Option<String> {
        match (&self.digest, &self.tag) {
            (None, Some(tag)) => Some(format!("{}:{tag}", self.name())),
            (Some(_), _) | (None, None) => None,
        }
    }

    /// `name@digest`.
    pub fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// What to ask the registry for: the digest when there is one, otherwise the tag.
    pub fn wanted(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// A first component is a host when it cannot be part of a short name.
fn host(name: &str) -> Option<(&str, &str)> {
    name.split_once('/').filter(|(first, _)| {
        first.contains(['.', ':'])
            || *first == "localhost"
            || first.bytes().any(|b| b.is_ascii_uppercase())
    })
}

fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = host(name).unwrap_or((DEFAULT_DOMAIN, name));
    let domain = if domain == LEGACY_DEFAULT_DOMAIN { DEFAULT_DOMAIN } else { domain };
    let official = domain == DEFAULT_DOMAIN && !path.contains('/');
    let path = if official { format!("{OFFICIAL_PREFIX}{path}") } else { path.to_owned() };
    (domain.to_owned(), path)
}

/// `[::1]:5000` without a path would otherwise be read as a name with a tag.
fn is_bare_host(text: &str) -> bool {
    text.starts_with('[')
}

fn check_host(domain: &str) -> Result<(), ReferenceError> {
    let bad = || ReferenceError::Host(domain.to_owned());
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or_else(bad)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
        match rest {
            "" => return Ok(()),
            rest => ("v6", Some(rest.strip_prefix(':').ok_or_else(bad)?)),
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        }
    };
    if port.is_some_and(|port| {
        port.parse::<u16>().is_err() || !port.bytes().all(|b| b.is_ascii_digit())
    }) {
        return Err(bad());
    }
    let good_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.split('.').all(good_label) { Ok(()) } else { Err(bad()) }
}

fn check_path(path: &str) -> Result<(), ReferenceError> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase);
    }
    let bare = path.strip_prefix(OFFICIAL_PREFIX).unwrap_or(path);
    if bare.len() == 64 && bare.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(ReferenceError::LooksLikeId);
    }
    if path.split('/').all(good_component) {
        Ok(())
    } else {
        Err(ReferenceError::Path(path.to_owned()))
    }
}

/// Runs of `[a-z0-9]` separated by one `.`, one or two `_`, or any number of `-`.
fn good_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).all(|separator| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
    })
}

fn check_tag(tag: &str) -> Result<(), ReferenceError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if good { Ok(()) } else { Err(ReferenceError::Tag(tag.chars().take(TAG_MAX).collect())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[track_caller]
    fn check(text: &str, expect: &str) {
        assert_eq!(Reference::parse(text).unwrap().to_string(), expect, "{text}");
    }

    #[test]
    fn short_names_are_made_whole() {
        check("busybox", "docker.io/library/busybox:latest");
        check("busybox:1.36", "docker.io/library/busybox:1.36");
        check("user/app", "docker.io/user/app:latest");
        check("index.docker.io/busybox", "docker.io/library/busybox:latest");
        check("docker.io/busybox", "docker.io/library/busybox:latest");
        check("docker.io/library/busybox", "docker.io/library/busybox:latest");
    }

    #[test]
    fn a_first_component_with_dot_port_or_localhost_is_a_registry() {
        check("localhost/app", "localhost/app:latest");
        check("localhost:5000/a/b:v1", "localhost:5000/a/b:v1");
        check("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest");
        check("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10");
        check("[::1]:5000/app:x", "[::1]:5000/app:x");
        check("Upper/app", "Upper/app:latest");
    }

    #[test]
    fn a_digest_takes_no_default_tag() {
        check(&format!("busybox@sha256:{HEX}"), &format!("docker.io/library/busybox@sha256:{HEX}"));
        check(&format!("a.b/c:v1@sha256:{HEX}"), &format!("a.b/c:v1@sha256:{HEX}"));
        let both = Reference::parse(&format!("a.b/c:v1@sha256:{HEX}")).unwrap();
        assert_eq!(both.wanted(), format!("sha256:{HEX}"));
        assert_eq!(both.repo_tag(), None);
    }

    #[test]
    fn malformed_references_are_refused() {
        for bad in [
            "",
            ":",
            "@",
            "a:",
            "a:b:c",
            "a@sha256:12",
            "A",
            "a//b",
            "/a",
            "a/",
            "a..b/c",
            "a___b",
            "-a",
            "a b",
            "a\0b",
            "../../etc",
            "host:port/a",
            "host:99999/a",
            "a:-x",
            "é",
            HEX,
            "[::1/a",
            "[zz]/a",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} was taken");
        }
        assert_eq!(Reference::parse(&"a".repeat(256)), Err(ReferenceError::NameTooLong));
        assert_eq!(Reference::parse(&"a".repeat(9000)), Err(ReferenceError::TooLong));
    }
}
