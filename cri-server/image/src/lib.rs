//! The images of this node: pulled from registries, imported from archives, kept as one plain
//! directory per layer that overlayfs can use as it is.
//!
//! Invariant: this crate knows no pod, no CRI message and no runtime. What an image says about
//! itself (labels, users, commands) is data for the caller; nothing here acts on it.

mod accounts;
mod archive;
mod config;
mod digest;
mod error;
mod export;
mod fetch;
mod flight;
mod layer;
mod manifest;
mod mount;
mod observe;
mod policy;
mod pull;
mod quota;
mod reference;
mod registry;
mod service;
mod snapshot;
mod store;
mod weigh;

pub use accounts::{Accounts, Group, User};
pub use archive::Imported;
pub use config::{Config, Limits};
pub use digest::{ChainId, Digest, ImageId, NotADigest};
pub use error::{Attempts, Error, ErrorKind};
pub use export::Exported;
pub use layer::Usage;
pub use manifest::{ImageConfig, Platform};
pub use observe::Observe;
pub use pull::progress::{PullProgress, PullStage};
pub use reference::{Reference, ReferenceError};
pub use registry::{Auth, ExplainedEndpoint, ExplainedName, LoginSource, Logins};
pub use service::{Content, DamagedLayer, FsInfo, ImageService};
pub use snapshot::Snapshot;
pub use store::catalog::Image;
