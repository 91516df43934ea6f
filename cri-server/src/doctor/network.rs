//! What the facts mean for the pods' network. Pure.

use super::facts::Facts;
use super::findings::Finding;
use crate::network::mode::Mode;

/// How many of a range's addresses may be leased before it is said that they end, in percent.
const POOL_LOW_PERCENT: u128 = 90;

const TOPIC: &str = "pod network";

/// One finding for each thing that is wrong with the built-in network, or one that all is well; none
/// where plugins make the network.
pub(super) fn built_in(facts: &Facts) -> Vec<Finding> {
    let survey = match &facts.pod_network {
        None => return Vec::new(),
        Some(Err(error)) => return vec![obstacle(error)],
        Some(Ok(survey)) => survey,
    };
    let mut found: Vec<_> = survey.obstacles.iter().map(obstacle).collect();
    found.extend(survey.overlaps.iter().map(|(range, other)| {
        let says =
            format!("range {range} holds addresses of {other}, which this node is in itself");
        Finding::lacking(TOPIC, says, "give network.ranges addresses that nobody else has")
    }));
    let is_low = |it: &&netplugin::Pool| it.leased * 100 / POOL_LOW_PERCENT >= it.usable;
    found.extend(survey.pools.iter().filter(is_low).map(|pool| {
        let says =
            format!("{} of {} addresses of {} are leased", pool.leased, pool.usable, pool.ranges);
        Finding::lacking(TOPIC, says, "add a range to network.ranges, or remove pods")
    }));
    if let [first, rest @ ..] = &*survey.lost {
        let more = match rest.len() {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        let fix = "a daemon that runs puts it back within seconds; its log says what keeps it";
        found.push(Finding::lacking(TOPIC, format!("{first}{more}"), fix));
    }
    if found.is_empty() {
        let forwarding = match facts.ip_forward.as_deref() {
            Some("1") => "is on",
            _ => "is off, and is switched on with the first pod",
        };
        let pools = survey.pools.iter();
        let leased: Vec<_> =
            pools.map(|it| format!("{} of {} leased", it.leased, it.ranges)).collect();
        let says = format!("nf_tables; forwarding {forwarding}; {}", leased.join("; "));
        found.push(Finding::fine(TOPIC, says));
    }
    found
}

/// In what the error says there is a hint for whoever sees no doctor; here is the rest of it.
fn obstacle(error: &netplugin::Error) -> Finding {
    use netplugin::Error;
    let says = error.to_string();
    match error {
        Error::NoRange => Finding::lacking(TOPIC, says, "network.ranges = [\"10.244.0.0/24\"]"),
        Error::NoNfTables { .. } => {
            let fix = "modprobe nf_tables, or network.mode = \"cni\" with plugins of your own";
            Finding::broken(TOPIC, says, fix)
        }
        Error::Bridge { name, .. } => {
            let fix = format!("network.bridge = another name, or ip link delete {name}");
            Finding::broken(TOPIC, says, &fix)
        }
        Error::Blocked { .. } => {
            let fix = "or network.admit_forwarding = true, which has the daemon do so";
            Finding::broken(TOPIC, says, fix)
        }
        Error::File { path, .. } if path.starts_with("/proc/sys") => {
            let setting = path.display().to_string().replace("/proc/sys/", "").replace('/', ".");
            Finding::broken(TOPIC, says, &format!("sysctl -w {setting}=1"))
        }
        _ => Finding::broken(TOPIC, says, "the same as root, or the daemon's log, may say more"),
    }
}

/// Without a configuration `auto` is the built-in network, which needs no plugin.
pub(super) fn plugins(facts: &Facts) -> Finding {
    match (facts.network_mode, &facts.plugins) {
        (Mode::Bridge, _) => {
            Finding::fine("plugins", "not used: network.mode is bridge".to_owned())
        }
        (_, Ok(networks)) => Finding::fine("plugins", format!("network {}", networks.join(", "))),
        (Mode::Auto, Err(reason)) => {
            Finding::fine("plugins", format!("none, so the network is built in ({reason})"))
        }
        (Mode::Cni, Err(reason)) => Finding::lacking(
            "plugins",
            format!("{reason}; until then only pods on the node's network run"),
            "install a network add-on, or set network.mode = \"bridge\"",
        ),
    }
}

/// Pods have links of their own, so that what is switched off for the node's is no loss to a pod that
/// speaks to pods.
pub(super) fn ipv6(facts: &Facts) -> Finding {
    const TOPIC: &str = "IPv6";
    let survey = facts.pod_network.as_ref().and_then(|it| it.as_ref().ok());
    let is_wanted = survey.is_some_and(|it| it.pools.iter().any(|pool| pool.ipv6));
    match (facts.ipv6, &*facts.ipv6_switched_off) {
        (false, _) => Finding::lacking(
            TOPIC,
            "not in this kernel".to_owned(),
            "boot without ipv6.disable=1 before giving network.ranges an IPv6 range",
        ),
        (true, []) => Finding::fine(TOPIC, "there".to_owned()),
        (true, off) if is_wanted => Finding::lacking(
            TOPIC,
            format!(
                "switched off by {}: pods reach each other, and nothing beyond the node",
                off.join(", ")
            ),
            &format!(
                "sysctl -w {}",
                off.iter().map(|it| format!("{it}=0")).collect::<Vec<_>>().join(" ")
            ),
        ),
        (true, off) => Finding::fine(TOPIC, format!("there; switched off by {}", off.join(", "))),
    }
}
