//! What may come in: `policy.json` in the form of containers-policy.json(5), and a list of allowed
//! digests. Reading is here; deciding is pure; fetching signatures is the pull's business.

pub(crate) mod key;
pub(crate) mod signature;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::Error;
use crate::reference::Reference;
use key::Key;

/// All requirements of one image, every one of which must be met.
#[derive(Debug)]
pub(crate) struct Requirements {
    /// The file they stand in.
    pub(crate) file: PathBuf,
    pub(crate) all: Vec<Requirement>,
}

#[derive(Debug)]
pub(crate) enum Requirement {
    Accept,
    /// The reason.
    Reject(String),
    /// A signature by one of the keys, for an identity that fits.
    Signed {
        keys: Vec<Key>,
        identity: Identity,
    },
}

/// Whose name a signature must carry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum Identity {
    MatchExact,
    /// Signed by digest, the name must be the image's; signed by tag, the tag too.
    #[default]
    MatchRepoDigestOrExact,
    MatchRepository,
    ExactReference {
        docker_reference: String,
    },
    ExactRepository {
        docker_repository: String,
    },
    #[serde(rename = "remapIdentity")]
    Remap {
        prefix: String,
        signed_prefix: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Vec<RawRequirement>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<RawRequirement>>>,
}

/// Unknown fields are errors: one that asks for more must not be passed over.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawRequirement {
    #[serde(rename = "type")]
    kind: String,
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    signed_identity: Option<Identity>,
    // Recognized, so that the refusal can name them.
    key_type: Option<String>,
    fulcio: Option<serde_json::Value>,
    pki: Option<serde_json::Value>,
    rekor_public_key_path: Option<PathBuf>,
    rekor_public_key_data: Option<String>,
}

/// A policy of more text is not one that somebody wrote.
const FILE_MAX: usize = 4 << 20;
/// Images of a registry are this transport's.
const TRANSPORT: &str = "docker";
/// Images of an archive, of either form, are this one's: it has no scopes but the empty one.
const TRANSPORT_ARCHIVE: &str = "docker-archive";

/// The requirements of the first of `files` that exists; `None`: no policy, everything may come in.
pub(crate) fn requirements(
    files: &[PathBuf],
    reference: &Reference,
) -> Result<Option<Requirements>, Error> {
    read(files, reference, |bytes| chosen(bytes, reference))
}

/// The same for an image out of an archive. Where the policy says nothing about archives, an image
/// must fulfil what it would have to under its name in a registry.
pub(crate) fn requirements_of_archive(
    files: &[PathBuf],
    reference: &Reference,
) -> Result<Option<Requirements>, Error> {
    read(files, reference, |bytes| chosen_of_archive(bytes, reference))
}

fn read(
    files: &[PathBuf],
    reference: &Reference,
    chosen: impl Fn(&[u8]) -> Result<Vec<RawRequirement>, String>,
) -> Result<Option<Requirements>, Error> {
    for path in files {
        let bytes = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            bytes => bytes.map_err(|e| Error::io("read", path, e))?,
        };
        let all = chosen(&bytes).and_then(|raw| raw.iter().map(requirement).collect());
        let all = all.map_err(|reason| Error::Signature {
            reference: reference.to_string(),
            policy: path.clone(),
            reason,
        })?;
        return Ok(Some(Requirements { file: path.clone(), all }));
    }
    Ok(None)
}

/// What stands in the way of `reference`, for people.
pub(crate) fn describe(config: &crate::config::Config, reference: &Reference) -> String {
    let list = match &config.allowed_digests {
        Some(path) => format!("; only digests in {}", path.display()),
        None => String::new(),
    };
    let policy = match requirements(&config.policy, reference) {
        Err(e) => return e.to_string(),
        Ok(None) => "none".to_owned(),
        Ok(Some(Requirements { file, all })) => {
            let word = |requirement: &Requirement| match requirement {
                Requirement::Accept => "accepts anything".to_owned(),
                Requirement::Reject(_) => "rejects".to_owned(),
                Requirement::Signed { keys, .. } => {
                    format!("wants a signature by one of {} keys", keys.len())
                }
            };
            let words: Vec<String> = all.iter().map(word).collect();
            format!("{} {}", file.display(), words.join(" and "))
        }
    };
    policy + &list
}

/// What the file says about `reference`: its most exact scope.
fn chosen(bytes: &[u8], reference: &Reference) -> Result<Vec<RawRequirement>, String> {
    File::parse(bytes)?.chosen(reference)
}

fn chosen_of_archive(bytes: &[u8], reference: &Reference) -> Result<Vec<RawRequirement>, String> {
    let mut file = File::parse(bytes)?;
    let mut scopes = file.transports.remove(TRANSPORT_ARCHIVE).unwrap_or_default();
    match scopes.remove("") {
        Some(list) if !list.is_empty() => Ok(list),
        Some(_) | None => file.chosen(reference),
    }
}

impl File {
    fn parse(bytes: &[u8]) -> Result<File, String> {
        if bytes.len() > FILE_MAX {
            return Err(format!("the policy is larger than {FILE_MAX} bytes"));
        }
        serde_json::from_slice(bytes).map_err(|e| format!("the policy cannot be read: {e}"))
    }

    fn chosen(self, reference: &Reference) -> Result<Vec<RawRequirement>, String> {
        let mut file = self;
        let mut scopes = file.transports.remove(TRANSPORT).unwrap_or_default();
        let found = scopes_of(reference).into_iter().find_map(|scope| scopes.remove(&scope));
        let list = found.unwrap_or(file.default);
        if list.is_empty() {
            return Err("the policy has an empty list of requirements for it".into());
        }
        Ok(list)
    }
}

/// From the whole name up to the transport's own default, which is the empty scope.
fn scopes_of(reference: &Reference) -> Vec<String> {
    let mut scopes = vec![reference.to_string()];
    let mut name = reference.name();
    loop {
        scopes.push(name.clone());
        match name.rfind('/') {
            Some(slash) => name.truncate(slash),
            None => break,
        }
    }
    let mut rest = name.split(':').next().unwrap_or_default();
    while let Some((_, parent)) = rest.split_once('.') {
        scopes.push(format!("*.{parent}"));
        rest = parent;
    }
    scopes.push(String::new());
    scopes
}

fn requirement(raw: &RawRequirement) -> Result<Requirement, String> {
    match raw.kind.as_str() {
        "insecureAcceptAnything" => Ok(Requirement::Accept),
        "reject" => Ok(Requirement::Reject("the policy rejects it".into())),
        "sigstoreSigned" => {
            let unread = [
                ("fulcio", raw.fulcio.is_some()),
                ("pki", raw.pki.is_some()),
                ("rekorPublicKeyPath", raw.rekor_public_key_path.is_some()),
                ("rekorPublicKeyData", raw.rekor_public_key_data.is_some()),
            ];
            if let Some((name, _)) = unread.iter().find(|(_, given)| *given) {
                return Err(format!(
                    "the policy asks for {name}, which is not supported: give a key"
                ));
            }
            let mut keys = Vec::new();
            let paths = raw.key_path.iter().chain(raw.key_paths.iter().flatten());
            for path in paths {
                let read = std::fs::read(path).map_err(|e| e.to_string());
                let key = read.and_then(|pem| Key::from_pem(&pem).map_err(|e| e.to_string()));
                keys.push(key.map_err(|e| format!("key {}: {e}", path.display()))?);
            }
            for data in raw.key_data.iter().chain(raw.key_datas.iter().flatten()) {
                keys.push(Key::from_base64(data).map_err(|e| format!("keyData: {e}"))?);
            }
            if keys.is_empty() {
                return Err("the policy asks for a signature but gives no key".into());
            }
            let identity = raw.signed_identity.clone().unwrap_or_default();
            Ok(Requirement::Signed { keys, identity })
        }
        "signedBy" => {
            let kind = raw.key_type.as_deref().unwrap_or("GPG");
            Err(format!(
                "the policy asks for signedBy ({kind} keys), which is not supported; use sigstoreSigned"
            ))
        }
        other => Err(format!("the policy has the unknown requirement {other:?}")),
    }
}

/// The digests that may come in; `None`: there is no list.
pub(crate) fn allowed(path: Option<&Path>) -> Result<Option<HashSet<Digest>>, Error> {
    let Some(path) = path else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let digests = lines.filter(|line| !line.is_empty()).map(Digest::parse);
    let digests = digests.collect::<Result<_, _>>();
    digests.map(Some).map_err(|e| Error::HostsFile { path: path.to_owned(), reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(policy: &str, name: &str) -> String {
        let reference = Reference::parse(name).unwrap();
        match chosen(policy.as_bytes(), &reference) {
            Err(reason) => reason,
            Ok(list) => match requirement(&list[0]) {
                Err(reason) => reason,
                Ok(Requirement::Accept) => "accept".into(),
                Ok(Requirement::Reject(_)) => "reject".into(),
                Ok(Requirement::Signed { identity, .. }) => format!("signed {identity:?}"),
            },
        }
    }

    #[test]
    fn the_most_exact_scope_decides() {
        let policy = r#"{"default": [{"type": "reject"}], "transports": {"docker": {
            "r.example": [{"type": "insecureAcceptAnything"}],
            "r.example/team": [{"type": "reject"}],
            "r.example/team/app:v1": [{"type": "insecureAcceptAnything"}],
            "*.wild.example": [{"type": "insecureAcceptAnything"}]},
            "docker-archive": {"": [{"type": "insecureAcceptAnything"}]}}}"#;
        for (name, expect) in [
            ("r.example/a", "accept"),
            ("r.example/team/a", "reject"),
            ("r.example/team/app:v1", "accept"),
            ("r.example/team/app:v2", "reject"),
            ("x.y.wild.example/a", "accept"),
            ("wild.example/a", "reject"),
            ("busybox", "reject"),
        ] {
            assert_eq!(kind(policy, name), expect, "{name}");
        }
    }

    #[test]
    fn an_archive_is_judged_as_one_where_the_policy_knows_archives() {
        let reference = Reference::parse("r.example/app:v").unwrap();
        let kind = |policy: &str| {
            let list = chosen_of_archive(policy.as_bytes(), &reference).unwrap();
            list[0].kind.clone()
        };
        let policy = |archive: &str| {
            format!(
                r#"{{"default": [{{"type": "insecureAcceptAnything"}}], "transports": {{
                "docker": {{"r.example": [{{"type": "reject"}}]}}{archive}}}}}"#
            )
        };
        assert_eq!(kind(&policy("")), "reject");
        let accepts = r#", "docker-archive": {"": [{"type": "insecureAcceptAnything"}]}"#;
        assert_eq!(kind(&policy(accepts)), "insecureAcceptAnything");
    }

    #[test]
    fn what_cannot_be_checked_is_refused_by_name() {
        let with = |requirement: &str| kind(&format!(r#"{{"default": [{requirement}]}}"#), "a");
        for (requirement, word) in [
            (r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}"#, "signedBy"),
            (r#"{"type": "sigstoreSigned", "fulcio": {}}"#, "fulcio"),
            (r#"{"type": "sigstoreSigned", "keyPath": "/k", "rekorPublicKeyPath": "/r"}"#, "rekor"),
            (r#"{"type": "sigstoreSigned"}"#, "no key"),
            (r#"{"type": "sigstoreSigned", "keyPath": "/nonexistent"}"#, "/nonexistent"),
            (r#"{"type": "sigstoreSigned", "keyData": "AAAA"}"#, "keyData"),
            (r#"{"type": "later"}"#, "later"),
            (r#"{"type": "reject", "unless": "friday"}"#, "unless"),
        ] {
            assert!(with(requirement).contains(word), "{requirement}: {}", with(requirement));
        }
        assert!(kind("{", "a").contains("cannot be read"));
        assert!(kind(r#"{"default": []}"#, "a").contains("empty"));
    }

    #[test]
    fn a_list_of_digests_has_comments_and_no_mistakes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let digest = Digest::of(b"x");
        std::fs::write(file.path(), format!("# mine\n\n{digest} # ok\n")).unwrap();
        assert!(allowed(Some(file.path())).unwrap().unwrap().contains(&digest));
        std::fs::write(file.path(), "latest").unwrap();
        assert!(allowed(Some(file.path())).is_err());
        assert!(allowed(None).unwrap().is_none());
    }
}
