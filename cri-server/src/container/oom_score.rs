//! The OOM score of a container that runs: given to each of its processes.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::Container;
use crate::app::Ctx;
use crate::error::Error;

/// Looks again this often: a process may be born from one that was not reached yet.
const ROUNDS: usize = 3;

pub(crate) async fn set(ctx: &Arc<Ctx>, container: &Container, score: i64) -> Result<(), Error> {
    let (ctx, group) = (ctx.clone(), container.cgroups_path.clone());
    let job = move || (0..ROUNDS).try_for_each(|_| set_all(&ctx, &group, score));
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|_| Error::Panicked { operation: "set the OOM score" })?
}

fn set_all(ctx: &Ctx, group: &str, score: i64) -> Result<(), Error> {
    let dirs = [ctx.cgroups.dir("memory", group), ctx.cgroups.unified_dir(group)];
    let lists = dirs.into_iter().flatten().map(|dir| dir.join("cgroup.procs"));
    let Some(list) = lists.filter_map(|path| fs::read_to_string(path).ok()).next() else {
        return Ok(());
    };
    for pid in list.lines() {
        let path = PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
        match fs::write(&path, score.to_string()) {
            Ok(()) => {}
            // It has ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::warn!(score, "a lower OOM score needs CAP_SYS_RESOURCE; it stays");
                return Ok(());
            }
            Err(source) => return Err(Error::io("write the OOM score to", path, source)),
        }
    }
    Ok(())
}
