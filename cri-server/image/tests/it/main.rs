//! The image service as its caller sees it, against real registries, lying registries and hostile
//! archives. Everything runs in temporary directories and on loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod build;
mod child;
mod crash;
mod disk;
mod export;
mod faults;
mod faulty;
mod hostile;
mod import;
mod kept;
mod memory;
mod mounts;
mod node;
mod policy;
mod proxy;
mod pull;
mod registry;
mod tls;
