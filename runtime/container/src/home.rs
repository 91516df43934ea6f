//! What the creator of a container was before it made one, for a creator that makes another one afterwards.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::getppid;

use crate::create::Creation;
use crate::init::join;
use crate::plan::Namespace;
use crate::process::OOM_SCORE_ADJ;

/// Looked up when it is first needed: after a container is made, when nobody waits for it.
#[derive(Debug, Default)]
pub struct Home(Option<Origin>);

/// The namespaces and the score that a process has from its parent, who still has them and gives the orders.
#[derive(Debug)]
struct Origin {
    namespaces: Vec<(Namespace, OwnedFd)>,
    oom_score_adj: String,
}

impl Home {
    /// Takes back what the calling process did to itself to make this container. False when something stays: then it
    /// is not to make another one.
    pub fn come_back(&mut self, from: &Creation<'_>) -> bool {
        if from.marks_its_creator() {
            return false;
        }
        if self.0.is_none() {
            self.0 = Origin::look_up();
        }
        self.0.as_ref().is_some_and(|origin| origin.restore(from))
    }
}

impl Origin {
    fn look_up() -> Option<Self> {
        use Namespace::{Ipc, Net, Pid, Uts};
        let parent = getppid()?.as_raw_nonzero();
        let open = |(kind, name)| {
            let path = format!("/proc/{parent}/ns/{name}");
            Some((kind, open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?))
        };
        let kinds = [(Ipc, "ipc"), (Net, "net"), (Pid, "pid"), (Uts, "uts")];
        Some(Self {
            namespaces: kinds.into_iter().map(open).collect::<Option<_>>()?,
            oom_score_adj: fs::read_to_string(format!("/proc/{parent}/oom_score_adj")).ok()?,
        })
    }

    fn restore(&self, from: &Creation<'_>) -> bool {
        let plan = from.plan;
        let joins = plan.namespaces.join.iter().map(|(kind, _)| *kind);
        let joined = joins.chain(from.netns.map(|_| Namespace::Net));
        // That of mounts is joined by init.
        let mut joined = joined.filter(|kind| *kind != Namespace::Mount);
        let back = |wanted: Namespace| {
            let own = self.namespaces.iter().find(|(kind, _)| *kind == wanted);
            own.is_some_and(|(kind, fd)| join(*kind, fd).is_ok())
        };
        joined.all(back)
            && (plan.process.oom_score_adj.is_none()
                || fs::write(OOM_SCORE_ADJ, &self.oom_score_adj).is_ok())
    }
}
