//! Where time goes: operations and their stages while they are under way, those that were slow
//! afterwards.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::app::Ctx;
use crate::clock;

/// Slow operations that are remembered for people who look later.
const SLOW_KEPT: usize = 64;

/// How often operations under way are looked at for slow ones.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Calls that take as long as their caller or a container wants: never called slow.
const PATIENT: [&str; 5] =
    ["ExecSync", "StopContainer", "StopPodSandbox", "PullImage", "ImportImages"];

/// What is under way, and what was slow.
#[derive(Debug)]
pub(crate) struct UnderWay {
    /// From when on something is slow; `None` means nothing ever is.
    slow_after: Option<Duration>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    running: BTreeMap<u64, Running>,
    slow: VecDeque<Slow>,
}

#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) operation: &'static str,
    pub(crate) object: String,
    pub(crate) begun: Instant,
    /// Empty for what has no stages.
    pub(crate) stage: &'static str,
    told: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Slow {
    pub(crate) at_ns: i64,
    pub(crate) operation: &'static str,
    pub(crate) object: String,
    pub(crate) elapsed: Duration,
    /// The stages it had and the time in each.
    pub(crate) stages: Vec<(&'static str, Duration)>,
}

impl UnderWay {
    pub(super) fn new(slow_after: Option<Duration>) -> Self {
        Self { slow_after, state: Mutex::default() }
    }

    /// A number to end it by.
    pub(crate) fn begin(&self, operation: &'static str, object: String) -> u64 {
        let mut state = self.lock();
        state.next += 1;
        let number = state.next;
        let running = Running { operation, object, begun: Instant::now(), stage: "", told: false };
        state.running.insert(number, running);
        number
    }

    fn enter(&self, number: u64, stage: &'static str) {
        if let Some(running) = self.lock().running.get_mut(&number) {
            running.stage = stage;
        }
    }

    /// Whether it was slow, and if so, what is remembered of it.
    pub(crate) fn end(&self, number: u64, stages: Vec<(&'static str, Duration)>) -> Option<Slow> {
        let mut state = self.lock();
        let ended = state.running.remove(&number)?;
        let elapsed = ended.begun.elapsed();
        let limit = self.slow_after.filter(|_| !PATIENT.contains(&ended.operation))?;
        if elapsed < limit {
            return None;
        }
        let slow = Slow {
            at_ns: clock::now_ns(),
            operation: ended.operation,
            object: ended.object,
            elapsed,
            stages,
        };
        if state.slow.len() == SLOW_KEPT {
            state.slow.pop_front();
        }
        state.slow.push_back(slow.clone());
        Some(slow)
    }

    pub(crate) fn running(&self) -> Vec<Running> {
        self.lock().running.values().cloned().collect()
    }

    /// The last slow ones, oldest first.
    pub(crate) fn slow(&self) -> Vec<Slow> {
        self.lock().slow.iter().cloned().collect()
    }

    /// Those that have become slow since the last look and still run.
    fn newly_slow(&self) -> Vec<Running> {
        let Some(limit) = self.slow_after else { return Vec::new() };
        let mut state = self.lock();
        let slow = state.running.values_mut().filter(|running| {
            !running.told
                && running.begun.elapsed() >= limit
                && !PATIENT.contains(&running.operation)
        });
        slow.map(|running| {
            running.told = true;
            running.clone()
        })
        .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every step under the lock is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says of what hangs that it hangs, while it hangs; never returns.
pub(crate) async fn watch(ctx: Arc<Ctx>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for running in ctx.metrics.under_way.newly_slow() {
            tracing::warn!(
                operation = running.operation,
                object = %running.object,
                stage = running.stage,
                seconds = running.begun.elapsed().as_secs(),
                "still under way"
            );
        }
    }
}

/// One operation and the stage it is in. Its end, however it comes, ends the stage.
pub(crate) struct Timeline {
    ctx: Arc<Ctx>,
    operation: &'static str,
    number: u64,
    stage: Option<(&'static str, Instant)>,
    /// A child of the call's span: who exports traces sees the stages.
    span: tracing::Span,
    stages: Vec<(&'static str, Duration)>,
}

impl Timeline {
    pub(crate) fn begin(ctx: &Arc<Ctx>, operation: &'static str, object: String) -> Self {
        let number = ctx.metrics.under_way.begin(operation, object);
        Self {
            ctx: ctx.clone(),
            operation,
            number,
            stage: None,
            span: tracing::Span::none(),
            stages: Vec::new(),
        }
    }

    /// The stage before, if there was one, has ended.
    pub(crate) fn enter(&mut self, stage: &'static str) {
        self.leave();
        self.stage = Some((stage, Instant::now()));
        self.span = tracing::info_span!("stage", operation = self.operation, stage);
        self.ctx.metrics.under_way.enter(self.number, stage);
    }

    fn leave(&mut self) {
        if let Some((stage, begun)) = self.stage.take() {
            let elapsed = begun.elapsed();
            self.span = tracing::Span::none();
            let family = &self.ctx.metrics.families.stage_seconds;
            let labels = [self.operation, stage];
            family.with_label_values(&labels).observe(elapsed.as_secs_f64());
            self.stages.push((stage, elapsed));
        }
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        self.leave();
        let stages = std::mem::take(&mut self.stages);
        if let Some(slow) = self.ctx.metrics.under_way.end(self.number, stages) {
            tell(&self.ctx, &slow);
        }
    }
}

/// Logs and counts a slow operation.
pub(crate) fn tell(ctx: &Ctx, slow: &Slow) {
    ctx.metrics.families.slow.with_label_values(&[slow.operation]).inc();
    let stages: Vec<_> = slow
        .stages
        .iter()
        .map(|(stage, time)| format!("{stage} {} ms", time.as_millis()))
        .collect();
    tracing::warn!(
        operation = slow.operation,
        object = %slow.object,
        milliseconds = u64::try_from(slow.elapsed.as_millis()).unwrap_or(u64::MAX),
        stages = stages.join(", "),
        "slow"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_took_too_long_is_remembered_and_only_the_last_of_it() {
        let quick = UnderWay::new(Some(Duration::from_secs(3600)));
        let number = quick.begin("CreateContainer", "a".into());
        assert_eq!(quick.running().len(), 1);
        assert!(quick.end(number, vec![]).is_none());
        assert!(quick.running().is_empty() && quick.slow().is_empty());
        let slow = UnderWay::new(Some(Duration::ZERO));
        for object in 0..=SLOW_KEPT {
            let number = slow.begin("CreateContainer", object.to_string());
            assert!(slow.end(number, vec![("mount", Duration::ZERO)]).is_some());
        }
        assert_eq!(slow.slow().len(), SLOW_KEPT);
        assert_eq!(slow.slow()[0].object, "1", "the oldest went");
    }

    #[test]
    fn what_still_runs_is_told_once_and_the_patient_never() {
        let under_way = UnderWay::new(Some(Duration::ZERO));
        under_way.begin("RunPodSandbox", "a".into());
        under_way.begin("ExecSync", "b".into());
        let told: Vec<_> = under_way.newly_slow().iter().map(|it| it.operation).collect();
        assert_eq!(told, ["RunPodSandbox"]);
        assert!(under_way.newly_slow().is_empty());
    }
}
