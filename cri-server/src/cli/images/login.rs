//! Credentials on the command line: a file of one line, or docker's own file, read as the user who
//! asks and never as the daemon.

use std::io;
use std::path::{Path, PathBuf};

use proto::cri::v1 as cri;
use tokio::io::AsyncReadExt;

use crate::cli::input;

/// User name and password are short; a larger file is the wrong one.
const BYTES_MAX: u64 = 64 << 10;

/// How to log in at the registry.
#[derive(Debug, clap::Args)]
pub(crate) struct Login {
    /// A file that holds USER:PASSWORD; - reads standard input
    #[arg(long, value_name = "FILE")]
    creds: Option<PathBuf>,

    /// A file as `docker login` writes it, with its credential helpers
    #[arg(long, value_name = "FILE", conflicts_with = "creds")]
    auth_file: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("read {}: {source}", input::name(path))]
    Read { path: PathBuf, source: io::Error },
    #[error("credentials in {}: {problem}", input::name(path))]
    Form { path: PathBuf, problem: &'static str },
    #[error(transparent)]
    Logins(#[from] image::Error),
}

impl Error {
    pub(crate) fn is_usage(&self) -> bool {
        matches!(self, Self::Form { .. })
    }
}

impl Login {
    /// The credentials for `reference`, if there are any.
    pub(crate) async fn credentials(
        &self,
        reference: &str,
    ) -> Result<Option<cri::AuthConfig>, Error> {
        if let Some(path) = &self.creds {
            return one_line(path).await.map(Some);
        }
        let Some(path) = &self.auth_file else { return Ok(None) };
        let absent = || Error::Read { path: path.clone(), source: io::ErrorKind::NotFound.into() };
        let logins = image::Logins::load(path)?.ok_or_else(absent)?;
        Ok(logins.for_reference(reference).await?.map(|auth| cri::AuthConfig {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            server_address: auth.server_address,
            identity_token: auth.identity_token,
            registry_token: auth.registry_token,
        }))
    }
}

async fn one_line(path: &Path) -> Result<cri::AuthConfig, Error> {
    let failed = |source| Error::Read { path: path.to_path_buf(), source };
    let mut text = String::new();
    let file = input::open(path).await.map_err(failed)?;
    file.take(BYTES_MAX).read_to_string(&mut text).await.map_err(failed)?;
    parse(&text).map_err(|problem| Error::Form { path: path.to_path_buf(), problem })
}

/// A password may contain anything but the end of the line.
fn parse(text: &str) -> Result<cri::AuthConfig, &'static str> {
    let line = text.trim_end_matches(['\r', '\n']);
    if line.contains('\n') {
        return Err("must be one line");
    }
    match line.split_once(':') {
        Some((username, password)) if !username.is_empty() => Ok(cri::AuthConfig {
            username: username.to_owned(),
            password: password.to_owned(),
            ..Default::default()
        }),
        _ => Err("must be USER:PASSWORD"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_may_contain_colons() {
        let auth = parse("me:se:cr et\n").unwrap();
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("me", "se:cr et"));
        for text in ["", "me", ":secret", "me:a\nyou:b"] {
            assert!(parse(text).is_err(), "{text:?} was accepted");
        }
    }
}
