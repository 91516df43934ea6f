//! Control groups by systemd: one transient scope per container, made over D-Bus by those who may wait for it (the
//! daemon, the command line). The shim knows nothing of this: to it a scope is a path.
//!
//! A scope cannot be empty, so it is made around a sleeping *holder*; the container is born in its group, and then
//! the holder ends. systemd is told the limits, too: a group whose limits it does not know it may reset.

mod bus;
mod properties;

pub use bus::{Bus, Error};
pub use properties::{Property, Setting, back, properties};
