//! Where the time of a pull goes, told to whoever counts it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Takes the name of a stage and the time it took. Without one, nobody counts.
#[derive(Clone, Default)]
pub struct Observe(Option<Arc<dyn Fn(&'static str, Duration) + Send + Sync>>);

impl Observe {
    pub fn new(observe: impl Fn(&'static str, Duration) + Send + Sync + 'static) -> Observe {
        Observe(Some(Arc::new(observe)))
    }

    pub(crate) fn begin(&self, stage: &'static str) -> Stages {
        Stages { observe: self.clone(), stage, begun: Instant::now() }
    }
}

impl fmt::Debug for Observe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observe").field(&self.0.is_some()).finish()
    }
}

/// One stage after the other; the last ends with this value, however that comes.
pub(crate) struct Stages {
    observe: Observe,
    stage: &'static str,
    begun: Instant,
}

impl Stages {
    pub(crate) fn enter(&mut self, stage: &'static str) {
        self.leave();
        (self.stage, self.begun) = (stage, Instant::now());
    }

    fn leave(&self) {
        if let Some(observe) = &self.observe.0 {
            observe(self.stage, self.begun.elapsed());
        }
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_stage_is_told_once_also_when_the_pull_is_dropped_in_it() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&told);
        let observe = Observe::new(move |stage, _| into.lock().unwrap().push(stage));
        let mut stages = observe.begin("resolve");
        stages.enter("layers");
        assert_eq!(*told.lock().unwrap(), ["resolve"]);
        drop(stages);
        assert_eq!(*told.lock().unwrap(), ["resolve", "layers"]);
        drop(Observe::default().begin("resolve"));
    }
}
