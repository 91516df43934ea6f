//! Cleaning up after a shim that died: its processes have no parent left that knows them.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::shims::Shims;

/// Killed processes in uninterruptible sleep can hold a group for long; the caller asks again later.
const PATIENCE: Duration = Duration::from_secs(5);

impl Shims {
    /// Kills every process in the given groups and removes the groups and the shim's own. Idempotent.
    pub async fn sweep(&self, id: &str, cgroup_paths: &[String]) -> Result<(), Error> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (node, groups) = (Arc::clone(&self.node), cgroup_paths.to_vec());
            let swept = tokio::task::spawn_blocking(move || sweep_once(&node, &groups));
            let busy = swept
                .await
                .map_err(|e| e.to_string())
                .and_then(|r| r.map_err(|e| e.to_string()))
                .map_err(|e| Error::new(ErrorKind::Failed, id, "sweep", e))?;
            match busy {
                None => {
                    // Last, so that a shim which lives has nothing left to report wrongly.
                    let (node, shim) = (Arc::clone(&self.node), vec![self.group_of(id)]);
                    let _ = tokio::task::spawn_blocking(move || sweep_once(&node, &shim)).await;
                    return self.forget(id).await;
                }
                Some(group) if tokio::time::Instant::now() > deadline => {
                    let text = format!("processes in cgroup {group} do not end");
                    return Err(Error::new(ErrorKind::Timeout, id, "sweep", text));
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

/// The first group that is still busy.
fn sweep_once(
    node: &cgroup::Hierarchies,
    groups: &[String],
) -> Result<Option<String>, cgroup::Error> {
    for group in groups.iter().filter(|g| node.exists(g)) {
        node.kill(group)?;
        if node.remove(group)? == cgroup::Removal::Busy {
            return Ok(Some(group.clone()));
        }
    }
    Ok(None)
}
