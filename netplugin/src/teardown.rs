//! Takes a sandbox's network away. "Already gone" is success, and one failure does not keep the rest.
//!
//! The veth pair is not deleted here: the kernel removes it when the last process of the namespace is
//! gone, many at a time and without anyone waiting; an explicit delete waits for grace periods, 16 ms
//! each. Only the collection of garbage deletes links, those of namespaces somebody still holds.

use std::collections::HashSet;
use std::slice;

use crate::apply::pod;
use crate::config::Config;
use crate::error::Error;
use crate::leases::Leases;
use crate::netlink::{Route, link};
use crate::network::{Network, State};
use crate::nft::Nft;
use crate::plan::Names;

impl Network {
    /// Removes the host ports and masquerade of a sandbox and frees its addresses. Its links go when
    /// its namespace does. An unknown sandbox is success. After an error the lease remains and the
    /// call can be repeated.
    pub fn detach(&self, sandbox_id: &str) -> Result<(), Vec<Error>> {
        self.release(&mut self.lock(), sandbox_id)
    }

    /// The same, and deletes the links at once: for a namespace that lives on. Takes as long as the
    /// kernel's grace periods, about 20 ms.
    pub fn detach_now(&self, sandbox_id: &str) -> Result<(), Vec<Error>> {
        self.roll_back(&mut self.lock(), sandbox_id, true)
    }

    /// Frees what belongs to sandboxes that are not in `live`: leases, table elements, and links
    /// whose namespace something still holds. Then puts bridge and table in order if there is
    /// anything to serve. Gives the identifiers that were freed.
    pub fn gc(&self, live: &[String]) -> Result<Vec<String>, Error> {
        let live: HashSet<&str> = live.iter().map(String::as_str).collect();
        let mut state = self.lock();
        let dead: Vec<String> = state
            .leases
            .iter()
            .map(|lease| lease.sandbox_id.clone())
            .filter(|id| !live.contains(id.as_str()))
            .collect();
        for id in &dead {
            self.release(&mut state, id).map_err(first)?;
        }
        let mut freed: HashSet<String> = dead.into_iter().collect();
        for link in link::list(&mut state.route)? {
            let Some(id) = link.alias.as_deref().and_then(|alias| self.names.sandbox_of(alias))
            else {
                continue;
            };
            if !live.contains(id) {
                delete_link(&mut state.route, &link)?;
                freed.insert(id.to_owned());
            }
        }
        if state.leases.iter().next().is_some() {
            state.host = None;
            self.prepare(&mut state)?;
        } else if state.nft.exists()? {
            self.rebuild_table(&mut state)?;
        }
        let mut freed: Vec<String> = freed.into_iter().collect();
        freed.sort_unstable();
        Ok(freed)
    }

    /// Removes everything this configuration ever made: pod links, bridge, table and leases. What is
    /// not there is success; a bridge this crate did not make stays.
    pub fn reset(config: &Config) -> Result<(), Error> {
        config.parse()?;
        let names = Names::new(&config.bridge, &config.table);
        let leases = Leases::open(&config.leases_dir)?;
        let mut route = Route::open()?;
        let mut nft = Nft::open(&config.table);
        nft.withdraw()?;
        nft.remove_table()?;
        for link in link::list(&mut route)? {
            let Some(alias) = &link.alias else { continue };
            let ours = link.name == config.bridge && *alias == names.bridge_alias();
            if ours || names.sandbox_of(alias).is_some() {
                delete_link(&mut route, &link)?;
            }
        }
        leases.destroy()
    }

    /// Undoes a failed attach. With a namespace of the caller's the link does not die by itself.
    pub(crate) fn roll_back(
        &self,
        state: &mut State,
        sandbox_id: &str,
        namespace_stays: bool,
    ) -> Result<(), Vec<Error>> {
        let name = state.leases.get(sandbox_id).map(|lease| lease.host_link.clone());
        let mut errors = Vec::new();
        if let Some(name) = name.filter(|_| namespace_stays) {
            errors.extend(self.delete_host_link(state, &name, sandbox_id).err());
        }
        errors.extend(self.release(state, sandbox_id).err().into_iter().flatten());
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Deletes the link of a sandbox, if the link of that name is the sandbox's.
    fn delete_host_link(&self, state: &mut State, name: &str, id: &str) -> Result<(), Error> {
        match link::find(&mut state.route, name)? {
            Some(link) if link.alias == Some(self.names.link_alias(id)) => {
                delete_link(&mut state.route, &link)
            }
            _ => Ok(()),
        }
    }

    fn release(&self, state: &mut State, sandbox_id: &str) -> Result<(), Vec<Error>> {
        let State { leases, nft, conntrack, loopback, .. } = state;
        let Some(lease) = leases.get(sandbox_id) else { return Ok(()) };
        // The lease goes last: as long as it stands, this can be repeated.
        nft.remove(&pod(lease)).map_err(|error| vec![error])?;
        conntrack
            .forget_udp(&lease.udp_ports(), |flow| {
                lease.addresses.iter().any(|own| own.ip() == flow.answered_by)
            })
            .map_err(|error| vec![error])?;
        if let Some(Ok(loopback)) = loopback {
            loopback.remove(&pod(lease)).map_err(|error| vec![error])?;
        }
        leases.remove(sandbox_id).map_err(|error| vec![error])
    }
}

/// Deletes a link; one that is gone by now is success.
fn delete_link(route: &mut Route, link: &link::Link) -> Result<(), Error> {
    match route.batch(slice::from_ref(&link::delete(link))) {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
        result => result,
    }
}

/// The first of at least one error.
fn first(errors: Vec<Error>) -> Error {
    errors
        .into_iter()
        .next()
        .unwrap_or_else(|| Error::kernel("release", "sandbox", rustix::io::Errno::IO))
}
