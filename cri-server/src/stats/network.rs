//! Traffic of a pod: the counters of its network namespace, read through the process that holds it.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};

/// Counters since each interface was made, as seen from inside the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Nanoseconds since 1970.
    pub(crate) at_ns: i64,
    /// The interface that the pod's address is on; its index below.
    pub(crate) default: Option<usize>,
    /// All but loopback.
    pub(crate) interfaces: Vec<Interface>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) received: Direction,
    pub(crate) sent: Direction,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Direction {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) errors: u64,
    pub(crate) dropped: u64,
}

/// The way to a pod's counters. Holds the directory of the process and not of the namespace: that
/// one must end with the pod, and a process id that is used again is noticed.
#[derive(Debug)]
pub(super) struct Probe {
    process: OwnedFd,
    default: Option<String>,
}

/// Longest file of `/proc/net` that is read: some thousand interfaces or routes.
const FILE_MAX: usize = 1 << 20;

impl Probe {
    pub(super) fn open(pid: i32, address: Option<IpAddr>) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let process = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()).ok()?;
        let mut probe = Self { process, default: None };
        probe.default = address.and_then(|address| {
            let (file, find): (_, fn(&str, IpAddr) -> Option<String>) = match address {
                IpAddr::V4(_) => ("net/route", interface_of_route),
                IpAddr::V6(_) => ("net/if_inet6", interface_of_address),
            };
            find(&probe.text(file)?, address)
        });
        Some(probe)
    }

    /// `None` when the process is gone.
    pub(super) fn read(&self, at_ns: i64) -> Option<Traffic> {
        let interfaces = interfaces(&self.text("net/dev")?);
        let named = |name: &str| interfaces.iter().position(|it| it.name == name);
        let default = self.default.as_deref().and_then(named);
        let default = default.or_else(|| named("eth0")).or((!interfaces.is_empty()).then_some(0));
        Some(Traffic { at_ns, default, interfaces })
    }

    fn text(&self, file: &str) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(self.process.as_fd(), file, flags, Mode::empty()).ok()?;
        let mut text = String::new();
        let file = std::fs::File::from(file);
        std::io::Read::read_to_string(&mut std::io::Read::take(file, FILE_MAX as u64), &mut text)
            .ok()?;
        Some(text)
    }
}

/// `/proc/net/dev`, without loopback.
fn interfaces(text: &str) -> Vec<Interface> {
    let lines = text.lines().filter_map(|line| {
        let (name, numbers) =
            line.rsplit_once(':').filter(|(_, numbers)| !numbers.contains('|'))?;
        let numbers: Vec<u64> =
            numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let direction = |first: usize| {
            Some(Direction {
                bytes: *numbers.get(first)?,
                packets: *numbers.get(first + 1)?,
                errors: *numbers.get(first + 2)?,
                dropped: *numbers.get(first + 3)?,
            })
        };
        let name = name.trim().to_owned();
        Some(Interface { name, received: direction(0)?, sent: direction(8)? })
    });
    lines.filter(|interface| interface.name != "lo").collect()
}

/// The interface of the narrowest route of `/proc/net/route` that an address of the pod is in:
/// that of its own subnet.
fn interface_of_route(text: &str, address: IpAddr) -> Option<String> {
    let IpAddr::V4(address) = address else { return None };
    let address = u32::from_ne_bytes(address.octets());
    let fitting = text.lines().skip(1).filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let hex = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok();
        let (destination, mask) = (hex(1)?, hex(7)?);
        let fits = address & mask == destination;
        fits.then(|| (mask.count_ones(), words[0].to_owned()))
    });
    fitting.max_by_key(|(bits, _)| *bits).map(|(_, name)| name)
}

/// The interface of an address in `/proc/net/if_inet6`.
fn interface_of_address(text: &str, address: IpAddr) -> Option<String> {
    let IpAddr::V6(address) = address else { return None };
    let hex: String = address.octets().iter().map(|byte| format!("{byte:02x}")).collect();
    let line = text.lines().find(|line| line.starts_with(&hex))?;
    line.split_whitespace().last().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:    2048      20    1    2    0     0          0         0     4096      40    3    4    0     0       0          0
net1: 5 6 7 8 0 0 0 0 9 10 11 12 0 0 0 0
";

    #[test]
    fn every_interface_but_loopback_is_told_with_all_its_counters() {
        let found = interfaces(DEV);
        assert_eq!(found.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["eth0", "net1"]);
        let received = Direction { bytes: 2048, packets: 20, errors: 1, dropped: 2 };
        let sent = Direction { bytes: 4096, packets: 40, errors: 3, dropped: 4 };
        assert_eq!((found[0].received, found[0].sent), (received, sent));
        assert_eq!((found[1].received.dropped, found[1].sent.bytes), (8, 9));
    }

    #[test]
    fn the_default_interface_is_the_one_that_the_pods_address_is_on() {
        let route = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                     net0 00000000 010AF40A 0003 0 0 0 00000000 0 0 0\n\
                     net1 0000F40A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
        // Such files are in the order of bytes of the machine; these are little endian.
        if cfg!(target_endian = "little") {
            let at = |text: &str| interface_of_route(route, text.parse().unwrap());
            assert_eq!(at("10.244.0.7"), Some("net1".to_owned()));
            assert_eq!(at("10.9.0.7"), Some("net0".to_owned()));
        }
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fd000000000000000000000000000007 02 40 00 80     eth9\n";
        assert_eq!(interface_of_address(inet6, "fd00::7".parse().unwrap()), Some("eth9".into()));
    }
}
