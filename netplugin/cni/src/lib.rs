//! The calling side of CNI: the cluster's own network plugins, run as its specification says
//! (versions 0.3.1 to 1.1.0), each bounded in time and output.
//!
//! A *network* is a chain of plugins from one configuration file; an *attachment* is one link of
//! one container in it. The crate keeps nothing: whoever attaches remembers [`Network`],
//! [`Attachment`] and [`Answer`], for the way down needs them.

mod cache;
mod call;
mod chain;
mod conf;
mod conf_dir;
mod error;
mod program;
mod result;
mod sys;
mod version;

pub use cache::Cache;
pub use call::{Attachment, Verb};
pub use chain::Plugins;
pub use conf::Network;
pub use conf_dir::{Watch, load};
pub use error::{Error, Failure};
pub use result::Answer;
