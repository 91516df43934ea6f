//! Runtimes with a command line: `run BUNDLE` until it has ended and is gone.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::bundle::Bundle;

#[derive(Debug)]
pub(crate) struct Peer {
    /// With its version.
    pub(crate) name: String,
    program: String,
    /// It does not start where a cgroup v2 tree stands beside v1 hierarchies.
    no_unified: bool,
}

impl Peer {
    pub(crate) fn plain(program: &Path) -> Self {
        let out = Command::new(program).arg("--version").output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let version = text.lines().next().unwrap_or("?").replace("version ", "");
        Self { name: version, program: program.display().to_string(), no_unified: false }
    }

    pub(crate) fn crun(program: &Path) -> Self {
        let hybrid = Path::new("/sys/fs/cgroup/unified").exists();
        Self { no_unified: hybrid, ..Self::plain(program) }
    }

    pub(crate) fn run(&self, bundle: &Bundle, prefix: &str, rounds: usize) -> Vec<Duration> {
        let own = std::env::current_exe().unwrap();
        let mut command = match self.no_unified {
            false => Command::new(&own),
            true => {
                let mut command = Command::new("unshare");
                let script = "umount /sys/fs/cgroup/unified && exec \"$@\"";
                command.args(["--mount", "sh", "-c", script, "sh"]).arg(&own);
                command
            }
        };
        command
            .arg("rounds")
            .arg(&self.program)
            .arg(&bundle.dir)
            .arg(prefix)
            .arg(rounds.to_string());
        let out = command.stderr(Stdio::inherit()).output().unwrap();
        assert!(out.status.success(), "{} failed", self.name);
        let text = String::from_utf8_lossy(&out.stdout);
        text.lines().map(|line| Duration::from_nanos(line.parse().unwrap())).collect()
    }
}

/// Prints what each round took, in nanoseconds.
pub(crate) fn rounds(program: &str, bundle: &Path, prefix: &str, rounds: usize) {
    for n in 0..rounds {
        let id = format!("lapstrake-bench-{}-{prefix}-{n}", std::process::id());
        let begun = Instant::now();
        let status = Command::new(program)
            .arg("--root")
            .arg(bundle.with_file_name("state"))
            .args(["run", "--bundle"])
            .arg(bundle)
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        let took = begun.elapsed();
        assert!(status.success(), "{program}: {status}");
        println!("{}", took.as_nanos());
    }
}
