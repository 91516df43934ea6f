//! What this node may not grant, taken down to what it may, in the `process` object for an external runtime: ours does
//! it where it sets the values, others fail.

use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;
use serde_json::Value;

const RESOURCES: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_STACK", Resource::Stack),
];

/// What was taken down, in words.
pub(crate) fn process(process: &mut Value) -> Vec<String> {
    // Without this capability hard limits only go down and the OOM score only up.
    if container::own_capabilities() & CapabilitySet::SYS_RESOURCE.bits() != 0 {
        return Vec::new();
    }
    let hard = |name: &str| {
        let (_, resource) = RESOURCES.iter().find(|(known, _)| *known == name)?;
        getrlimit(*resource).maximum
    };
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").ok();
    clamped(process, hard, own.and_then(|text| text.trim().parse().ok()))
}

/// `hard`: the highest hard limit of a resource, none for no limit. `score`: the lowest OOM score adjustment.
fn clamped(
    process: &mut Value,
    hard: impl Fn(&str) -> Option<u64>,
    score: Option<i64>,
) -> Vec<String> {
    let mut said = Vec::new();
    for limit in process["rlimits"].as_array_mut().into_iter().flatten() {
        let name = limit["type"].as_str().unwrap_or_default().to_owned();
        let Some(most) = hard(&name) else { continue };
        for key in ["hard", "soft"] {
            if limit[key].as_u64().is_some_and(|value| value > most) {
                said.push(format!("{name}: {key} limit taken down to {most}"));
                limit[key] = most.into();
            }
        }
    }
    if let (Some(wanted), Some(least)) = (process["oomScoreAdj"].as_i64(), score)
        && wanted < least
    {
        said.push(format!("oomScoreAdj: {wanted} raised to {least}"));
        process["oomScoreAdj"] = least.into();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_beyond_the_node_is_taken_down() {
        let mut process = json!({ "oomScoreAdj": -500, "rlimits": [
            { "type": "RLIMIT_NOFILE", "hard": 500, "soft": 5 }, { "type": "RLIMIT_CORE", "hard": 9, "soft": 9 }] });
        let said = clamped(&mut process, |name| (name == "RLIMIT_NOFILE").then_some(100), Some(10));
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(
            process,
            json!({ "oomScoreAdj": 10, "rlimits": [
                { "type": "RLIMIT_NOFILE", "hard": 100, "soft": 5 },
                { "type": "RLIMIT_CORE", "hard": 9, "soft": 9 }] })
        );
        assert!(clamped(&mut json!({}), |_| Some(0), Some(0)).is_empty());
    }
}
