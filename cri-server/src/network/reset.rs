//! `lapstrake network reset`: takes away all that the network has on this node, while no daemon runs.

use anyhow::Context;

use super::bridge::plugin_config;
use super::plugins::Plugins;
use crate::config::Config;
use crate::store::disk;

/// Gives back every pod's network, then removes bridge, links, firewall table, leases and rules in
/// chains of others. Returns what was done, one sentence each; what others do not take back stays on
/// record and is an error at the end.
pub(crate) async fn reset(config: &Config) -> anyhow::Result<Vec<String>> {
    for dir in [&config.root, &config.state] {
        disk::create_dir(dir)?;
    }
    let _locks = [crate::app::lock(&config.root)?, crate::app::lock(&config.state)?];
    let mut done = Vec::new();
    let plugins = Plugins::open(&config.root, &config.network)?;
    let stays = plugins.give_all_back(&mut done).await;
    let own = plugin_config(config);
    netplugin::Network::reset(&own).context("remove the built-in network")?;
    done.push(format!("bridge {}, table {} and their leases are gone", own.bridge, own.table));
    anyhow::ensure!(stays.is_empty(), "{}\n{}", done.join("\n"), stays.join("\n"));
    Ok(done)
}
