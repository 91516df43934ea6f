//! Host ports on 127.0.0.1 and ::1.
//!
//! A packet that has a loopback address on it must not leave the host, so rewriting packets is not the
//! way: the kernel drops the answers, and telling it not to (`route_localnet`) opens the services of
//! the host to its neighbours. Instead a connection to the loopback address is made one to the pod
//! before there is any packet: a program at the root of the cgroups changes the address that a process
//! of this host passes to connect(2). Connections that exist do not notice when this daemon stops;
//! the programs go with it and come back when it does.
//!
//! Datagrams of sockets that are not connected are treated one by one, in both directions.
//!
//! Packets of other namespaces and other hosts never pass here.

mod datagram;
mod program;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType, socket};

use crate::error::Error;
use crate::nft::Pod;
use crate::sys::bpf::{self, Map};

/// As many as there are TCP and UDP ports.
const ENTRIES_MAX: u32 = 2 * 65_535;
/// Sockets that sent to a host port without being connected, and ports each sent to; a resolver has a
/// socket for each question under way.
const PEERS_MAX: u32 = 8192;
const KEY: usize = 8;
const VALUE_IPV4: usize = 8;
const VALUE_IPV6: usize = 20;

/// The programs and their tables; they are gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Loopback {
    ipv4: Map,
    ipv6: Map,
    /// Held for the programs to stay attached.
    _links: Vec<OwnedFd>,
}

/// A row of a table.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    ipv6: bool,
    /// Protocol and port, each filling four bytes, the port first in network order.
    key: Vec<u8>,
    /// Address and port of the pod, likewise.
    value: Vec<u8>,
}

impl Loopback {
    /// Attaches the programs, for processes in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Loopback, Error> {
        let path = cgroup_root()?;
        let failed = |stage| {
            let path = path.clone();
            move |source: io::Error| Error::file(stage, path, source)
        };
        let cgroup: OwnedFd = fs::File::open(&path).map_err(failed("open"))?.into();
        let any_socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None)
            .map_err(|errno| Error::kernel("open socket", "unix", errno))?;
        let cookie = bpf::netns_cookie(any_socket.as_fd()).map_err(|source| {
            Error::kernel("ask for the cookie of", "network namespace", source)
        })?;
        let table = "create table for host ports on the loopback address at";
        let ipv4 = Map::create(KEY, VALUE_IPV4, ENTRIES_MAX).map_err(failed(table))?;
        let ipv6 = Map::create(KEY, VALUE_IPV6, ENTRIES_MAX).map_err(failed(table))?;
        // The programs keep these two.
        let peers4 = Map::of_recent(datagram::PEER_KEY_IPV4, VALUE_IPV4, PEERS_MAX);
        let peers6 = Map::of_recent(datagram::PEER_KEY_IPV6, VALUE_IPV6, PEERS_MAX);
        let (peers4, peers6) = (peers4.map_err(failed(table))?, peers6.map_err(failed(table))?);
        let (ports4, ports6) = (ipv4.as_fd(), ipv6.as_fd());
        let (peers4, peers6) = (peers4.as_fd(), peers6.as_fd());
        let programs = [
            (program::connect4(cookie, ports4), program::HOOK_CONNECT4),
            (program::connect6(cookie, ports4, ports6), program::HOOK_CONNECT6),
            (datagram::send4(cookie, ports4, peers4), datagram::HOOK_SEND4),
            (datagram::send6(cookie, ports6, peers6), datagram::HOOK_SEND6),
            (datagram::receive4(cookie, peers4), datagram::HOOK_RECEIVE4),
            (datagram::receive6(cookie, peers4, peers6), datagram::HOOK_RECEIVE6),
        ];
        let attach = |(code, hook): (Vec<u64>, u32)| {
            bpf::load(&code, hook)
                .and_then(|program| bpf::attach(program.as_fd(), cgroup.as_fd(), hook))
                .map_err(failed("attach program for host ports on the loopback address to"))
        };
        let links = programs.into_iter().map(attach).collect::<Result<_, _>>()?;
        Ok(Loopback { ipv4, ipv6, _links: links })
    }

    pub(crate) fn add(&self, pod: &Pod<'_>) -> Result<(), Error> {
        for entry in entries(pod) {
            self.table(&entry).insert(&entry.key, &entry.value).map_err(|source| {
                Error::kernel("add host port to", "the loopback address", source)
            })?;
        }
        Ok(())
    }

    pub(crate) fn remove(&self, pod: &Pod<'_>) -> Result<(), Error> {
        for entry in entries(pod) {
            self.table(&entry).remove(&entry.key).map_err(|source| {
                Error::kernel("remove host port from", "the loopback address", source)
            })?;
        }
        Ok(())
    }

    fn table(&self, entry: &Entry) -> &Map {
        if entry.ipv6 { &self.ipv6 } else { &self.ipv4 }
    }
}

fn entries(pod: &Pod<'_>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for address in pod.addresses.iter().map(ipnetwork::IpNetwork::ip) {
        let ports = pod.ports.iter().filter(|port| {
            port.host_port != 0
                && port.serves(address)
                && port.bound_to().is_none_or(|host| host.is_loopback())
        });
        for port in ports {
            let mut key = u32::from(port.protocol.number()).to_ne_bytes().to_vec();
            key.extend(network_word(port.host_port));
            let mut value = match address {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            value.extend(network_word(port.container_port));
            entries.push(Entry { ipv6: address.is_ipv6(), key, value });
        }
    }
    entries
}

/// A port as the programs see it: in network order in the first half of a word.
fn network_word(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// Where the cgroup v2 hierarchy is mounted; on nodes with version 1 it is beside the others.
fn cgroup_root() -> Result<String, Error> {
    const MOUNTS: &str = "/proc/self/mounts";
    let mounts =
        fs::read_to_string(MOUNTS).map_err(|source| Error::file("read", MOUNTS, source))?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(|path| (*path).to_owned()))
        .ok_or_else(|| Error::kernel("find", "a cgroup v2 mount", rustix::io::Errno::NOENT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{PortMapping, Protocol};

    #[test]
    fn only_ports_that_the_loopback_address_has_are_entered() {
        let addresses = ["10.9.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()];
        let port = |host_ip: &str| PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_port: 8080,
            host_ip: (!host_ip.is_empty()).then(|| host_ip.parse().unwrap()),
        };
        for (host_ip, expected) in [
            ("", vec![false, true]),
            ("0.0.0.0", vec![false]),
            ("::", vec![true]),
            ("127.0.0.1", vec![false]),
            ("192.168.0.1", vec![]),
        ] {
            let ports = [port(host_ip)];
            let entries = entries(&Pod { addresses: &addresses, ports: &ports });
            let families: Vec<_> = entries.iter().map(|entry| entry.ipv6).collect();
            assert_eq!(families, expected, "{host_ip}");
            for entry in entries {
                assert_eq!(entry.key.len(), KEY);
                assert_eq!(entry.value.len(), if entry.ipv6 { VALUE_IPV6 } else { VALUE_IPV4 });
                assert_eq!(entry.key[4..], [0x1f, 0x90, 0, 0]);
            }
        }
    }
}
