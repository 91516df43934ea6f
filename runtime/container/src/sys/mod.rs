//! The system calls that no safe wrapper offers. Each block says why it is sound.
#![allow(unsafe_code)]

pub mod arena;
pub(crate) mod beside;
pub(crate) mod lend;
pub(crate) mod link;
pub mod mount;
pub mod process;
pub(crate) mod schedule;
pub mod signals;
