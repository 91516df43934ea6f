//! The registry client: endpoints in order, credentials, manifests and blobs.

pub(crate) mod auth;
pub(crate) mod client;
pub(crate) mod hosts;
pub(crate) mod session;

pub use auth::Auth;
pub(crate) use client::Clients;
pub(crate) use session::Session;
