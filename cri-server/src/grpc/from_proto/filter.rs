//! List filters: an id (or the start of one), a state and labels, all of which must match.

use proto::cri::v1 as cri;

use crate::sandbox::spec::StringMap;

/// What a list call asks for. An empty filter matches everything.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    id: String,
    sandbox_id: String,
    state: Option<i32>,
    labels: StringMap,
}

/// What a filter looks at.
pub(crate) struct Candidate<'a> {
    pub(crate) id: &'a str,
    pub(crate) sandbox_id: &'a str,
    pub(crate) state: i32,
    pub(crate) labels: &'a StringMap,
}

impl Filter {
    /// `crictl` sends ids as people typed them: the start of an id is enough.
    pub(crate) fn matches(&self, candidate: &Candidate<'_>) -> bool {
        candidate.id.starts_with(&self.id)
            && candidate.sandbox_id.starts_with(&self.sandbox_id)
            && self.state.is_none_or(|state| state == candidate.state)
            && self.labels.iter().all(|(key, value)| candidate.labels.get(key) == Some(value))
    }
}

pub(crate) fn sandboxes(filter: Option<cri::PodSandboxFilter>) -> Filter {
    let filter = filter.unwrap_or_default();
    Filter {
        id: filter.id,
        sandbox_id: String::new(),
        state: filter.state.map(|state| state.state),
        labels: filter.label_selector.into_iter().collect(),
    }
}

pub(crate) fn containers(filter: Option<cri::ContainerFilter>) -> Filter {
    let filter = filter.unwrap_or_default();
    Filter {
        id: filter.id,
        sandbox_id: filter.pod_sandbox_id,
        state: filter.state.map(|state| state.state),
        labels: filter.label_selector.into_iter().collect(),
    }
}

pub(crate) fn sandbox_stats(filter: Option<cri::PodSandboxStatsFilter>) -> Filter {
    let filter = filter.unwrap_or_default();
    Filter {
        id: filter.id,
        labels: filter.label_selector.into_iter().collect(),
        ..Filter::default()
    }
}

pub(crate) fn container_stats(filter: Option<cri::ContainerStatsFilter>) -> Filter {
    let filter = filter.unwrap_or_default();
    Filter {
        id: filter.id,
        sandbox_id: filter.pod_sandbox_id,
        labels: filter.label_selector.into_iter().collect(),
        ..Filter::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(filter: cri::ContainerFilter, expect: bool) {
        let labels = [("app".to_owned(), "web".to_owned())].into();
        let candidate = Candidate { id: "abc123", sandbox_id: "pod9", state: 1, labels: &labels };
        assert_eq!(containers(Some(filter.clone())).matches(&candidate), expect, "{filter:?}");
    }

    #[test]
    fn every_given_condition_has_to_hold() {
        let state = |state| Some(cri::ContainerStateValue { state });
        let label = |value: &str| [("app".to_owned(), value.to_owned())].into();
        check(cri::ContainerFilter::default(), true);
        check(cri::ContainerFilter { id: "abc".into(), ..Default::default() }, true);
        check(cri::ContainerFilter { id: "bc".into(), ..Default::default() }, false);
        check(cri::ContainerFilter { state: state(1), ..Default::default() }, true);
        check(cri::ContainerFilter { state: state(2), ..Default::default() }, false);
        check(cri::ContainerFilter { label_selector: label("web"), ..Default::default() }, true);
        check(cri::ContainerFilter { label_selector: label("db"), ..Default::default() }, false);
        check(cri::ContainerFilter { pod_sandbox_id: "other".into(), ..Default::default() }, false);
    }
}
