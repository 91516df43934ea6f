//! The daemon's side of the runtime: starts shims, finds them again, and speaks to them.

mod bare;
mod client;
mod error;
mod held;
mod holder;
mod record;
mod request;
mod session;
mod shims;
mod spawn;
mod sweep;
mod sys;

pub use cgroup;
pub use client::Shim;
pub use error::{Error, ErrorKind};
pub use held::Held;
pub use holder::Holder;
pub use protocol::wire::TREES_MAX;
pub use request::*;
pub use session::{Attach, Exec, ExecSession, Family, Streams};
pub use shims::{ShimCgroup, Shims};
