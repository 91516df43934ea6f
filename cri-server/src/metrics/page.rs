//! The page of the node: what an operator wants to see first, from memory, read-only.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::Ctx;
use crate::clock;
use crate::container::Container;
use crate::container::state::{Phase, Reason};
use crate::sandbox::Sandbox;
use crate::stats::Numbers;

/// The whole page. It loads nothing but its own data.
const PAGE: &str = include_str!("page.html");

/// Stands in the page where the number that its script may run by is put.
const NONCE: &str = "NONCE";

/// Images shown by size; a node may have thousands.
const IMAGES_SHOWN: usize = 20;

pub(super) async fn html() -> Response {
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        return axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let nonce: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    // Whatever text of a pod should ever come to stand in the page: it is no script of ours.
    let policy = format!(
        "default-src 'none'; connect-src 'self'; img-src data:; style-src 'nonce-{nonce}'; \
         script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (headers, PAGE.replace(NONCE, &nonce)).into_response()
}

pub(super) async fn data(State(ctx): State<Arc<Ctx>>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, view(&ctx).to_string()).into_response()
}

/// Times are milliseconds since 1970 or of duration, sizes bytes, rates thousandths of a core.
fn view(ctx: &Ctx) -> Value {
    let (world, numbers) = (ctx.world.snapshot(), ctx.stats.numbers());
    let shown = world.sandboxes.values().filter(|sandbox| sandbox.phase.is_shown());
    let mut pods: Vec<_> = shown.collect();
    pods.sort_by(|a, b| a.spec.metadata.cmp(&b.spec.metadata));
    let members = world.members();
    let pods: Vec<_> =
        pods.iter().map(|pod| self::pod(pod, members.of(&pod.id), &numbers)).collect();
    let events: Vec<_> = ctx.world.events().recent().iter().rev().map(|note| {
        json!({
            "number": note.number, "at": note.at_ns / 1_000_000, "kind": note.kind, "pod": note.pod,
            "subject": note.subject,
            "container": note.container, "text": note.text,
        })
    })
    .collect();
    let under_way = ctx.metrics.under_way.running();
    let under_way: Vec<_> = under_way
        .iter()
        .map(|running| {
            json!({
                "operation": running.operation, "object": running.object, "stage": running.stage,
                "took": millis(running.begun.elapsed()),
            })
        })
        .collect();
    let slow: Vec<_> = ctx
        .metrics
        .under_way
        .slow()
        .iter()
        .rev()
        .map(|slow| {
            let stages: Vec<_> =
                slow.stages.iter().map(|(stage, took)| json!([stage, millis(*took)])).collect();
            json!({
                "at": slow.at_ns / 1_000_000, "operation": slow.operation, "object": slow.object,
                "took": millis(slow.elapsed), "stages": stages,
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "now": clock::now_ns() / 1_000_000,
        "node": rustix::system::uname().nodename().to_string_lossy(),
        "network": ctx.network.ready().err(),
        "pods": pods,
        "events": events,
        "underWay": under_way,
        "slow": slow,
        "images": images(ctx),
    })
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn pod(sandbox: &Sandbox, members: &[Arc<Container>], numbers: &Numbers) -> Value {
    let sample = numbers.pods.get(&sandbox.id);
    let (cpu, memory): (Vec<_>, Vec<_>) =
        sample.map(|sample| sample.trail.points.iter().copied().unzip()).unwrap_or_default();
    let members = members.iter().filter(|member| member.phase.is_shown());
    let usage = sample.map(|sample| &sample.usage);
    json!({
        "id": sandbox.id,
        "namespace": sandbox.spec.metadata.namespace,
        "name": sandbox.spec.metadata.name,
        "state": sandbox.phase.word(),
        "created": sandbox.created_at_ns / 1_000_000,
        "addresses": sandbox.addresses,
        "cpu": usage.and_then(|usage| usage.nano_cores).map(|rate| rate / 1_000_000),
        "memory": usage.and_then(|usage| usage.reading.memory.working_set),
        "cpuTrail": cpu,
        "memoryTrail": memory,
        "containers": members.map(|member| container(member, numbers)).collect::<Vec<_>>(),
    })
}

fn container(container: &Container, numbers: &Numbers) -> Value {
    let sample = numbers.containers.get(&container.id).filter(|sample| !sample.is_final);
    let usage = sample.map(|sample| &sample.usage);
    let (exit, reason) = match &container.phase {
        Phase::Exited(exit) => (Some(exit.code), Some(reason(exit.reason))),
        _ => (None, None),
    };
    let written = numbers.census.get(&container.id).and_then(|census| census.written);
    json!({
        "id": container.id,
        "name": container.spec.name,
        "attempt": container.spec.attempt,
        "image": container.spec.image.image,
        "state": container.phase.word(),
        "exit": exit,
        "reason": reason,
        "cpu": usage.and_then(|usage| usage.nano_cores).map(|rate| rate / 1_000_000),
        "memory": usage.and_then(|usage| usage.reading.memory.working_set),
        "memoryLimit": usage.and_then(|usage| usage.limits.memory),
        "written": written.map(|written| written.bytes),
    })
}

/// As Kubernetes says it.
pub(crate) fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Completed => "Completed",
        Reason::Error => "Error",
        Reason::OomKilled => "OOMKilled",
        Reason::StartError => "StartError",
        Reason::WritableLimit => "WritableLimitExceeded",
        Reason::ShimLost => "ShimLost",
    }
}

fn images(ctx: &Ctx) -> Value {
    let info = ctx.images.fs_info();
    let mut images = ctx.images.list().to_vec();
    let count = images.len();
    images.sort_by_key(|image| std::cmp::Reverse(image.size));
    images.truncate(IMAGES_SHOWN);
    let disk = rustix::fs::statvfs(&ctx.config.root).ok();
    let largest: Vec<_> = images.iter().map(|image| {
        let name = image.repo_tags.first().or(image.repo_digests.first());
        json!({ "name": name.cloned().unwrap_or_else(|| image.id.to_string()), "bytes": image.size })
    })
    .collect();
    json!({
        "count": count,
        "bytes": info.used_bytes,
        "disk": disk.as_ref().map(|disk| disk.f_blocks * disk.f_frsize),
        "free": disk.as_ref().map(|disk| disk.f_bavail * disk.f_frsize),
        "largest": largest,
    })
}
