//! One layer: from compressed bytes to a directory that overlayfs can use as a lower.

pub(crate) mod archive;
pub(crate) mod compare;
mod inflate;
pub(crate) mod inventory;
pub(crate) mod merged;
pub(crate) mod pack;
mod pax;
pub(crate) mod settle;
pub(crate) mod tree;
mod unpack;
mod write;

pub(crate) use inflate::plain;
pub(crate) use unpack::{Job, UnpackError, unpack};
pub use write::Usage;
pub(crate) use write::{Made, WriteError, open_directory_path};
