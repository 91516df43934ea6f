//! What `registries.conf` and its drop-ins say: which registries a short name may mean, where a
//! name's content lives instead, what is blocked. Read anew for every pull; deciding is pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::Error;
use crate::reference::Reference;

/// The whole configuration, drop-ins applied.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registries {
    /// Registries that a short name may be in, in the order to try.
    search: Vec<String>,
    enforcing: bool,
    aliases: BTreeMap<String, String>,
    registries: Vec<Registry>,
    /// The main file; none was found: the defaults are at work.
    pub(crate) file: Option<PathBuf>,
}

/// Where to get an image from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// `host[:port]`.
    pub(crate) host: String,
    /// The repository there.
    pub(crate) path: String,
    /// Unencrypted, or encrypted without a certificate anybody knows, is good enough.
    pub(crate) insecure: bool,
    pub(crate) mirror: bool,
}

/// Why a name is not looked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("registries under {0:?} are blocked")]
    Blocked(String),
    #[error(
        "the short name could mean an image in any of {0}; write the whole name, or add an alias"
    )]
    Ambiguous(String),
    #[error("the location {0:?} is no image name")]
    Location(String),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Registry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default, rename = "mirror")]
    mirrors: Vec<Mirror>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: PullFrom,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFrom {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

/// One file, as written. Keys that other tools read (credential helpers, push settings) may stand
/// in it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<String>>,
    short_name_mode: Option<Mode>,
    #[serde(default, rename = "registry")]
    registries: Vec<Registry>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Enforcing,
    Permissive,
    Disabled,
}

/// What a short name means without any configuration.
const DEFAULT_SEARCH: &str = "docker.io";
/// A file of more entries is not one that somebody wrote.
const REGISTRIES_MAX: usize = 4096;

impl Registries {
    /// The first of `files` that exists, with the drop-ins in the directory `<file>.d`.
    pub(crate) fn load(files: &[PathBuf]) -> Result<Registries, Error> {
        let mut all = Registries::default();
        for file in files {
            let drop_ins = drop_ins(file)?;
            let text = super::hosts::read(file)?;
            if text.is_none() && drop_ins.is_empty() {
                continue;
            }
            all.file = Some(file.clone());
            if let Some(text) = text {
                all.add(file, &text)?;
            }
            for path in drop_ins {
                if let Some(text) = super::hosts::read(&path)? {
                    all.add(&path, &text)?;
                }
            }
            break;
        }
        Ok(all)
    }

    fn add(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        let bad = |reason: String| Error::HostsFile { path: path.to_owned(), reason };
        // `[registries.search]` and `[[registry]]` are different versions of the file.
        if text.lines().any(|line| line.trim_start().starts_with("[registries.")) {
            return Err(bad(
                "it has the form of version 1; write it with [[registry]] tables".into()
            ));
        }
        let file: File = toml::from_str(text).map_err(|e| bad(e.to_string()))?;
        if file.registries.len() > REGISTRIES_MAX {
            return Err(bad(format!("it has more than {REGISTRIES_MAX} registries")));
        }
        if let Some(search) = file.unqualified_search_registries {
            self.search = search;
        }
        if let Some(mode) = file.short_name_mode {
            self.enforcing = mode == Mode::Enforcing;
        }
        self.aliases.extend(file.aliases);
        for mut registry in file.registries {
            if registry.prefix.is_empty() {
                registry.prefix.clone_from(&registry.location);
            }
            if registry.prefix.is_empty() {
                return Err(bad("a [[registry]] has neither prefix nor location".into()));
            }
            // A later file replaces what an earlier one says about the same prefix.
            self.registries.retain(|known| known.prefix != registry.prefix);
            self.registries.push(registry);
        }
        Ok(())
    }

    /// The whole names that `text` may stand for, in the order to try them. One that has a
    /// registry in it is the only one.
    pub(crate) fn candidates(&self, text: &str) -> Result<Vec<String>, Refusal> {
        let Some((name, rest)) = Reference::short(text) else { return Ok(vec![text.to_owned()]) };
        if let Some(target) = self.aliases.get(name).filter(|target| !target.is_empty()) {
            return Ok(vec![format!("{target}{rest}")]);
        }
        match self.search.as_slice() {
            [] => Ok(vec![format!("{DEFAULT_SEARCH}/{text}")]),
            [_, _, ..] if self.enforcing => Err(Refusal::Ambiguous(self.search.join(", "))),
            search => Ok(search.iter().map(|registry| format!("{registry}/{text}")).collect()),
        }
    }

    /// Where to look for `reference`: mirrors first, the place itself last.
    pub(crate) fn locations(&self, reference: &Reference) -> Result<Vec<Location>, Refusal> {
        let name = reference.name();
        let matching = self.registries.iter().filter_map(|registry| {
            matched(&registry.prefix, &name).map(|length| (length, registry))
        });
        // The longest prefix wins; one that names the host goes before one with a wildcard.
        let best = matching.max_by_key(|(length, r)| (*length, !r.prefix.starts_with("*.")));
        let Some((length, registry)) = best else {
            let (host, path) = (reference.domain().to_owned(), reference.path().to_owned());
            return Ok(vec![Location { host, path, insecure: false, mirror: false }]);
        };
        if registry.blocked {
            return Err(Refusal::Blocked(registry.prefix.clone()));
        }
        let by_digest = reference.digest().is_some();
        let wanted = |mirror: &&Mirror| match mirror.pull_from_mirror {
            PullFrom::All => by_digest || !registry.mirror_by_digest_only,
            PullFrom::DigestOnly => by_digest,
            PullFrom::TagOnly => !by_digest,
        };
        let rest = &name[length..];
        let place = |location: &str, insecure, mirror| {
            let whole =
                if location.is_empty() { name.clone() } else { format!("{location}{rest}") };
            let (host, path) =
                whole.split_once('/').ok_or_else(|| Refusal::Location(whole.clone()))?;
            Ok(Location { host: host.to_owned(), path: path.to_owned(), insecure, mirror })
        };
        let mirrors = registry.mirrors.iter().filter(wanted);
        mirrors
            .map(|mirror| place(&mirror.location, mirror.insecure, true))
            .chain([place(&registry.location, registry.insecure, false)])
            .collect()
    }
}

/// How much of `name` the prefix covers; only whole components count.
fn matched(prefix: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*').filter(|rest| rest.starts_with('.')) {
        let host = name.split('/').next().unwrap_or_default();
        let bare = host.split(':').next().unwrap_or_default();
        return bare.ends_with(domain).then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with(['/', ':', '@'])).then_some(prefix.len())
}

fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut directory = file.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = crate::store::layout::names(&directory)?;
    names.retain(|name| name.ends_with(".conf"));
    names.sort();
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Registries {
        let mut all = Registries::default();
        all.add(Path::new("registries.conf"), text).unwrap();
        all
    }

    #[track_caller]
    fn check_names(text: &str, name: &str, expect: &[&str]) {
        assert_eq!(load(text).candidates(name).unwrap(), expect, "{name}");
    }

    #[test]
    fn short_names_mean_what_aliases_and_the_search_list_say() {
        let search = "unqualified-search-registries = ['a.example', 'b.example:5000']\n\
                      [aliases]\nfedora = 'registry.example/fedora'\n'ns/x' = 'r.example/y'\n";
        check_names("", "busybox", &["docker.io/busybox"]);
        check_names("", "busybox:1", &["docker.io/busybox:1"]);
        check_names(search, "x:1", &["a.example/x:1", "b.example:5000/x:1"]);
        check_names(search, "fedora:40", &["registry.example/fedora:40"]);
        check_names(search, "ns/x", &["r.example/y"]);
        check_names(search, "r.example/fedora:40", &["r.example/fedora:40"]);
        check_names(search, "localhost/x", &["localhost/x"]);
        let enforcing = load(&format!("short-name-mode = 'enforcing'\n{search}"));
        assert!(matches!(enforcing.candidates("x"), Err(Refusal::Ambiguous(_))));
        assert_eq!(enforcing.candidates("fedora").unwrap(), ["registry.example/fedora"]);
    }

    const PLACES: &str = "
        [[registry]]
        prefix = 'r.example/team'
        location = 'inner.example/mirrored'
        insecure = true
        [[registry.mirror]]
        location = 'm1.example'
        [[registry.mirror]]
        location = 'm2.example/deep'
        pull-from-mirror = 'digest-only'
        [[registry.mirror]]
        location = 'm3.example'
        pull-from-mirror = 'tag-only'
        [[registry]]
        prefix = 'r.example/team/secret'
        blocked = true
        [[registry]]
        location = 'plain.example:5000'
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = 'm4.example/x'
        [[registry]]
        prefix = '*.wild.example'
        insecure = true
    ";

    #[track_caller]
    fn check_places(name: &str, expect: Result<&[&str], Refusal>) {
        let reference = Reference::parse(name).unwrap();
        let found = load(PLACES).locations(&reference).map(|places| {
            let shown = |place: Location| {
                let flags = [(place.insecure, " insecure"), (place.mirror, " mirror")];
                let flags: String = flags.iter().filter(|f| f.0).map(|f| f.1).collect();
                format!("{}/{}{flags}", place.host, place.path)
            };
            places.into_iter().map(shown).collect::<Vec<_>>()
        });
        let expect =
            expect.map(|places| places.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(found, expect, "{name}");
    }

    #[test]
    fn the_longest_prefix_says_where_a_name_lives() {
        let digest = format!("r.example/team/a@sha256:{}", "a".repeat(64));
        let last = "inner.example/mirrored/a insecure";
        check_places("other.example/a", Ok(&["other.example/a"]));
        check_places("r.example/team/a", Ok(&["m1.example/a mirror", "m3.example/a mirror", last]));
        check_places(&digest, Ok(&["m1.example/a mirror", "m2.example/deep/a mirror", last]));
        check_places("r.example/teams/a", Ok(&["r.example/teams/a"]));
        let blocked = Refusal::Blocked("r.example/team/secret".into());
        check_places("r.example/team/secret/a", Err(blocked));
        check_places("plain.example:5000/a", Ok(&["plain.example:5000/a"]));
        check_places("x.wild.example/a", Ok(&["x.wild.example/a insecure"]));
        check_places("x.y.wild.example:81/a", Ok(&["x.y.wild.example:81/a insecure"]));
        check_places("wild.example/a", Ok(&["wild.example/a"]));
    }

    #[test]
    fn drop_ins_replace_prefixes_and_the_old_form_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("registries.conf");
        std::fs::create_dir(root.path().join("registries.conf.d")).unwrap();
        std::fs::write(&file, PLACES).unwrap();
        let drop_in = "unqualified-search-registries = ['q.example']\n\
                       [[registry]]\nprefix = 'r.example/team'\nlocation = 'z.example'\n";
        std::fs::write(root.path().join("registries.conf.d/50-z.conf"), drop_in).unwrap();
        let all = Registries::load(&[root.path().join("none"), file.clone()]).unwrap();
        let reference = Reference::parse("r.example/team/a").unwrap();
        assert_eq!(all.locations(&reference).unwrap()[0].host, "z.example");
        assert_eq!(all.candidates("a").unwrap(), ["q.example/a"]);
        std::fs::write(&file, "[registries.search]\nregistries = ['a']\n").unwrap();
        let error = Registries::load(&[file]).unwrap_err().to_string();
        assert!(error.contains("version 1") && error.contains("registries.conf"), "{error}");
    }
}
