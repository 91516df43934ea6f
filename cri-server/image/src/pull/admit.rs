//! Whether an image may come in: the list of digests, the policy, and the signatures that the
//! registry holds for it.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::config::Config;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::manifest::{Document, Manifest};
use crate::policy::key::Key;
use crate::policy::signature::{self, Attached};
use crate::policy::{self, Requirement, Requirements};
use crate::reference::Reference;
use crate::registry::Session;

/// Signatures that were found good, so that a repeated pull need not fetch them again. Each is
/// named by everything that went into the decision.
#[derive(Default)]
pub(crate) struct Seen {
    good: Mutex<HashSet<Digest>>,
}

/// More than the images of a node; beyond it all are checked again.
const SEEN_MAX: usize = 4096;
/// Signatures of one image; an image that is signed by everybody is signed by nobody.
const SIGNATURES_MAX: usize = 32;

/// Refuses what the node's configuration does not let in. `digests`: the manifest and the indexes
/// on the way to it.
pub(crate) async fn admit(
    (config, seen): (&Config, &Seen),
    session: &Session,
    digests: &[Digest],
) -> Result<(), Error> {
    let reference = &session.reference;
    listed(config, reference, digests)?;
    let Some(Requirements { file, all }) = policy::requirements(&config.policy, reference)? else {
        return Ok(());
    };
    let refused = |reason: String| Error::Signature {
        reference: reference.to_string(),
        policy: file.clone(),
        reason,
    };
    let mut attached = None;
    for requirement in &all {
        match requirement {
            Requirement::Accept => {}
            Requirement::Reject(reason) => return Err(refused(reason.clone())),
            Requirement::Signed { keys, identity } => {
                let keys_seen: Vec<&[u8]> = keys.iter().map(Key::bytes).collect();
                let about = format!("{keys_seen:?} {identity:?} {reference} {digests:?}");
                let name = Digest::of(about.as_bytes());
                if seen.knows(&name) {
                    continue;
                }
                let found = match &attached {
                    Some(found) => found,
                    None => attached.insert(fetch(session, digests).await?),
                };
                let mut reasons = Vec::new();
                let good = found.iter().any(|one| {
                    let checked = signature::check(one, (keys, identity), (reference, digests));
                    checked.map_err(|reason| reasons.push(reason)).is_ok()
                });
                if !good {
                    reasons.dedup();
                    return Err(refused(match reasons.as_slice() {
                        [] => "it has no signature in its registry".into(),
                        reasons => reasons.join("; "),
                    }));
                }
                seen.remember(name);
            }
        }
    }
    Ok(())
}

fn listed(config: &Config, reference: &Reference, digests: &[Digest]) -> Result<(), Error> {
    let list = config.allowed_digests.as_deref();
    match policy::allowed(list)? {
        Some(allowed) if !digests.iter().any(|digest| allowed.contains(digest)) => {
            Err(Error::Refused {
                reference: reference.to_string(),
                by: list.unwrap_or(&config.root).to_owned(),
                reason: match digests.first() {
                    Some(digest) => format!("{digest} is not in the list"),
                    None => "it has no digest".into(),
                },
            })
        }
        Some(_) | None => Ok(()),
    }
}

/// What is attached to any of the digests, under the tag that sigstore's tools use.
async fn fetch(session: &Session, digests: &[Digest]) -> Result<Vec<Attached>, Error> {
    let mut found = Vec::new();
    for digest in digests {
        let tag = format!("{}-{}.sig", digest.algorithm(), digest.hex());
        let fetched = match session.manifest(&tag).await {
            Ok(fetched) => fetched,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let parsed = Document::parse(&fetched.media_type, &fetched.bytes);
        let Ok(Document::Manifest(Manifest { layers, .. })) = parsed else { continue };
        let payloads = layers.iter().filter(|layer| layer.media_type == signature::PAYLOAD_TYPE);
        for layer in payloads.take(SIGNATURES_MAX) {
            let Some(signature) = layer.annotations.get(signature::SIGNATURE) else { continue };
            let payload = session.small_blob(&layer.digest, layer.size).await?;
            found.push(Attached { payload, signature: signature.clone() });
        }
    }
    Ok(found)
}

impl Seen {
    fn knows(&self, name: &Digest) -> bool {
        self.good.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    fn remember(&self, name: Digest) {
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.len() >= SEEN_MAX {
            good.clear();
        }
        good.insert(name);
    }
}
