//! Container output to CRI log files, in a thread of its own: a file can block, the control loop must not.

mod file;
mod lines;
mod pump;
mod readers;
mod tail;

pub(crate) use file::touch;
pub(crate) use pump::{Outcome, Pump, Source, Stream};
