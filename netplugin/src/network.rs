//! The network of one daemon: the interface of this crate and the state behind it.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnetwork::IpNetwork;

use crate::bandwidth::Bandwidth;
use crate::config::Config;
use crate::conntrack::Conntrack;
use crate::error::Error;
use crate::ipam::{self, Range};
use crate::leases::{Leases, is_id};
use crate::loopback::Loopback;
use crate::netlink::{Route, link};
use crate::netns;
use crate::nft::Nft;
use crate::plan::Names;
use crate::ports::PortMapping;
use crate::survey;

/// What a sandbox asks of the network.
#[derive(Debug, Default)]
pub struct AttachRequest {
    /// Names the sandbox in every later call: 1 to 200 letters, digits, `.`, `_` or `-`.
    pub sandbox_id: String,
    /// Who the sandbox is to a human, `namespace/name`; for error texts of others.
    pub owner: String,
    /// Ports of the host that lead to it.
    pub port_mappings: Vec<PortMapping>,
    /// An existing network namespace to set up instead of a new one, for pods whose namespace must
    /// belong to their user namespace.
    pub netns: Option<OwnedFd>,
}

/// What the link of a sandbox is to be, besides the usual.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkOptions {
    /// Name of the link in the namespace; `None` is `eth0`.
    pub interface: Option<String>,
    /// How fast the sandbox may send and receive.
    pub bandwidth: Bandwidth,
}

/// The network a sandbox got.
#[derive(Debug)]
pub struct Attachment {
    /// The network namespace. Nothing else holds it: whoever should live in it must get this
    /// descriptor before it is dropped.
    pub netns: OwnedFd,
    /// Name of the link in the namespace.
    pub interface: String,
    /// Name of its other end on the host, for counters.
    pub host_link: String,
    /// Hardware address of the link in the namespace.
    pub mac: [u8; 6],
    /// MTU of the link in the namespace, in bytes.
    pub mtu: u32,
    /// One address of each family that has a range, IPv4 first, with the prefix of the range.
    pub addresses: Vec<IpNetwork>,
    /// The default gateway of each family, in the same order.
    pub gateways: Vec<IpAddr>,
}

/// One bridge with its leases and its nftables table.
///
/// All methods block for as long as the kernel takes, about a millisecond, and may be called from
/// several threads: they take turns where the kernel would make them anyway.
pub struct Network {
    pub(crate) config: Config,
    pub(crate) names: Names,
    state: Mutex<State>,
}

/// What changes over time.
pub(crate) struct State {
    pub(crate) ranges: Vec<Range>,
    pub(crate) leases: Leases,
    pub(crate) route: Route,
    pub(crate) nft: Nft,
    pub(crate) conntrack: Conntrack,
    /// There since the first pod; the reason if it cannot be.
    pub(crate) loopback: Option<Result<Loopback, String>>,
    /// `None` until the bridge and the table have been seen to be as they should.
    pub(crate) host: Option<Host>,
    /// Sandboxes without a link, as of the last look.
    pub(crate) lost: Vec<String>,
    /// Whether a table that looks right need not be written anew: other processes share it.
    pub(crate) shared: bool,
}

/// The bridge as it was found or made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    pub(crate) bridge: u32,
    pub(crate) mtu: u32,
    /// Whether the kernel has IPv6, to be switched off on links of the host.
    pub(crate) ipv6: bool,
}

impl Network {
    /// Checks the configuration, opens the leases (waiting up to ten seconds for another process that
    /// uses them) and sockets to the kernel in the network namespace of the calling thread, which is
    /// the host from then on. Changes nothing in the kernel.
    pub fn open(config: Config) -> Result<Network, Error> {
        let mut ranges = config.parse()?;
        let leases = Leases::open(&config.leases_dir)?;
        if !leases.pod_cidr().is_empty() {
            ranges = pod_ranges(leases.pod_cidr(), &config.exclude)?;
        }
        let route = Route::open()?;
        let nft = Nft::open(&config.table);
        let names = Names::new(&config.bridge, &config.table);
        let conntrack = Conntrack::open();
        let state = Mutex::new(State {
            ranges,
            leases,
            route,
            nft,
            conntrack,
            loopback: None,
            host: None,
            lost: Vec::new(),
            shared: false,
        });
        Ok(Network { config, names, state })
    }

    /// The same for a process that lives for one operation, beside others like it: it does not write
    /// the nftables table anew when the table is as it should be.
    pub fn open_shared(config: Config) -> Result<Network, Error> {
        let network = Network::open(config)?;
        network.lock().shared = true;
        Ok(network)
    }

    /// Whether pods can be attached; the reason if they cannot. Reads a little from the kernel and
    /// changes nothing.
    pub fn ready(&self) -> Result<(), String> {
        self.check().map_err(|error| error.to_string())
    }

    /// What this node cannot do, one sentence each. Complete once a pod was attached.
    pub fn shortcomings(&self) -> Vec<String> {
        match &self.lock().loopback {
            Some(Err(reason)) => vec![format!("no host ports on 127.0.0.1 and ::1: {reason}")],
            _ => Vec::new(),
        }
    }

    /// Accepts packets from and to the bridge in every chain of others that would drop them, with
    /// marked rules at the head of those chains. Gives the chains it changed. Whoever owns such a
    /// chain may remove the rules when it is loaded again: [`Network::ready`] notices.
    pub fn admit_forwarding(&self) -> Result<Vec<String>, Error> {
        let mut state = self.lock();
        let ipv6 = state.has_ipv6();
        let chains = state.nft.forward_drops(&self.config.bridge, ipv6)?;
        for chain in &chains {
            state.nft.admit(chain, &self.config.bridge)?;
        }
        Ok(chains.iter().map(ToString::to_string).collect())
    }

    /// Replaces the configured ranges by the pod CIDR of the kubelet: one network, or one of each
    /// family separated by a comma. It is remembered over restarts; leased addresses stay valid.
    pub fn set_pod_cidr(&self, cidr: &str) -> Result<(), Error> {
        let networks = cidr
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .map(|text| {
                text.parse()
                    .map_err(|error| Error::Config(vec![format!("pod CIDR {text}: {error}")]))
            })
            .collect::<Result<Vec<IpNetwork>, Error>>()?;
        if networks.is_empty() {
            return Err(Error::Config(vec![format!("pod CIDR {cidr:?} is empty")]));
        }
        let ranges = pod_ranges(&networks, &self.config.exclude)?;
        let mut state = self.lock();
        if state.leases.pod_cidr() != networks {
            state.leases.set_pod_cidr(networks)?;
        }
        if state.ranges != ranges {
            state.ranges = ranges;
            // The bridge lacks the new gateway addresses.
            state.host = None;
        }
        Ok(())
    }

    /// The addresses a sandbox holds, with the prefix of their range; none for an unknown one.
    pub fn addresses(&self, sandbox_id: &str) -> Vec<IpNetwork> {
        let state = self.lock();
        state.leases.get(sandbox_id).map(|lease| lease.addresses.clone()).unwrap_or_default()
    }

    /// Every sandbox that holds addresses.
    pub fn sandboxes(&self) -> Vec<String> {
        self.lock().leases.iter().map(|lease| lease.sandbox_id.clone()).collect()
    }

    /// The pod CIDR the kubelet sent, also before the last start; empty if it never did.
    pub fn pod_cidr(&self) -> Vec<IpNetwork> {
        self.lock().leases.pod_cidr().to_vec()
    }

    /// A new network namespace, or this one, that has nothing but its loopback link, up.
    pub fn loopback_only(netns: Option<OwnedFd>) -> Result<OwnedFd, Error> {
        let mut netns = match netns {
            None => netns::create(&[])?,
            Some(fd) => netns::enter(fd.as_fd())?,
        };
        netns.route.batch(&[link::set_up(link::LOOPBACK, "lo")])?;
        Ok(netns.fd)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held leaves leases and kernel as a crash would, and that is
        // what the leases are made for.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> Result<(), Error> {
        let mut state = self.lock();
        let State { ranges, route, nft, .. } = &mut *state;
        let obstacles = survey::obstacles(&self.config.bridge, &self.names, ranges, route, nft);
        obstacles.into_iter().next().map_or(Ok(()), Err)
    }
}

impl State {
    pub(crate) fn has_ipv6(&self) -> bool {
        self.ranges.iter().any(Range::is_ipv6)
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Whether a request can be attended to at all.
pub(crate) fn check_request(request: &AttachRequest) -> Result<(), Error> {
    if !is_id(&request.sandbox_id) {
        return Err(Error::Id(request.sandbox_id.clone()));
    }
    let ports = &request.port_mappings;
    for (index, port) in ports.iter().enumerate().filter(|(_, port)| port.host_port != 0) {
        let wrong =
            |reason: &str| Error::Port { port: port.to_string(), reason: reason.to_owned() };
        if port.container_port == 0 {
            return Err(wrong("the container port is 0"));
        }
        if ports[..index].iter().any(|other| other.conflicts(port)) {
            return Err(wrong("is asked for twice by the same pod"));
        }
    }
    Ok(())
}

/// Ranges of a pod CIDR. Exclusions that lie elsewhere belong to ranges no longer in use.
pub(crate) fn pod_ranges(
    networks: &[IpNetwork],
    exclude: &[IpNetwork],
) -> Result<Vec<Range>, Error> {
    let inside: Vec<IpNetwork> = exclude
        .iter()
        .copied()
        .filter(|hole| networks.iter().any(|network| network.contains(hole.network())))
        .collect();
    ipam::parse_ranges(networks, &inside).map_err(Error::Config)
}
