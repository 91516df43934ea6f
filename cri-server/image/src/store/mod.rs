//! What the image service keeps on disk: records, layer directories, manifests and configurations.

pub(crate) mod blob;
pub(crate) mod catalog;
pub(crate) mod layout;
pub(crate) mod record;
pub(crate) mod shelf;
