//! The results of attachments where other tools look for them: the cache that the specification's
//! own library keeps, in its form.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use serde_json::{Value, json};

use crate::call::Attachment;
use crate::conf::Network;
use crate::error::Error;
use crate::result::Answer;

/// A directory of results, usually `/var/lib/cni`.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Results are in `results` below this directory.
    #[must_use]
    pub fn at(dir: &Path) -> Cache {
        Cache { dir: dir.join("results") }
    }

    /// Writes down what an attachment has; whole or not at all.
    pub fn put(
        &self,
        network: &Network,
        attachment: &Attachment,
        answer: &Answer,
    ) -> Result<(), Error> {
        let path = self.path(network, attachment);
        let failed = |source| Error::File { attempt: "write", path: path.clone(), source };
        let write = || {
            fs::create_dir_all(&self.dir)?;
            let aside = path.with_extension("lapstrake-new");
            fs::write(&aside, entry(network, attachment, answer).to_string())?;
            fs::rename(&aside, &path)
        };
        write().map_err(failed)
    }

    /// Takes it away; none is success.
    pub fn remove(&self, network: &Network, attachment: &Attachment) -> Result<(), Error> {
        let path = self.path(network, attachment);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { attempt: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    fn path(&self, network: &Network, attachment: &Attachment) -> PathBuf {
        let Attachment { container_id, ifname, .. } = attachment;
        self.dir.join(format!("{}-{container_id}-{ifname}", network.name))
    }
}

fn entry(network: &Network, attachment: &Attachment, answer: &Answer) -> Value {
    let mut entry = json!({
        "kind": "cniCacheV1",
        "containerId": attachment.container_id,
        // As bytes, which JSON has as base64.
        "config": BASE64.encode(network.source.to_string()),
        "ifName": attachment.ifname,
        "networkName": network.name,
        "cniArgs": attachment.args,
        "capabilityArgs": attachment.capabilities,
        "result": answer.0,
    });
    if let Some(netns) = &attachment.netns {
        entry["netns"] = netns.display().to_string().into();
    }
    entry
}
