//! Credentials and the token flow: what a registry asks for, and who may be told a secret.

use std::fmt;

use base64::Engine as _;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

use super::hosts::is_loopback;

/// The credentials of one pull, as the CRI passes them. Empty fields are not set.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Auth {
    pub username: String,
    pub password: String,
    /// base64 of `username:password`.
    pub auth: String,
    /// The registry these are for; another registry never gets them.
    pub server_address: String,
    /// An OAuth2 refresh token.
    pub identity_token: String,
    /// Sent to the registry as it is.
    pub registry_token: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

/// What [`Auth`] comes down to.
#[derive(Clone)]
pub(crate) enum Login {
    Anonymous,
    Password { user: String, password: String },
    Refresh(String),
    Bearer(String),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the `auth` field of the credentials is not base64 of user:password")]
pub(crate) struct BadAuth;

impl Auth {
    /// The way to log in at `host`, for a pull from the registry `domain`. `mirror`: the host is
    /// not the registry itself, so it gets only what was explicitly meant for it.
    pub(crate) fn login(&self, domain: &str, host: &str, mirror: bool) -> Result<Login, BadAuth> {
        let meant_for = hub_name(host_of(&self.server_address));
        let fits = if meant_for.is_empty() {
            !mirror
        } else {
            meant_for == hub_name(host) || (!mirror && meant_for == hub_name(domain))
        };
        if !fits {
            return Ok(Login::Anonymous);
        }
        if !self.registry_token.is_empty() {
            return Ok(Login::Bearer(self.registry_token.clone()));
        }
        if !self.identity_token.is_empty() {
            return Ok(Login::Refresh(self.identity_token.clone()));
        }
        if !self.username.is_empty() || !self.password.is_empty() {
            let (user, password) = (self.username.clone(), self.password.clone());
            return Ok(Login::Password { user, password });
        }
        if self.auth.is_empty() {
            return Ok(Login::Anonymous);
        }
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(self.auth.trim())
            .map_err(|_| BadAuth)?;
        let text = String::from_utf8(bytes).map_err(|_| BadAuth)?;
        // Old docker clients padded the text with NUL bytes.
        let (user, password) = text.trim_end_matches('\0').split_once(':').ok_or(BadAuth)?;
        Ok(Login::Password { user: user.to_owned(), password: password.to_owned() })
    }
}

/// `https://index.docker.io/v1/` and `index.docker.io` are the same host.
fn host_of(address: &str) -> &str {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    bare.split('/').next().unwrap_or_default()
}

fn hub_name(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// What a server asks for with status 401.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: String },
}

impl Challenge {
    /// The strongest challenge among the headers.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Challenge> {
        let mut basic = None;
        for header in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(text) = header.to_str() else { continue };
            let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                let parameter = |name: &str| {
                    parameters(rest).find(|(key, _)| key == name).map(|(_, value)| value)
                };
                if let Some(realm) = parameter("realm") {
                    let service = parameter("service").unwrap_or_default();
                    let scope = parameter("scope").unwrap_or_default();
                    return Some(Challenge::Bearer { realm, service, scope });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
        basic
    }
}

/// `key="value", key=value` with backslash escapes within quotes.
fn parameters(text: &str) -> impl Iterator<Item = (String, String)> + '_ {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches([' ', ',', '\t']);
        let (key, after) = rest.split_once('=')?;
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut escaped = false;
            let mut end = quoted.len();
            for (at, c) in quoted.char_indices() {
                match c {
                    _ if escaped => {
                        value.push(c);
                        escaped = false;
                    }
                    '\\' => escaped = true,
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    c => value.push(c),
                }
            }
            rest = &quoted[end..];
        } else {
            let end = after.find(',').unwrap_or(after.len());
            after[..end].trim().clone_into(&mut value);
            rest = &after[end..];
        }
        Some((key.trim().to_ascii_lowercase(), value))
    })
}

/// Whether a secret may go to the token server `realm` that `registry` named: only encrypted, to
/// the registry's own host, or within this machine.
pub(crate) fn may_tell(realm: &Url, registry: &Url) -> bool {
    realm.scheme() == "https"
        || (realm.scheme() == "http"
            && registry.scheme() == "http"
            && (realm.host_str() == registry.host_str() || is_loopback(realm)))
}

/// `Basic …`, marked so that nothing prints it.
pub(crate) fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    sensitive(&format!("Basic {text}"))
}

/// `Bearer …`, marked so that nothing prints it.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(auth: &Auth, domain: &str, host: &str, mirror: bool) -> String {
        match auth.login(domain, host, mirror).unwrap() {
            Login::Anonymous => "anonymous".into(),
            Login::Password { user, password } => format!("{user}/{password}"),
            Login::Refresh(token) => format!("refresh {token}"),
            Login::Bearer(token) => format!("bearer {token}"),
        }
    }

    #[test]
    fn credentials_go_only_to_the_registry_they_are_for() {
        let mut auth = Auth { username: "u".into(), password: "p".into(), ..Auth::default() };
        assert_eq!(login(&auth, "r.example", "r.example", false), "u/p");
        assert_eq!(login(&auth, "r.example", "mirror.example", true), "anonymous");
        auth.server_address = "https://mirror.example/v1/".into();
        assert_eq!(login(&auth, "r.example", "mirror.example", true), "u/p");
        assert_eq!(login(&auth, "r.example", "r.example", false), "anonymous");
        auth.server_address = "https://index.docker.io/v1/".into();
        assert_eq!(login(&auth, "docker.io", "registry-1.docker.io", false), "u/p");
    }

    #[test]
    fn every_form_of_credentials_is_understood() {
        let encode = |t: &str| base64::engine::general_purpose::STANDARD.encode(t);
        let auth = Auth { auth: encode("u:p:q\0\0"), ..Auth::default() };
        assert_eq!(login(&auth, "a", "a", false), "u/p:q");
        let auth = Auth { identity_token: "t".into(), ..Auth::default() };
        assert_eq!(login(&auth, "a", "a", false), "refresh t");
        let auth = Auth { registry_token: "t".into(), ..Auth::default() };
        assert_eq!(login(&auth, "a", "a", false), "bearer t");
        let auth = Auth { auth: "%".into(), ..Auth::default() };
        assert!(auth.login("a", "a", false).is_err());
    }

    #[test]
    fn nothing_secret_is_printed() {
        let auth = Auth {
            username: "canary".into(),
            password: "canary".into(),
            auth: "canary".into(),
            identity_token: "canary".into(),
            registry_token: "canary".into(),
            server_address: "r.example".into(),
        };
        assert!(!format!("{auth:?}").contains("canary"));
        assert!(!format!("{:?}", basic("canary", "canary")).contains("canary"));
    }

    #[test]
    fn challenges_are_read_with_quotes_and_commas() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"x\""));
        assert_eq!(Challenge::of(&headers), Some(Challenge::Basic));
        headers.append(
            WWW_AUTHENTICATE,
            HeaderValue::from_static(
                "bearer Realm=\"https://t.example/a?b=c,d\",service=reg, scope=\"repository:a/b:pull,push\"",
            ),
        );
        assert_eq!(
            Challenge::of(&headers),
            Some(Challenge::Bearer {
                realm: "https://t.example/a?b=c,d".into(),
                service: "reg".into(),
                scope: "repository:a/b:pull,push".into(),
            }),
        );
    }

    #[test]
    fn secrets_do_not_travel_unencrypted_to_strangers() {
        let url = |text| Url::parse(text).unwrap();
        let plain = url("http://r.example/v2");
        let safe = url("https://r.example/v2");
        assert!(may_tell(&url("https://t.example/token"), &plain));
        assert!(may_tell(&url("http://r.example:81/token"), &plain));
        assert!(!may_tell(&url("http://t.example/token"), &plain));
        assert!(!may_tell(&url("http://r.example/token"), &safe));
        assert!(!may_tell(&url("file:///etc/passwd"), &safe));
    }
}
