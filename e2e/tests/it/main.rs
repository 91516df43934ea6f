//! The built binaries, driven over their socket as a kubelet does, on a real kernel with real
//! payloads. One binary, so that everything is linked once.
//!
//! Do not add a test here for what a pure function decides: that belongs beside the function. A
//! test here says something about the whole: that an asked-for pod is a process with those limits,
//! that a file is where the kubelet looks, that nothing is left behind.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod apparmor;
mod bad_input;
mod command_line;
mod container_lifecycle;
mod crictl;
mod defaults;
mod devices;
mod events;
mod exec;
mod exec_pressure;
mod exec_session;
mod foreign_runtimes;
mod image_volumes;
mod images;
mod init;
mod isolation;
mod logs;
mod metrics;
mod multi_node;
mod namespaces;
mod networking;
mod no_nf_tables;
mod node_network;
mod node_page;
mod packaged_unit;
mod plugins;
mod process_settings;
mod pulling;
mod recovery;
mod refused;
mod resources;
mod sandbox_lifecycle;
mod scopes;
mod selinux;
mod sharing;
mod smoke;
mod stats;
mod streaming;
mod user_namespaces;
mod vm;
mod volumes;
mod writable_limit;
