//! ExecSync: runs a program in a running container and collects what it says.

use std::sync::Arc;
use std::time::Duration;

use super::exec_budget::Share;
use crate::app::Ctx;
use crate::error::Error;

/// The kubelet takes messages of 16 MiB: both streams and the framing have to fit. The rest is read and dropped.
const REPLY_MAX: usize = (16 << 20) - (16 << 10);

pub(crate) struct Output {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit_code: i32,
    /// Held until the answer is built.
    pub(crate) share: Share,
}

/// A timeout of 0 means none.
pub(crate) async fn exec_sync(
    ctx: Arc<Ctx>,
    id: String,
    command: Vec<String>,
    timeout_s: i64,
) -> Result<Output, Error> {
    if command.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("cmd", "is empty: there is nothing to run"));
    }
    let container = super::exec::running(&ctx, &id, "exec in")?;
    let seconds = u64::try_from(timeout_s).unwrap_or(0);
    let share = ctx.exec_budget.take(REPLY_MAX).await;
    let request = runtime::ExecSync {
        id: container.id.to_string(),
        process_json: super::exec::process(&ctx, &container, command, false)?.into_bytes(),
        timeout: (seconds != 0).then(|| Duration::from_secs(seconds)),
        output_cap: share.bytes,
    };
    let shim = ctx.live_shim(&container.sandbox_id).await?;
    let done = shim.exec_sync(request).await;
    let result = match &done {
        Ok(output) if output.exit_code == 0 => "ok",
        Ok(_) => "nonzero",
        Err(error) if error.kind == runtime::ErrorKind::Timeout => "timeout",
        Err(_) => "failed",
    };
    ctx.metrics.families.execs.with_label_values(&[result]).inc();
    match done {
        Ok(output) => Ok(fitted(output, share)),
        Err(error) if error.kind == runtime::ErrorKind::Timeout => {
            Err(Error::ExecTimeout { id: container.id.to_string(), seconds })
        }
        Err(error) => Err(error.into()),
    }
}

fn fitted(output: runtime::ExecOutput, share: Share) -> Output {
    let runtime::ExecOutput { exit_code, mut stdout, mut stderr } = output;
    let all = share.bytes.min(REPLY_MAX);
    stdout.truncate(all);
    stderr.truncate(all - stdout.len());
    Output { stdout, stderr, exit_code, share }
}
