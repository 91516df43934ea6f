//! What a pod or container is doing or waiting for: what the daemon is at, and what the kernel says
//! of its processes and its memory.

use std::fs;
use std::sync::Arc;

use crate::app::Ctx;
use crate::container::Container;
use crate::container::state::Phase;
use crate::error::Error;
use crate::metrics::timeline::{Running, Slow};
use crate::network::Owed;
use crate::sandbox::Sandbox;
use crate::store::world::Snapshot;

/// Processes that are told one by one; of a fork bomb the first ones say enough.
const PROCESSES_MAX: usize = 16;

/// The answer.
#[derive(Debug, Default)]
pub(crate) struct Reasons {
    pub(crate) members: Vec<Member>,
    pub(crate) under_way: Vec<Running>,
    pub(crate) slow: Vec<Slow>,
    pub(crate) network_debt: String,
}

/// A pod's own process, or a container.
#[derive(Debug, Default)]
pub(crate) struct Member {
    pub(crate) kind: &'static str,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) ending: String,
    pub(crate) processes: Vec<Process>,
    pub(crate) process_count: usize,
    pub(crate) frozen: bool,
    pub(crate) memory: u64,
    pub(crate) memory_limit: u64,
    pub(crate) oom_kills: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) command: String,
    pub(crate) state: char,
    pub(crate) waits_in: String,
}

/// Looks at everything that `word` means.
pub(crate) async fn why(ctx: &Arc<Ctx>, word: &str) -> Result<Reasons, Error> {
    let meant = match Meant::find(&ctx.world.snapshot(), word) {
        // A pod may be gone while plugins still owe its network.
        Err(Error::NotFound { kind, id }) => match owed(&ctx.network.owed(), &[word]) {
            debt if debt.is_empty() => return Err(Error::NotFound { kind, id }),
            network_debt => return Ok(Reasons { network_debt, ..Reasons::default() }),
        },
        meant => meant?,
    };
    let ids: Vec<String> = meant.ids().collect();
    let concerns = |object: &str| ids.iter().any(|id| object.contains(id.as_str()));
    let mut under_way = ctx.metrics.under_way.running();
    under_way.retain(|operation| concerns(&operation.object));
    let mut slow = ctx.metrics.under_way.slow();
    slow.retain(|operation| concerns(&operation.object));
    let network_debt = owed(&ctx.network.owed(), &ids);
    let kernel = ctx.clone();
    let members = tokio::task::spawn_blocking(move || meant.members(&kernel)).await;
    let members = members.map_err(|_| Error::Panicked { operation: "Why" })?;
    Ok(Reasons { members, under_way, slow, network_debt })
}

/// What plugins have not given back of the pods that one of these words means: an id, the beginning
/// of one, or a name.
fn owed(debts: &[Owed], words: &[impl AsRef<str>]) -> String {
    let is_meant = |debt: &Owed, word: &str| {
        let name = debt.pod.split_once('/').map(|(_, name)| name);
        debt.sandbox_id.as_str().starts_with(word) || debt.pod == word || name == Some(word)
    };
    let meant = debts.iter().filter(|debt| words.iter().any(|word| is_meant(debt, word.as_ref())));
    meant.map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A pod with its containers, or one container.
#[derive(Debug)]
struct Meant {
    sandbox: Option<Arc<Sandbox>>,
    containers: Vec<Arc<Container>>,
}

impl Meant {
    fn find(world: &Snapshot, word: &str) -> Result<Self, Error> {
        if word.is_empty() {
            return Err(Error::invalid("object", "is empty: give an id or a name"));
        }
        let pod_of = |container: &Container| world.sandboxes.get(&container.sandbox_id);
        let pods = world.sandboxes.values().filter(|it| {
            let metadata = &it.spec.metadata;
            metadata.name == word || format!("{}/{}", metadata.namespace, metadata.name) == word
        });
        let containers = world.containers.values().filter(|it| {
            let pod = pod_of(it).map_or("", |pod| pod.spec.metadata.name.as_str());
            it.spec.name == word || format!("{pod}/{}", it.spec.name) == word
        });
        let named = (pods.collect::<Vec<_>>(), containers.collect::<Vec<_>>());
        let by_id = (world.sandbox(word), world.container(word));
        let (pods, containers) = match by_id {
            (None, None) => named,
            (pod, container) => (pod.into_iter().collect(), container.into_iter().collect()),
        };
        match (pods.as_slice(), containers.as_slice()) {
            ([pod], _) => Ok(Self {
                sandbox: Some(Arc::clone(pod)),
                containers: world.containers_of(&pod.id).cloned().collect(),
            }),
            ([], [container]) => {
                Ok(Self { sandbox: None, containers: vec![Arc::clone(container)] })
            }
            ([], []) => Err(Error::NotFound { kind: "pod or container", id: word.to_owned() }),
            (pods, containers) => {
                let ids = pods.iter().map(|it| it.id.as_str());
                let all: Vec<_> = ids.chain(containers.iter().map(|it| it.id.as_str())).collect();
                Err(Error::invalid(
                    "object",
                    format!("{word:?} may mean any of {}", all.join(", ")),
                ))
            }
        }
    }

    fn ids(&self) -> impl Iterator<Item = String> {
        let pod = self.sandbox.iter().map(|it| it.id.to_string());
        pod.chain(self.containers.iter().map(|it| it.id.to_string()))
    }

    fn members(&self, ctx: &Ctx) -> Vec<Member> {
        let pod = self.sandbox.iter().map(|it| {
            let metadata = &it.spec.metadata;
            let member = Member {
                kind: "pod",
                id: it.id.to_string(),
                name: format!("{}/{}", metadata.namespace, metadata.name),
                state: it.phase.word().to_owned(),
                ..Member::default()
            };
            // Its limit is that of all its containers together.
            member.measured(ctx, &it.cgroup_of(&it.id), &it.cgroup_parent, it.pause_pid)
        });
        let containers = self.containers.iter().map(|it| {
            let (pid, ending) = match &it.phase {
                Phase::Created { pid } | Phase::Running { pid, .. } => (*pid, String::new()),
                Phase::Exited(exit) => (0, ending(exit)),
                Phase::Creating | Phase::Removing => (0, String::new()),
            };
            let member = Member {
                kind: "container",
                id: it.id.to_string(),
                name: it.spec.name.clone(),
                state: it.phase.word().to_owned(),
                ending,
                ..Member::default()
            };
            member.measured(ctx, &it.cgroups_path, &it.cgroups_path, pid)
        });
        pod.chain(containers).collect()
    }
}

fn ending(exit: &crate::container::state::Exit) -> String {
    let reason = format!("exit code {}, {:?}", exit.code, exit.reason);
    match exit.message.as_str() {
        "" => reason,
        message => format!("{reason}: {message}"),
    }
}

impl Member {
    /// With the processes of one group and the memory of another. A group that is gone, or is going
    /// while it is looked at, has nothing.
    fn measured(self, ctx: &Ctx, own: &str, memory: &str, first: i32) -> Self {
        let pids = ctx.cgroups.pids(own).unwrap_or_default();
        let used = ctx.cgroups.stats(memory);
        let looked_at = pids.iter().filter_map(|pid| look(*pid));
        let told = looked_at.filter(|it| it.pid == first || ['D', 'T', 'Z'].contains(&it.state));
        Self {
            processes: told.take(PROCESSES_MAX).collect(),
            process_count: pids.len(),
            frozen: ctx.cgroups.is_frozen(own).unwrap_or(false),
            memory: used.memory_usage.unwrap_or(0),
            memory_limit: used.memory_limit.unwrap_or(0),
            oom_kills: used.oom_kills.unwrap_or(0),
            ..self
        }
    }
}

/// Only files of /proc that do not wait for the process: `cmdline` and `maps` hang with one that does.
fn look(pid: i32) -> Option<Process> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
    let (command, state) = parse_stat(&read("stat").ok()?)?;
    let waits_in = read("wchan").unwrap_or_default().trim().to_owned();
    let waits_in = if waits_in == "0" { String::new() } else { waits_in };
    Some(Process { pid, command, state, waits_in })
}

/// Name and state; the name may hold anything, parentheses too.
fn parse_stat(stat: &str) -> Option<(String, char)> {
    let (name, rest) = (stat.find('(')? + 1, stat.rfind(')')?);
    let state = stat.get(rest + 1..)?.trim_start().chars().next()?;
    Some((stat.get(name..rest)?.to_owned(), state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::testing;
    use crate::container::user::User;
    use crate::id::Id;

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_state() {
        let parsed = parse_stat("12 (a) D (b) S 1 12 12 0");
        assert_eq!(parsed, Some(("a) D (b".to_owned(), 'S')));
        assert_eq!(parse_stat("12 (cut"), None);
    }

    #[test]
    fn words_are_ids_their_beginnings_or_names_and_a_pod_means_its_containers() {
        let id = |digit: &str| Id::parse(&digit.repeat(64)).unwrap();
        let pod = |digit: &str, name: &str| {
            let mut pod = testing::sandbox();
            pod.id = id(digit);
            pod.spec.metadata.name = name.to_owned();
            (pod.id.clone(), Arc::new(pod))
        };
        let container = |digit: &str, pod: &str| {
            let container = Container {
                id: id(digit),
                sandbox_id: id(pod),
                spec: testing::spec(),
                created_at_ns: 1,
                phase: Phase::Creating,
                image_id: String::new(),
                image_volumes: [].into(),
                user: User::default(),
                cgroups_path: String::new(),
                log_path: None,
                stop_signal: 15,
                writable_limit: None,
                over_limit: None,
            };
            (container.id.clone(), Arc::new(container))
        };
        let world = Snapshot {
            sandboxes: [pod("a", "web"), pod("b", "db")].into(),
            containers: [container("c", "a"), container("d", "b")].into(),
        };
        let found = |word: &str| Meant::find(&world, word).map(|it| it.ids().collect::<Vec<_>>());
        let ids = |digits: &[&str]| digits.iter().map(|it| it.repeat(64)).collect::<Vec<_>>();
        for (word, expect) in [
            ("web", &["a", "c"][..]),
            ("default/db", &["b", "d"]),
            ("aaaa", &["a", "c"]),
            ("dd", &["d"]),
            ("web/app", &["c"]),
        ] {
            assert_eq!(found(word).unwrap(), ids(expect), "{word}");
        }
        assert!(matches!(found("x"), Err(Error::NotFound { .. })));
        assert!(matches!(found(""), Err(Error::Invalid { .. })));
        let many = found("app").unwrap_err().to_string();
        assert!(many.contains(&"c".repeat(64)) && many.contains(&"d".repeat(64)), "{many}");
    }

    #[test]
    fn a_network_is_owed_by_the_pod_that_is_meant_and_by_no_other() {
        let debt = |pod: &str, digit: &str| Owed {
            pod: pod.to_owned(),
            sandbox_id: Id::parse(&digit.repeat(64)).unwrap(),
            attempts: 3,
            last_error: "it does not know default/web".to_owned(),
        };
        let debts = [debt("default/web", "a"), debt("other/db", "b"), debt("default/db", "c")];
        for (word, expect) in [
            ("web", &[0][..]),
            ("default/web", &[0]),
            ("aaaa", &[0]),
            ("db", &[1, 2]),
            ("other/db", &[1]),
            ("w", &[]),
            ("default", &[]),
            ("attempts", &[]),
        ] {
            let sentences: Vec<_> = expect.iter().map(|at| debts[*at].to_string()).collect();
            assert_eq!(owed(&debts, &[word]), sentences.join("; "), "{word}");
        }
    }

    #[test]
    fn this_process_is_seen_as_it_is() {
        let own = look(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(['R', 'S'].contains(&own.state), "{own:?}");
        assert_eq!(look(i32::MAX), None);
    }
}
