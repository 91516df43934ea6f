//! Credentials in a file of docker's form (`config.json`, `auth.json`): written down, or asked of a
//! credential helper. The most exact entry wins.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::auth::Auth;
use crate::error::Error;

/// What one file says.
pub struct Logins {
    path: PathBuf,
    raw: Raw,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Clone, Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

/// What a helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// docker's own name for its registry in these files.
const HUB: &str = "https://index.docker.io/v1/";
/// What a helper calls a user when the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// Helpers of clouds ask a metadata service; longer means that it is not there.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// A larger file is not one of these.
const FILE_MAX: u64 = 4 << 20;
/// A larger answer is not a secret.
const ANSWER_MAX: usize = 256 << 10;

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logins").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Logins {
    /// Reads a file; `None` when there is none.
    pub fn load(path: &Path) -> Result<Option<Logins>, Error> {
        use std::io::Read as _;
        let file = match std::fs::File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|e| Error::io("open", path, e))?,
        };
        let mut bytes = Vec::new();
        file.take(FILE_MAX).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
        // An error's text could quote a secret: it says where, not what.
        let raw = serde_json::from_slice(&bytes).map_err(|e| Error::HostsFile {
            path: path.to_owned(),
            reason: format!("line {}, column {}: it is not valid", e.line(), e.column()),
        })?;
        Ok(Some(Logins { path: path.to_owned(), raw }))
    }

    /// What the file has for a reference.
    pub async fn for_reference(&self, reference: &str) -> Result<Option<Auth>, Error> {
        let parsed = crate::service::parse(reference)?;
        self.find(parsed.domain(), parsed.path()).await
    }

    /// What the file has for the repository `path` at `host`.
    pub(crate) async fn find(&self, host: &str, path: &str) -> Result<Option<Auth>, Error> {
        for key in keys(host, path) {
            if let Some(helper) = self.raw.cred_helpers.get(&key) {
                return self.ask(helper, &key).await;
            }
            if let Some(entry) = self.entry(&key).filter(|entry| !entry.is_empty()) {
                return Ok(Some(entry.auth()));
            }
        }
        match self.raw.creds_store.as_str() {
            "" => Ok(None),
            store => self.ask(store, if host == "docker.io" { HUB } else { host }).await,
        }
    }

    /// Keys are written with or without a scheme and a path of the API.
    fn entry(&self, key: &str) -> Option<&Entry> {
        let bare = |name: &str| {
            let name = name.split_once("://").map_or(name, |(_, rest)| rest);
            let name = name.trim_end_matches('/');
            name.trim_end_matches("/v1").trim_end_matches("/v2").to_owned()
        };
        let exact = self.raw.auths.get(key);
        exact.or_else(|| {
            self.raw.auths.iter().find(|(name, _)| bare(name) == bare(key)).map(|e| e.1)
        })
    }

    async fn ask(&self, helper: &str, server: &str) -> Result<Option<Auth>, Error> {
        let failed = |reason: String| Error::Helper { helper: helper.to_owned(), reason };
        // It becomes part of a program's name.
        if helper.is_empty()
            || !helper.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            return Err(failed(format!("{} names no program by it", self.path.display())));
        }
        let mut child = Command::new(format!("docker-credential-{helper}"))
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(e.to_string()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read its input may know the answer all the same.
            let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
        }
        let output = tokio::time::timeout(HELPER_TIMEOUT, child.wait_with_output())
            .await
            .map_err(|_| failed(format!("no answer within {} s", HELPER_TIMEOUT.as_secs())))?
            .map_err(|e| failed(e.to_string()))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout);
            return if text.contains("credentials not found") {
                Ok(None)
            } else {
                Err(failed(output.status.to_string()))
            };
        }
        if output.stdout.len() > ANSWER_MAX {
            return Err(failed("its answer is too long".into()));
        }
        let told: Told = serde_json::from_slice(&output.stdout)
            .map_err(|_| failed("its answer is not what helpers print".into()))?;
        Ok(Some(if told.username == TOKEN_USER {
            Auth { identity_token: told.secret, ..Auth::default() }
        } else {
            Auth { username: told.username, password: told.secret, ..Auth::default() }
        }))
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        [&self.auth, &self.username, &self.password, &self.identity_token, &self.registry_token]
            .iter()
            .all(|field| field.is_empty())
    }

    fn auth(&self) -> Auth {
        let Entry { auth, username, password, identity_token, registry_token } = self.clone();
        Auth { auth, username, password, identity_token, registry_token, ..Auth::default() }
    }
}

/// From the repository up to the host.
fn keys(host: &str, path: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        keys.push(format!("{host}/{rest}"));
        rest = rest.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    keys.push(host.to_owned());
    if matches!(host, "docker.io" | "registry-1.docker.io" | "index.docker.io") {
        keys.extend(["docker.io".to_owned(), HUB.to_owned()]);
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logins(text: &str) -> Logins {
        Logins { path: "auth.json".into(), raw: serde_json::from_str(text).unwrap() }
    }

    #[tokio::test]
    async fn the_most_exact_entry_wins() {
        let file = logins(
            r#"{"auths": {"r.example": {"auth": "host"}, "r.example/team": {"auth": "team"},
                "r.example/team/app": {"auth": "app"}, "https://index.docker.io/v1/": {"auth": "hub"},
                "https://old.example/v1/": {"identitytoken": "old"}, "empty.example": {}}}"#,
        );
        let auth = async |host: &str, path: &str| {
            let found = file.find(host, path).await.unwrap();
            found.map(|auth| format!("{}{}", auth.auth, auth.identity_token)).unwrap_or_default()
        };
        assert_eq!(auth("r.example", "team/app").await, "app");
        assert_eq!(auth("r.example", "team/other/deep").await, "team");
        assert_eq!(auth("r.example", "teams").await, "host");
        assert_eq!(auth("docker.io", "library/busybox").await, "hub");
        assert_eq!(auth("registry-1.docker.io", "library/busybox").await, "hub");
        assert_eq!(auth("old.example", "a").await, "old");
        assert_eq!(auth("empty.example", "a").await, "");
        assert_eq!(auth("example", "a").await, "");
    }

    #[tokio::test]
    async fn a_helper_is_a_program_beside_others_and_nothing_else() {
        let file = logins(r#"{"credHelpers": {"r.example": "../../bin/sh"}}"#);
        let error = file.find("r.example", "a").await.unwrap_err().to_string();
        assert!(error.contains("auth.json"), "{error}");
    }
}
