//! What a pull would do and what comes of it: the endpoints in order, who named them, where the
//! credentials for each come from, and what each answers now.

use std::path::PathBuf;

use reqwest::Method;
use reqwest::header::HeaderMap;

use super::Session;
use super::session::{accept_manifests, shown};
use super::token::LoginSource;
use crate::digest::Digest;

/// One name that the asked one may stand for.
#[derive(Clone, Debug)]
pub struct ExplainedName {
    /// The whole name.
    pub reference: String,
    pub endpoints: Vec<ExplainedEndpoint>,
    /// What the policy asks for, and the file it stands in; or why the name is not looked for.
    pub policy: String,
}

/// One server that would be asked.
#[derive(Clone, Debug)]
pub struct ExplainedEndpoint {
    /// Where the manifest would come from; nothing secret in it.
    pub url: String,
    /// The file that names it; `None`: it follows from the image's name.
    pub named_in: Option<PathBuf>,
    pub mirror: bool,
    /// May say what a tag stands for.
    pub resolve: bool,
    /// May serve content by digest.
    pub pull: bool,
    /// Its certificate is not checked, or it has none.
    pub insecure: bool,
    /// Never the credentials themselves.
    pub login: Result<LoginSource, String>,
    /// The digest it has for the name, or why there is none.
    pub answer: Result<String, String>,
}

impl Session {
    /// Asks every endpoint, each on its own.
    pub(crate) async fn explain(&self) -> Vec<ExplainedEndpoint> {
        let mut explained = Vec::new();
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            let url = self.url(endpoint, &["manifests", self.reference.wanted()]);
            let login = self.login(endpoint).await.map(|(_, source)| source);
            let tried = self.request(at, &Method::HEAD, url.clone(), &accept_manifests()).await;
            let answer = match tried {
                Ok(response) => Ok(told(response.headers())),
                Err(fault) => Err(fault.attempt.cause),
            };
            explained.push(ExplainedEndpoint {
                url: shown(&url),
                named_in: endpoint.named_in.clone(),
                mirror: endpoint.mirror_of.is_some(),
                resolve: endpoint.resolve,
                pull: endpoint.pull,
                insecure: endpoint.base.scheme() == "http" || endpoint.tls.skip_verify,
                login,
                answer,
            });
        }
        explained
    }
}

fn told(headers: &HeaderMap) -> String {
    let digest = headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
    let digest = digest.and_then(|text| Digest::parse(text).ok());
    digest.map_or_else(|| "it has the image, but tells no digest".to_owned(), |d| d.to_string())
}
