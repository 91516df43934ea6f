//! The registry client: endpoints in order, credentials, manifests and blobs.

pub(crate) mod auth;
pub(crate) mod client;
mod explain;
pub(crate) mod hosts;
pub(crate) mod logins;
pub(crate) mod registries;
pub(crate) mod session;
mod token;

pub use auth::Auth;
pub(crate) use client::Clients;
pub use explain::{ExplainedEndpoint, ExplainedName};
pub use logins::Logins;
pub(crate) use registries::Registries;
pub(crate) use session::Session;
pub use token::LoginSource;
