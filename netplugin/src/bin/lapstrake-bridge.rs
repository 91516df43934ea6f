//! The built-in network of Lapstrake as a CNI plugin.

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    netplugin::cni::run(&std::env::vars().collect(), io::stdin().lock(), io::stdout().lock())
}
