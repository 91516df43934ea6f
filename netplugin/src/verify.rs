//! Compares what should be there with what is, and puts back what others removed.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use ipnetwork::IpNetwork;

use crate::apply::pod;
use crate::error::Error;
use crate::netlink::{addr, link};
use crate::netns;
use crate::network::{LinkOptions, Network, State};

impl Network {
    /// Whether the network of a sandbox is as [`Network::attach`] left it; what is missing if not.
    pub fn verify(
        &self,
        sandbox_id: &str,
        netns: BorrowedFd<'_>,
        interface: &str,
    ) -> Result<(), Error> {
        let mut state = self.lock();
        let State { leases, route, nft, .. } = &mut *state;
        let missing = |object: String| Err(Error::Missing { sandbox: sandbox_id.into(), object });
        let Some(lease) = leases.get(sandbox_id) else {
            return missing("its lease".to_owned());
        };
        let bridge = link::find(route, &self.config.bridge)?;
        let host = link::find(route, &lease.host_link)?;
        match (&bridge, &host) {
            (None, _) => return missing(format!("bridge {}", self.config.bridge)),
            (_, None) => return missing(format!("host link {}", lease.host_link)),
            (Some(bridge), Some(host)) if host.controller != Some(bridge.index) => {
                return missing(format!("host link {} on the bridge", lease.host_link));
            }
            _ => {}
        }
        let mut inside = netns::enter(netns)?;
        let Some(own) = link::find(&mut inside.route, interface)? else {
            return missing(format!("link {interface} in its namespace"));
        };
        if !own.up {
            return missing(format!("link {interface} set up"));
        }
        let present = addr::list(&mut inside.route, Some(own.index))?;
        if let Some(address) = lease.addresses.iter().find(|address| !present.contains(address)) {
            return missing(format!("address {address} on {interface}"));
        }
        match nft.missing(&pod(lease))? {
            Some(set) => missing(format!("element in nftables set {} {set}", self.config.table)),
            None => Ok(()),
        }
    }

    /// Puts bridge and nftables table back if somebody deleted them or took pods out, and tells what
    /// was done, one sentence each. Cheap when all is well: call it now and then, and after a
    /// firewall was reloaded. Does nothing as long as there is no pod.
    pub fn repair(&self) -> Result<Vec<String>, Error> {
        let mut state = self.lock();
        let mut done = Vec::new();
        if state.leases.iter().next().is_none() {
            return Ok(done);
        }
        let links = link::list(&mut state.route)?;
        let bridge = links.iter().find(|link| link.name == self.config.bridge);
        let stands = match (bridge, state.host) {
            (Some(bridge), Some(host)) => bridge.index == host.bridge && bridge.up,
            (found, None) => found.is_some(),
            (None, Some(_)) => false,
        };
        if !stands {
            done.push(format!("bridge {} was gone or down: set up again", self.config.bridge));
        }
        let owner = |link: &link::Link| {
            let id = link.alias.as_deref().and_then(|alias| self.names.sandbox_of(alias))?;
            state.leases.get(id).map(|lease| (id.to_owned(), lease.owner.clone()))
        };
        let mut there = HashSet::new();
        for link in &links {
            let Some((id, owner)) = owner(link) else { continue };
            if stands && !(link.up && link.controller == bridge.map(|bridge| bridge.index)) {
                let name = &link.name;
                done.push(format!("link {name} of pod {owner} was off the bridge: put back"));
            }
            there.insert(id);
        }
        let ids = state.leases.iter().map(|lease| &lease.sandbox_id);
        state.lost = ids.filter(|id| !there.contains(*id)).cloned().collect();
        if let Some(what) = self.missing_in_table(&mut state)? {
            done.push(format!("{what} was missing: table {} written again", self.config.table));
        }
        if !done.is_empty() {
            state.host = None;
            let shared = std::mem::replace(&mut state.shared, false);
            let prepared = self.prepare(&mut state);
            state.shared = shared;
            prepared?;
        }
        Ok(done)
    }

    /// Sandboxes that had no link at the last [`Network::repair`]: somebody deleted it, or their
    /// namespace is gone with it.
    pub fn lost_links(&self) -> Vec<String> {
        self.lock().lost.clone()
    }

    /// Makes the link of a sandbox again, in the namespace that lost it, as its lease says; tells
    /// what was done.
    pub fn restore_link(
        &self,
        sandbox_id: &str,
        netns: BorrowedFd<'_>,
        options: &LinkOptions,
    ) -> Result<String, Error> {
        let mut netns = netns::enter(netns)?;
        let mut state = self.lock();
        let Some(lease) = state.leases.get(sandbox_id).cloned() else {
            return Err(Error::Missing { sandbox: sandbox_id.into(), object: "its lease".into() });
        };
        let (lease, _) = self.connect(&mut state, lease, options, &mut netns)?;
        state.lost.retain(|id| id != sandbox_id);
        Ok(format!("link {} of pod {} was gone: made again", lease.host_link, lease.owner))
    }

    fn missing_in_table(&self, state: &mut State) -> Result<Option<String>, Error> {
        if !self.table_is_current(state)? {
            return Ok(Some("the nftables table".to_owned()));
        }
        let State { leases, nft, .. } = state;
        for lease in leases.iter() {
            if let Some(set) = nft.missing(&pod(lease))? {
                let ips: Vec<_> = lease.addresses.iter().map(IpNetwork::ip).collect();
                return Ok(Some(format!("pod {} ({ips:?}) in set {set}", lease.owner)));
            }
        }
        Ok(None)
    }
}
