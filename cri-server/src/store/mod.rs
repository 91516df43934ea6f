//! What the daemon knows and keeps: the world in memory, its records on disk, and the operations
//! under way.

pub(crate) mod disk;
pub(crate) mod operations;
pub(crate) mod recover;
pub(crate) mod restore;
pub(crate) mod world;
