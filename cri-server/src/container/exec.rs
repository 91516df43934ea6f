//! Exec: gives a client the URL by which it runs a program in a running container.

use std::sync::Arc;

use ::streaming::{Errand, Wanted};
use serde_json::{Value, json};

use super::Container;
use super::state::{Decision, Request, decide};
use crate::app::Ctx;
use crate::error::Error;
use crate::streaming::{Target, What};

pub(crate) async fn exec(
    ctx: Arc<Ctx>,
    id: String,
    command: Vec<String>,
    wanted: Wanted,
) -> Result<String, Error> {
    if command.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("cmd", "is empty: there is nothing to run"));
    }
    let container = running(&ctx, &id, "exec in")?;
    let process = process(&ctx, &container, command, wanted.tty)?;
    let what = What::Exec { container: container.id.to_string(), process };
    let target = Target { pod: container.sandbox_id.to_string(), what };
    Ok(ctx.streaming.issue(Errand::Exec(wanted), target).await?)
}

/// The container, if something can be run in it.
pub(super) fn running(
    ctx: &Ctx,
    id: &str,
    operation: &'static str,
) -> Result<Arc<Container>, Error> {
    let container = ctx.container(id)?;
    if decide(&container.phase, Request::Exec) == Decision::Proceed {
        return Ok(container);
    }
    Err(Error::State {
        operation,
        kind: "container",
        id: container.id.to_string(),
        state: container.phase.word().to_owned(),
    })
}

/// The container's own process with other arguments, so that an exec has the same confinement.
pub(super) fn process(
    ctx: &Ctx,
    container: &Container,
    command: Vec<String>,
    tty: bool,
) -> Result<String, Error> {
    let path = ctx.bundle_dir(container).join("config.json");
    let bytes = std::fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
    let damaged = |error: serde_json::Error| Error::io("parse", &path, error.into());
    let mut config: Value = serde_json::from_slice(&bytes).map_err(damaged)?;
    Ok(with_command(config["process"].take(), &command, tty).to_string())
}

fn with_command(mut process: Value, command: &[String], tty: bool) -> Value {
    process["args"] = json!(command);
    process["terminal"] = json!(tty);
    if tty && let Value::Array(env) = &mut process["env"] {
        let names_it = |it: &Value| it.as_str().is_some_and(|it| it.starts_with("TERM="));
        if !env.iter().any(names_it) {
            env.push(json!("TERM=xterm"));
        }
    }
    process
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_is_the_containers_process_with_another_command() {
        let process = json!({"args": ["init"], "env": ["A=1"], "cwd": "/", "terminal": true});
        let command = ["sh".to_owned()];
        let plain = with_command(process.clone(), &command, false);
        let expect = json!({"args": ["sh"], "env": ["A=1"], "cwd": "/", "terminal": false});
        assert_eq!(plain, expect);
        let on_terminal = with_command(process, &command, true);
        assert_eq!(on_terminal["env"], json!(["A=1", "TERM=xterm"]));
        let own = with_command(json!({"env": ["TERM=vt100"]}), &command, true);
        assert_eq!(own["env"], json!(["TERM=vt100"]));
    }
}
