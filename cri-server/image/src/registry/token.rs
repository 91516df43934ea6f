//! Logging in: which credentials an endpoint may see, and the token that a token server gives for
//! them.

use std::path::PathBuf;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Url};

use super::Session;
use super::auth::{self, Challenge, Login};
use super::hosts::Endpoint;
use super::logins::Logins;
use super::session::{
    ANSWER_TIMEOUT, Fault, FaultKind, TOKEN_MAX, body, describe, fault, refusal, shown,
};

/// Where credentials came from, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginSource {
    /// There are none.
    Nobody,
    /// The caller gave them.
    Caller,
    File(PathBuf),
}

impl Session {
    /// What to log in with: what the caller meant for this endpoint, then what the files have.
    pub(super) async fn login(&self, endpoint: &Endpoint) -> Result<(Login, LoginSource), String> {
        let host = match (endpoint.base.host_str(), endpoint.base.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        if let Some(auth) = &self.auth {
            let domain = self.reference.domain();
            let login = auth.login(domain, &host, endpoint.mirror_of.is_some());
            let login = login.map_err(|e| e.to_string())?;
            if !matches!(login, Login::Anonymous) {
                return Ok((login, LoginSource::Caller));
            }
        }
        for path in &self.auth_files {
            let Some(logins) = Logins::load(path).map_err(|e| e.to_string())? else { continue };
            let found =
                logins.find(&host, &endpoint.repository).await.map_err(|e| e.to_string())?;
            if let Some(auth) = found {
                let login = auth.login(&host, &host, false).map_err(|e| e.to_string())?;
                return Ok((login, LoginSource::File(path.clone())));
            }
        }
        Ok((Login::Anonymous, LoginSource::Nobody))
    }

    /// Gets what the server asks for.
    pub(super) async fn answer(
        &self,
        at: usize,
        challenge: Challenge,
        shown: &str,
    ) -> Result<Option<HeaderValue>, Fault> {
        let endpoint = &self.endpoints[at];
        let refused = |cause: String| fault(FaultKind::Unauthorized, shown, cause);
        let (login, _) = self.login(endpoint).await.map_err(refused)?;
        match (challenge, login) {
            (_, Login::Bearer(token)) => Ok(auth::bearer(&token)),
            (Challenge::Basic, Login::Password { user, password }) => {
                Ok(auth::basic(&user, &password))
            }
            (Challenge::Basic, Login::Anonymous) => {
                Err(refused("it wants a user and password, and none are given for it".into()))
            }
            (Challenge::Basic, Login::Refresh(_)) => {
                Err(refused("it wants a user and password, given is an identity token".into()))
            }
            (Challenge::Bearer { realm, service, scope }, login) => {
                let scope = if scope.is_empty() {
                    format!("repository:{}:pull", endpoint.repository)
                } else {
                    scope
                };
                let realm = Url::parse(&realm).map_err(|_| {
                    refused("it names a token server that is not an address".into())
                })?;
                if !auth::may_tell(&realm, &endpoint.base) {
                    let cause = format!(
                        "it wants the credentials sent unencrypted to {}",
                        super::session::shown(&realm)
                    );
                    return Err(refused(cause));
                }
                let token = self.fetch_token(endpoint, realm, [&service, &scope], login).await?;
                Ok(auth::bearer(&token))
            }
        }
    }

    async fn fetch_token(
        &self,
        endpoint: &Endpoint,
        realm: Url,
        [service, scope]: [&str; 2],
        login: Login,
    ) -> Result<String, Fault> {
        #[derive(serde::Deserialize)]
        struct Answer {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let shown = shown(&realm);
        let unavailable = |cause: String| fault(FaultKind::Unavailable, &shown, cause);
        let client = self
            .clients
            .client(&Endpoint { base: realm.clone(), ..endpoint.clone() })
            .map_err(|e| unavailable(e.to_string()))?;
        let query = [("service", service), ("scope", scope)];
        let query = query.into_iter().filter(|(_, value)| !value.is_empty());
        let request = match login {
            Login::Refresh(token) => {
                let mut form = reqwest::Url::parse("https://form.invalid/")
                    .map_err(|e| unavailable(e.to_string()))?;
                form.query_pairs_mut()
                    .extend_pairs([("grant_type", "refresh_token"), ("client_id", "lapstrake")])
                    .extend_pairs(query)
                    .append_pair("refresh_token", &token);
                client
                    .post(realm)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form.query().unwrap_or_default().to_owned())
            }
            login => {
                let mut url = realm;
                url.query_pairs_mut().extend_pairs(query);
                let request = client.get(url);
                match login {
                    Login::Password { user, password } => match auth::basic(&user, &password) {
                        Some(value) => request.header(AUTHORIZATION, value),
                        None => request,
                    },
                    Login::Anonymous | Login::Refresh(_) | Login::Bearer(_) => request,
                }
            }
        };
        let response = tokio::time::timeout(ANSWER_TIMEOUT, request.send())
            .await
            .map_err(|_| unavailable("the token server does not answer".into()))?
            .map_err(|e| unavailable(describe(&e)))?;
        if !response.status().is_success() {
            return Err(refusal(response, &Method::GET, &shown).await);
        }
        let bytes = body(response, TOKEN_MAX).await.map_err(|e| e.at(&shown))?;
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|_| unavailable("the token server's answer is not a token".into()))?;
        let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
        if token.is_empty() {
            return Err(unavailable("the token server's answer holds no token".into()));
        }
        Ok(token)
    }
}
