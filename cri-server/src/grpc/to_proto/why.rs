//! What a pod or container waits for, on the wire.

use std::time::Duration;

use proto::admin::v1 as admin;

use crate::metrics::timeline::{Running, Slow};
use crate::why::{Member, Process, Reasons};

pub(in crate::grpc) fn reasons(reasons: Reasons) -> admin::WhyResponse {
    admin::WhyResponse {
        members: reasons.members.into_iter().map(member).collect(),
        under_way: reasons.under_way.into_iter().map(running).collect(),
        slow: reasons.slow.into_iter().map(slow).collect(),
        network_debt: reasons.network_debt,
    }
}

fn member(member: Member) -> admin::WhyMember {
    admin::WhyMember {
        kind: member.kind.to_owned(),
        id: member.id,
        name: member.name,
        state: member.state,
        ending: member.ending,
        processes: member.processes.into_iter().map(process).collect(),
        process_count: u32::try_from(member.process_count).unwrap_or(u32::MAX),
        frozen: member.frozen,
        memory: member.memory,
        memory_limit: member.memory_limit,
        oom_kills: member.oom_kills,
    }
}

fn process(process: Process) -> admin::WhyProcess {
    admin::WhyProcess {
        pid: process.pid,
        command: process.command,
        state: process.state.to_string(),
        waits_in: process.waits_in,
    }
}

fn running(running: Running) -> admin::WhyOperation {
    admin::WhyOperation {
        operation: running.operation.to_owned(),
        object: running.object,
        stage: running.stage.to_owned(),
        milliseconds: milliseconds(running.begun.elapsed()),
    }
}

fn slow(slow: Slow) -> admin::WhyOperation {
    let stage = |(stage, time): &(&str, Duration)| format!("{stage} {} ms", time.as_millis());
    admin::WhyOperation {
        operation: slow.operation.to_owned(),
        object: slow.object,
        stage: slow.stages.iter().map(stage).collect::<Vec<_>>().join(", "),
        milliseconds: milliseconds(slow.elapsed),
    }
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
