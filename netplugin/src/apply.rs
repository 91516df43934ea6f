//! Gives a sandbox its network: lease first, then the kernel, and all the way back on a failure.

use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnetwork::IpNetwork;
use netlink_packet_route::link::InfoKind;

use crate::bandwidth::Rate;
use crate::error::Error;
use crate::facts;
use crate::ipam::{self, Range};
use crate::leases::{Lease, NewLease};
use crate::loopback::Loopback;
use crate::netlink::link::{Link, Veth};
use crate::netlink::{addr, link, route, shaper};
use crate::netns::{self, Netns, Sysctl};
use crate::network::{AttachRequest, Attachment, Host, LinkOptions, Network, State, check_request};
use crate::nft::{Pod, Settings};
use crate::plan::{self, Names};
use crate::ports::PortMapping;

/// Name of the link in the pod, as everything in Kubernetes expects it.
const POD_LINK: &str = "eth0";
/// Names tried for a host link. A name is taken for as long as the kernel needs to remove the link of
/// an earlier sandbox of the same identifier, or if 32 bits of two hashes are equal.
const NAME_ATTEMPTS: u32 = 4;

/// Leases make addresses unique; looking for duplicates of link-local ones floods the bridge.
const WITH_IPV6: &[Sysctl] =
    &[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")];

impl Network {
    /// Gives a sandbox a network namespace with a link, addresses, routes, masquerade and its host
    /// ports. On an error nothing of it is left.
    pub fn attach(&self, request: &AttachRequest) -> Result<Attachment, Error> {
        self.attach_with(request, &LinkOptions::default())
    }

    /// The same with a link that is not the usual one.
    pub fn attach_with(
        &self,
        request: &AttachRequest,
        options: &LinkOptions,
    ) -> Result<Attachment, Error> {
        check_request(request)?;
        let sysctls = if self.lock().has_ipv6() { WITH_IPV6 } else { &[] };
        // Outside the lock: the one expensive step that runs well beside those of other pods.
        let mut netns = match &request.netns {
            None => netns::create(sysctls)?,
            Some(fd) => netns::enter(fd.as_fd())?,
        };
        let mut state = self.lock();
        let lease = self.lease(&mut state, request)?;
        match self.connect(&mut state, lease, options, &mut netns) {
            Ok((lease, mtu)) => Ok(Attachment {
                netns: netns.fd,
                interface: pod_link(options).to_owned(),
                host_link: lease.host_link,
                mac: plan::pod_mac(&lease.addresses),
                mtu,
                addresses: lease.addresses,
                gateways: lease.gateways,
            }),
            Err(error) => {
                let left = self.roll_back(&mut state, &request.sandbox_id, request.netns.is_some());
                drop(left);
                Err(error)
            }
        }
    }

    /// Chooses addresses and writes down who has them.
    fn lease(&self, state: &mut State, request: &AttachRequest) -> Result<Lease, Error> {
        let id = &request.sandbox_id;
        if state.leases.get(id).is_some() {
            return Err(Error::Attached(id.clone()));
        }
        let ports: Vec<_> =
            request.port_mappings.iter().filter(|port| port.host_port != 0).cloned().collect();
        for port in &ports {
            let holds = |lease: &&Lease| lease.ports.iter().any(|other| other.conflicts(port));
            if let Some(lease) = state.leases.iter().find(holds) {
                return Err(Error::PortTaken {
                    port: port.to_string(),
                    owner: format!("{} (sandbox {})", lease.owner, lease.sandbox_id),
                });
            }
        }
        let (addresses, gateways) = choose(state)?;
        let unserved = |port: &&PortMapping| !addresses.iter().any(|own| port.serves(own.ip()));
        if let Some(port) = ports.iter().find(unserved) {
            let reason = "the pod has no address of its family".to_owned();
            return Err(Error::Port { port: port.to_string(), reason });
        }
        state.leases.add(NewLease {
            sandbox_id: id.clone(),
            owner: request.owner.clone(),
            host_link: self.names.host_link(id, 0),
            addresses,
            gateways,
            ports,
        })
    }

    pub(crate) fn connect(
        &self,
        state: &mut State,
        lease: Lease,
        options: &LinkOptions,
        netns: &mut Netns,
    ) -> Result<(Lease, u32), Error> {
        let name = pod_link(options);
        let (lease, host) = self.create_pair(state, lease, name, netns)?;
        // Its index is not always the first free one: some kernels put tunnels into every namespace.
        let index = match link::find(&mut netns.route, name)? {
            Some(link) => link.index,
            None => return Err(Error::kernel("find link", name, rustix::io::Errno::NODEV)),
        };
        let mut requests = vec![link::set_up(link::LOOPBACK, "lo")];
        if host.ipv6 && !lease.addresses.iter().any(IpNetwork::is_ipv6) {
            requests.push(link::without_ipv6(index, name));
        }
        requests.push(link::set_up(index, name));
        requests.extend(lease.addresses.iter().map(|address| addr::add(index, *address)));
        requests.extend(lease.gateways.iter().map(|gateway| route::add_default(index, *gateway)));
        // What the pod sends is limited where it sends, what it receives where the host sends.
        requests.extend(options.bandwidth.egress.map(|rate| shaper::limit(index, name, &rate)));
        netns.route.batch(&requests)?;
        if let Some(rate) = options.bandwidth.ingress {
            self.limit_host_link(state, &lease, &rate)?;
        }
        self.publish(state, &lease)?;
        Ok((lease, host.mtu))
    }

    fn limit_host_link(&self, state: &mut State, lease: &Lease, rate: &Rate) -> Result<(), Error> {
        let name = &lease.host_link;
        let Some(link) = link::find(&mut state.route, name)? else {
            return Err(Error::kernel("find link", name, rustix::io::Errno::NODEV));
        };
        state.route.batch(&[shaper::limit(link.index, name, rate)])
    }

    /// Creates the veth pair under a name that is free, on a bridge that exists.
    fn create_pair(
        &self,
        state: &mut State,
        mut lease: Lease,
        name: &str,
        netns: &Netns,
    ) -> Result<(Lease, Host), Error> {
        let mut attempt = 0;
        let mut bridge_was_checked = state.host.is_none();
        loop {
            let host = self.prepare(state)?;
            let pair = link::create_veth(&Veth {
                host: &lease.host_link,
                peer: name,
                mac: plan::pod_mac(&lease.addresses),
                mtu: host.mtu,
                bridge: host.bridge,
                netns: netns.as_fd(),
            });
            let alias = self.names.link_alias(&lease.sandbox_id);
            let port = link::set_up_port(&lease.host_link, &alias, host.ipv6);
            let error = match state.route.batch(&[pair, port]) {
                Ok(()) => return Ok((lease, host)),
                Err(error) => error,
            };
            if error.errno() == Some(libc::EEXIST) && attempt + 1 < NAME_ATTEMPTS {
                attempt += 1;
                let name = self.names.host_link(&lease.sandbox_id, attempt);
                lease = state.leases.rename_link(&lease.sandbox_id, name)?.unwrap_or(lease);
            } else if !bridge_was_checked {
                // The bridge may have been deleted behind our back.
                bridge_was_checked = true;
                state.host = None;
            } else {
                return Err(error.hint(libc::EXFULL, "a Linux bridge has room for 1023 pods"));
            }
        }
    }

    /// Puts the pod into the table; puts the table back first if somebody flushed it.
    fn publish(&self, state: &mut State, lease: &Lease) -> Result<(), Error> {
        match state.nft.add(&pod(lease)) {
            Err(error) if error.errno() == Some(libc::ENOENT) => self.rebuild_table(state)?,
            result => result?,
        }
        if let Some(Ok(loopback)) = &state.loopback {
            loopback.add(&pod(lease))?;
        }
        let ports = lease.udp_ports();
        if ports.is_empty() {
            return Ok(());
        }
        // Flows that began before the port led here: to the host itself, or to a pod before.
        let hosts = addr::list(&mut state.route, None)?;
        state.conntrack.forget_udp(&ports, |flow| {
            hosts.iter().any(|host| host.ip() == flow.destination)
                && !lease.addresses.iter().any(|own| own.ip() == flow.answered_by)
        })
    }

    /// Brings host ports to the loopback address, once. A node that cannot do this has all others; a
    /// process that ends at once has no use for it.
    fn open_loopback(state: &mut State) -> Result<(), Error> {
        if state.loopback.is_none() && !state.shared {
            state.loopback = Some(Loopback::open().map_err(|error| error.to_string()));
        }
        if let Some(Ok(loopback)) = &state.loopback {
            for lease in state.leases.iter() {
                loopback.add(&pod(lease))?;
            }
        }
        Ok(())
    }

    /// Sees to it that the bridge and the table are there, once.
    pub(crate) fn prepare(&self, state: &mut State) -> Result<Host, Error> {
        if let Some(host) = state.host {
            return Ok(host);
        }
        if state.ranges.is_empty() {
            return Err(Error::NoRange);
        }
        // First of all: a kernel without tables refuses this, and nothing else is changed then.
        let is_current = self.table_is_current(state)?;
        facts::enable_forwarding(state.has_ipv6())?;
        let mtu = match self.config.mtu {
            Some(mtu) => mtu,
            None => facts::uplink_mtu(&mut state.route)?,
        };
        let bridge = self.prepare_bridge(state, mtu)?;
        if !(state.shared && is_current) {
            self.rebuild_table(state)?;
        }
        Self::open_loopback(state)?;
        let ipv6 = facts::kernel_has_ipv6();
        let host = Host { bridge, mtu, ipv6 };
        state.host = Some(host);
        Ok(host)
    }

    /// Puts the table there as the leases say, in one transaction.
    pub(crate) fn rebuild_table(&self, state: &mut State) -> Result<(), Error> {
        let local = self.local(state);
        let pods: Vec<Pod<'_>> = state.leases.iter().map(pod).collect();
        state.nft.rebuild(&self.settings(&local), &pods)
    }

    /// Whether the table stands and was made for these settings.
    pub(crate) fn table_is_current(&self, state: &mut State) -> Result<bool, Error> {
        let local = self.local(state);
        state.nft.is_current(&self.settings(&local))
    }

    /// Destinations that see the pods' own addresses.
    fn local(&self, state: &State) -> Vec<IpNetwork> {
        let ranges = state.ranges.iter().map(Range::network);
        ranges.chain(self.config.no_masquerade.iter().copied()).collect()
    }

    fn settings<'a>(&'a self, local: &'a [IpNetwork]) -> Settings<'a> {
        Settings { bridge: &self.config.bridge, masquerade: self.config.masquerade, local }
    }

    fn prepare_bridge(&self, state: &mut State, mtu: u32) -> Result<u32, Error> {
        let (name, names) = (&self.config.bridge, &self.names);
        if link::find(&mut state.route, name)?.is_none() {
            state.route.batch(&[
                link::create_bridge(name, names.bridge_mac(), mtu),
                link::set_alias(name, &names.bridge_alias()),
            ])?;
        }
        let Some(bridge) = link::find(&mut state.route, name)? else {
            return Err(Error::kernel("find bridge", name, rustix::io::Errno::NODEV));
        };
        check_bridge(names, &bridge)?;
        if state.has_ipv6() {
            netns::write_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
            netns::write_sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
        } else {
            netns::write_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
        }
        let present = addr::list(&mut state.route, Some(bridge.index))?;
        let mut requests: Vec<_> = state
            .ranges
            .iter()
            .filter_map(|range| IpNetwork::new(range.gateway(), range.network().prefix()).ok())
            .filter(|gateway| !present.contains(gateway))
            .map(|gateway| addr::add(bridge.index, gateway))
            .collect();
        if !bridge.up {
            requests.push(link::set_up(bridge.index, name));
        }
        // Ports that lost their bridge, because somebody deleted it, or were set down.
        for port in link::list(&mut state.route)? {
            let Some(alias) = &port.alias else { continue };
            if names.sandbox_of(alias).is_none() {
                continue;
            }
            if port.controller != Some(bridge.index) {
                requests.push(link::join_bridge(&port, bridge.index));
                requests.push(link::set_up_port(&port.name, alias, facts::kernel_has_ipv6()));
            }
            if !port.up {
                requests.push(link::set_up(port.index, &port.name));
            }
        }
        state.route.batch(&requests)?;
        Ok(bridge.index)
    }
}

/// Whether a link of the bridge's name may serve as our bridge.
pub(crate) fn check_bridge(names: &Names, link: &Link) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::Bridge { name: link.name.clone(), reason });
    if link.kind != Some(InfoKind::Bridge) {
        let kind = link.kind.as_ref().map_or("physical".to_owned(), ToString::to_string);
        return refuse(format!("it is a {kind} link; set network.bridge to another name"));
    }
    match &link.alias {
        Some(alias) if alias.starts_with("lapstrake:") && *alias != names.bridge_alias() => {
            refuse(format!("it belongs to another daemon ({alias})"))
        }
        _ => Ok(()),
    }
}

/// A lease as the table knows it.
pub(crate) fn pod(lease: &Lease) -> Pod<'_> {
    Pod { addresses: &lease.addresses, ports: &lease.ports }
}

fn pod_link(options: &LinkOptions) -> &str {
    options.interface.as_deref().unwrap_or(POD_LINK)
}

/// One address and its gateway of each family that has a range, IPv4 first.
fn choose(state: &State) -> Result<(Vec<IpNetwork>, Vec<IpAddr>), Error> {
    if state.ranges.is_empty() {
        return Err(Error::NoRange);
    }
    let (mut addresses, mut gateways) = (Vec::new(), Vec::new());
    for ipv6 in [false, true] {
        let ranges: Vec<&Range> =
            state.ranges.iter().filter(|range| range.is_ipv6() == ipv6).collect();
        if ranges.is_empty() {
            continue;
        }
        let Some(address) = ipam::choose(&ranges, state.leases.taken(), state.leases.cursor(ipv6))
        else {
            let names: Vec<_> = ranges.iter().map(|range| range.network().to_string()).collect();
            return Err(Error::Exhausted {
                ranges: names.join(", "),
                count: ranges.iter().map(|range| range.capacity()).sum(),
            });
        };
        let range = ranges.iter().find(|range| range.network().contains(address.ip()));
        gateways.extend(range.map(|range| range.gateway()));
        addresses.push(address);
    }
    Ok((addresses, gateways))
}
