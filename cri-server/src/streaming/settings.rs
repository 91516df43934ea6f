//! The `[streaming]` part of the configuration: from text to what is valid, all mistakes together. Pure.

use std::path::PathBuf;
use std::time::Duration;

use ::streaming::{Address, Listen, MinVersion, Tls};
use serde::Deserialize;

/// A container's log holds more; this is what a terminal can show several times over.
const REPLAY_MAX_KIB: u64 = 1024;

/// Where and how clients are served.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) listen: Listen,
    pub(crate) idle: Duration,
    pub(crate) creation: Duration,
    /// Bytes of earlier output that a client gets when it attaches.
    pub(crate) replay: u64,
}

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Raw {
    listen: String,
    advertise: String,
    tls_certificate: PathBuf,
    tls_key: PathBuf,
    tls_client_ca: PathBuf,
    tls_min_version: String,
    idle_timeout_seconds: u64,
    creation_timeout_seconds: u64,
    attach_replay_kib: u64,
}

impl Raw {
    /// Or what is wrong, as `key: problem`.
    pub(crate) fn resolve(self) -> Result<Settings, Vec<String>> {
        let mut problems = Vec::new();
        let mut keep = |result: Result<(), String>| problems.extend(result.err());
        let address = self.address();
        keep(address.as_ref().map(|_| ()).map_err(Clone::clone));
        let tls = self.tls();
        keep(tls.as_ref().map(|_| ()).map_err(Clone::clone));
        if let (Ok(Address::Unix(_)), Ok(Some(_))) = (&address, &tls) {
            keep(Err("tls_certificate: a unix socket needs no TLS and has none".to_owned()));
        }
        for (key, seconds) in [
            ("idle_timeout_seconds", self.idle_timeout_seconds),
            ("creation_timeout_seconds", self.creation_timeout_seconds),
        ] {
            keep(if seconds > 0 { Ok(()) } else { Err(format!("{key}: must be at least 1")) });
        }
        if self.attach_replay_kib > REPLAY_MAX_KIB {
            keep(Err(format!("attach_replay_kib: at most {REPLAY_MAX_KIB}")));
        }
        let (Ok(address), Ok(tls), true) = (address, tls, problems.is_empty()) else {
            return Err(problems);
        };
        let advertise = Some(self.advertise).filter(|it| !it.is_empty());
        Ok(Settings {
            listen: Listen { address, advertise, tls },
            idle: Duration::from_secs(self.idle_timeout_seconds),
            creation: Duration::from_secs(self.creation_timeout_seconds),
            replay: self.attach_replay_kib << 10,
        })
    }

    fn address(&self) -> Result<Address, String> {
        if let Some(path) = self.listen.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => Ok(Address::Unix(path.into())),
                false => Err(format!("listen: {:?} is not unix:///absolute/path", self.listen)),
            };
        }
        let parsed = self.listen.parse().map(Address::Tcp);
        parsed.map_err(|error| format!("listen: {:?}: {error}", self.listen))
    }

    fn tls(&self) -> Result<Option<Tls>, String> {
        let given = |path: &PathBuf| !path.as_os_str().is_empty();
        let min_version = match self.tls_min_version.as_str() {
            "1.2" => MinVersion::Tls12,
            "1.3" => MinVersion::Tls13,
            other => return Err(format!("tls_min_version: {other:?} is none of 1.2, 1.3")),
        };
        let client_ca = Some(self.tls_client_ca.clone()).filter(given);
        match (given(&self.tls_certificate), given(&self.tls_key)) {
            (true, true) => {
                let (cert, key) = (self.tls_certificate.clone(), self.tls_key.clone());
                Ok(Some(Tls { cert, key, client_ca, min_version }))
            }
            (false, false) if client_ca.is_some() => {
                Err("tls_client_ca: needs tls_certificate and tls_key".to_owned())
            }
            (false, false) => Ok(None),
            (true, false) => Err("tls_key: missing beside tls_certificate".to_owned()),
            (false, true) => Err("tls_certificate: missing beside tls_key".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(listen: &str, files: [&str; 3], version: &str) -> Raw {
        let [tls_certificate, tls_key, tls_client_ca] = files.map(PathBuf::from);
        Raw {
            listen: listen.into(),
            advertise: String::new(),
            tls_certificate,
            tls_key,
            tls_client_ca,
            tls_min_version: version.into(),
            idle_timeout_seconds: 1,
            creation_timeout_seconds: 1,
            attach_replay_kib: 2,
        }
    }

    #[test]
    fn addresses_and_files_become_a_listener() {
        let settings = raw("unix:///run/s.sock", ["", "", ""], "1.2").resolve().unwrap();
        assert_eq!(settings.listen.address, Address::Unix("/run/s.sock".into()));
        assert_eq!((settings.listen.tls, settings.replay), (None, 2048));
        let settings = raw("0.0.0.0:1", ["/c", "/k", "/a"], "1.3").resolve().unwrap();
        let tls = settings.listen.tls.unwrap();
        assert_eq!((tls.min_version, tls.client_ca), (MinVersion::Tls13, Some("/a".into())));
    }

    #[test]
    fn all_mistakes_are_told() {
        let check = |raw: Raw, expect: &[&str]| {
            let problems = raw.resolve().unwrap_err();
            let keys: Vec<_> = problems.iter().map(|it| it.split(':').next().unwrap()).collect();
            assert_eq!(keys, expect, "{problems:?}");
        };
        check(raw("nowhere", ["/c", "", ""], "1.2"), &["listen", "tls_key"]);
        check(raw("unix://x", ["", "", ""], "1.1"), &["listen", "tls_min_version"]);
        check(raw("unix:///x", ["/c", "/k", ""], "1.2"), &["tls_certificate"]);
        check(raw("127.0.0.1:0", ["", "", "/a"], "1.2"), &["tls_client_ca"]);
        let zero = Raw {
            idle_timeout_seconds: 0,
            attach_replay_kib: 9999,
            ..raw("127.0.0.1:0", ["", "", ""], "1.2")
        };
        check(zero, &["idle_timeout_seconds", "attach_replay_kib"]);
    }
}
