//! What the creator of a container was before it made one, for a creator that makes another one afterwards.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open};

use crate::create::Creation;
use crate::error::{At, Error};
use crate::init::join;
use crate::plan::Namespace;
use crate::process::OOM_SCORE_ADJ;

const STAGE: &str = "prepare the creator";

/// The namespaces and the score of a process.
#[derive(Debug)]
pub struct Home {
    namespaces: Vec<(Namespace, OwnedFd)>,
    oom_score_adj: String,
}

impl Home {
    /// Of the calling process as it is now.
    pub fn here() -> Result<Self, Error> {
        use Namespace::{Ipc, Net, Pid, Uts};
        let open = |(kind, name)| {
            let path = format!("/proc/self/ns/{name}");
            let opened = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            Ok((kind, opened.at(STAGE, format!("open {path}"))?))
        };
        let kinds = [(Ipc, "ipc"), (Net, "net"), (Pid, "pid"), (Uts, "uts")];
        Ok(Self {
            namespaces: kinds.into_iter().map(open).collect::<Result<_, _>>()?,
            oom_score_adj: fs::read_to_string(OOM_SCORE_ADJ).at(STAGE, "read its score")?,
        })
    }

    /// Takes back what the calling process did to itself to make this container. False when something stays: then it
    /// is not to make another one.
    pub fn come_back(&self, from: &Creation<'_>) -> bool {
        let plan = from.plan;
        let joins = plan.namespaces.join.iter().map(|(kind, _)| *kind);
        let joined = joins.chain(from.netns.map(|_| Namespace::Net));
        // That of mounts is joined by init.
        let mut joined = joined.filter(|kind| *kind != Namespace::Mount);
        let back = |wanted: Namespace| {
            let own = self.namespaces.iter().find(|(kind, _)| *kind == wanted);
            own.is_some_and(|(kind, fd)| join(*kind, fd).is_ok())
        };
        !from.marks_its_creator()
            && joined.all(back)
            && (plan.process.oom_score_adj.is_none()
                || fs::write(OOM_SCORE_ADJ, &self.oom_score_adj).is_ok())
    }
}
