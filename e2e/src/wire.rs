//! Hosts beside this one: network namespaces with a name, joined by cables.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// A host of its own as far as the network goes; gone when dropped, with all links in it.
#[derive(Debug)]
pub struct Host {
    pub name: String,
}

impl Host {
    /// With its loopback link up and nothing else.
    pub fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let host = Self { name: format!("lse2e-{}-{number}", std::process::id()) };
        run(&format!("ip netns add {}", host.name));
        host.run("ip link set lo up");
        host
    }

    /// Two hosts joined by a cable: `uplink` on both ends, with these addresses.
    pub fn pair(one: &[&str], two: &[&str]) -> (Self, Self) {
        let (a, b) = (Self::new(), Self::new());
        run(&format!(
            "ip link add uplink netns {} type veth peer name uplink netns {}",
            a.name, b.name
        ));
        for (host, addresses) in [(&a, one), (&b, two)] {
            for address in addresses {
                host.run(&format!("ip addr add {address} dev uplink nodad"));
            }
            host.run("ip link set uplink up");
        }
        (a, b)
    }

    /// Output of a command on the host; anything but success panics.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        checked(line, &output)
    }

    /// Output of a command on the host, and whether it succeeded.
    pub fn attempt(&self, line: &str) -> (bool, String) {
        let output = self.command(line).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A command to be run on the host, words separated by blanks.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).args(line.split(' '));
        command
    }

    /// The page behind a URL; nothing when there is none within seconds.
    pub fn fetch(&self, url: &str) -> String {
        // Debian's busybox crashes with a time limit of its own.
        self.attempt(&format!("timeout 5 busybox wget -qO- {url}")).1
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// Output of a command in the network namespace that a path leads to.
#[track_caller]
pub fn run_in(netns: &Path, line: &str) -> String {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.display())).args(line.split(' '));
    checked(line, &command.output().unwrap())
}

#[track_caller]
fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    checked(line, &output)
}

#[track_caller]
fn checked(line: &str, output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {}: {error}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
