//! `linux.netDevices`: devices of the host that become the container's.

use std::fs;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{At, Error};
use crate::init::join;
use crate::plan::{Namespace, NetDevice};
use crate::sys::link::Links;

/// Moves the devices to the network namespace of `pid`, with their global addresses, and leaves them up. The calling
/// process, which must have one thread, is in that namespace afterwards.
pub(crate) fn give(devices: &[NetDevice], pid: i32) -> Result<(), Error> {
    const STAGE: &str = "network devices";
    let path = format!("/proc/{pid}/ns/net");
    let netns = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .at(STAGE, format!("open {path}"))?;
    let host = Links::open().at(STAGE, "open a netlink socket")?;
    let mut moved = Vec::new();
    for device in devices {
        let stage = format!("network device {}", device.host);
        let index = index(&device.host).at(&stage, "find it on the host")?;
        let addresses = host.addresses(index).at(&stage, "read its addresses")?;
        host.give(index, netns.as_fd(), &device.container)
            .at(&stage, format!("move it into the container as {}", device.container))?;
        moved.push((stage, &device.container, addresses));
    }
    join(Namespace::Net, &netns)?;
    let inside = Links::open().at(STAGE, "open a netlink socket")?;
    for (stage, name, addresses) in moved {
        // A device that would clash may have got another number.
        let index = index_here(name).at(&stage, "find it in the container")?;
        for address in &addresses {
            inside.add(index, address).at(&stage, "give it its address again")?;
        }
        inside.set_up(index).at(&stage, "set it up")?;
    }
    Ok(())
}

fn index(name: &str) -> Result<u32, std::io::Error> {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?;
    text.trim().parse().map_err(|_| Errno::NODEV.into())
}

/// By the kernel's answer to this thread, for the host's `/sys` shows the host's devices.
fn index_here(name: &str) -> Result<u32, Errno> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    rustix::net::netdevice::name_to_index(&socket, name)
}
