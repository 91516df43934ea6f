//! One signature as sigstore's tools attach it: a small JSON payload that names an image, and the
//! signature over exactly these bytes. Pure.

use base64::Engine as _;
use serde::Deserialize;

use super::Identity;
use super::key::Key;
use crate::digest::Digest;
use crate::reference::Reference;

/// A signature as it was found in the registry.
#[derive(Clone)]
pub(crate) struct Attached {
    pub(crate) payload: Vec<u8>,
    /// base64.
    pub(crate) signature: String,
}

/// The media type of a payload.
pub(crate) const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation that carries the signature.
pub(crate) const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

/// `critical` means: whoever does not know a field must refuse.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: PayloadIdentity,
    image: PayloadImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PayloadIdentity {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PayloadImage {
    docker_manifest_digest: Digest,
}

/// Checks one signature against what is being pulled. `digests`: the manifest and the indexes that
/// lead to it by digest; a signature on any of them is one on the image.
pub(crate) fn check(
    attached: &Attached,
    (keys, identity): (&[Key], &Identity),
    (reference, digests): (&Reference, &[Digest]),
) -> Result<(), String> {
    let signature = base64::engine::general_purpose::STANDARD
        .decode(attached.signature.trim())
        .map_err(|_| "a signature is not base64")?;
    if !keys.iter().any(|key| key.signed(&attached.payload, &signature)) {
        return Err("a signature is by none of the policy's keys".into());
    }
    // From here on the text is the key owner's.
    let payload: Payload = serde_json::from_slice(&attached.payload)
        .map_err(|e| format!("what was signed is not an image: {e}"))?;
    let critical = payload.critical;
    if critical.kind != "cosign container image signature" {
        return Err(format!("what was signed is a {:?}", critical.kind));
    }
    if !digests.contains(&critical.image.docker_manifest_digest) {
        return Err(format!("what was signed is {}", critical.image.docker_manifest_digest));
    }
    let signed = critical.identity.docker_reference;
    if fits(identity, &signed, reference) {
        Ok(())
    } else {
        Err(format!("it was signed for {signed:?}"))
    }
}

fn fits(identity: &Identity, signed: &str, reference: &Reference) -> bool {
    // sigstore's tools write the repository alone; then the digest is what was meant.
    let Ok(signed) = Reference::parse(signed) else { return false };
    let bare = |text: &Reference| text.digest().is_none() && text.tag() == Some("latest");
    let exact = |wanted: &Reference| {
        signed.name() == wanted.name()
            && (bare(&signed)
                || signed.tag() == wanted.tag()
                || signed.digest() == wanted.digest() && signed.digest().is_some())
    };
    match identity {
        Identity::MatchExact | Identity::MatchRepoDigestOrExact => match reference.digest() {
            Some(_) => {
                signed.name() == reference.name() && *identity != Identity::MatchExact
                    || exact(reference)
            }
            None => exact(reference),
        },
        Identity::MatchRepository => signed.name() == reference.name(),
        Identity::ExactReference { docker_reference } => {
            Reference::parse(docker_reference).is_ok_and(|wanted| exact(&wanted))
        }
        Identity::ExactRepository { docker_repository } => {
            Reference::parse(docker_repository).is_ok_and(|wanted| signed.name() == wanted.name())
        }
        Identity::Remap { prefix, signed_prefix } => {
            let name = reference.name();
            let rest = name.strip_prefix(prefix.as_str());
            let rest = rest.filter(|rest| rest.is_empty() || rest.starts_with('/'));
            match rest {
                Some(rest) => signed.name() == format!("{signed_prefix}{rest}"),
                None => signed.name() == name,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_identity(identity: &str, signed: &str, pulled: &str, expect: bool) {
        let identity: Identity = serde_json::from_str(identity).unwrap();
        let pulled = Reference::parse(pulled).unwrap();
        assert_eq!(fits(&identity, signed, &pulled), expect, "{identity:?} {signed} {pulled}");
    }

    #[test]
    fn a_signature_counts_for_the_name_it_was_made_for() {
        let digest = format!("r.example/a@sha256:{}", "a".repeat(64));
        let default = r#"{"type": "matchRepoDigestOrExact"}"#;
        check_identity(default, "r.example/a", "r.example/a:v1", true);
        check_identity(default, "r.example/a:v1", "r.example/a:v1", true);
        check_identity(default, "r.example/a:v2", "r.example/a:v1", false);
        check_identity(default, "r.example/b", "r.example/a:v1", false);
        check_identity(default, "r.example/a:v2", &digest, true);
        check_identity(r#"{"type": "matchExact"}"#, "r.example/a:v2", &digest, false);
        check_identity(r#"{"type": "matchRepository"}"#, "r.example/a:v2", "r.example/a:v1", true);
        check_identity(r#"{"type": "matchRepository"}"#, "r.example/b:v1", "r.example/a:v1", false);
        let exact = r#"{"type": "exactRepository", "dockerRepository": "up.example/a"}"#;
        check_identity(exact, "up.example/a", "r.example/a:v1", true);
        check_identity(exact, "r.example/a", "r.example/a:v1", false);
        let remap =
            r#"{"type": "remapIdentity", "prefix": "m.example/up", "signedPrefix": "r.example"}"#;
        check_identity(remap, "r.example/a", "m.example/up/a:v1", true);
        check_identity(remap, "m.example/up/a", "m.example/up/a:v1", false);
        check_identity(remap, "other.example/a", "other.example/a:v1", true);
        check_identity(default, "not a name", "r.example/a:v1", false);
    }
}
