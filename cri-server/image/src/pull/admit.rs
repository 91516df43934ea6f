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
use crate::service::commit::Fresh;

/// Signatures that were found good, so that a repeated pull need not fetch them again. Each is
/// named by everything that went into the decision.
#[derive(Default)]
pub(crate) struct Seen {
    good: Mutex<HashSet<Digest>>,
}

/// More than the images of a node; beyond it all are checked again.
const SEEN_MAX: usize = 4096;
/// Stands for an image that an archive gives no name.
const NAMELESS: &str = "nameless.invalid/archive";
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

/// The same for an image out of an archive, where no signature can be found. Its own id counts as one
/// of its digests: an archive need not hold a manifest.
pub(crate) fn admit_import(config: &Config, fresh: &Fresh) -> Result<(), Error> {
    let manifests = fresh.manifests.iter().map(|one| one.digest.clone());
    let digests: Vec<Digest> = manifests.chain([fresh.id.clone()]).collect();
    let mut names = Vec::new();
    for name in fresh.tags.iter().chain(&fresh.digests) {
        names.push(crate::service::parse(name)?);
    }
    if names.is_empty() {
        // What every image must fulfil holds for one without a name too.
        names.push(crate::service::parse(NAMELESS)?);
    }
    for reference in &names {
        listed(config, reference, &digests)?;
        let Some(found) = policy::requirements_of_archive(&config.policy, reference)? else {
            continue;
        };
        let refusal = found.all.iter().find_map(|requirement| {
            match requirement {
            Requirement::Accept => None,
            Requirement::Reject(reason) => Some(reason.clone()),
            Requirement::Signed { .. } => Some(
                "the policy asks for a signature, which an archive does not bring: pull the image, \
                 or accept archives under the transport docker-archive"
                    .to_owned(),
            ),
        }
        });
        if let Some(reason) = refusal {
            let (reference, policy) = (reference.to_string(), found.file);
            return Err(Error::Signature { reference, policy, reason });
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
