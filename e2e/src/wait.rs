//! Waiting for what the kernel or the daemon does in its own time, always bounded.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How often a condition is looked at again.
const PAUSE: Duration = Duration::from_millis(10);

/// How many times longer than the build machine this one needs, as its guest measured it.
static FACTOR: LazyLock<u32> = LazyLock::new(|| {
    let given = std::env::var("E2E_TIME_FACTOR").ok();
    given.map_or(1, |it| it.parse().expect("E2E_TIME_FACTOR is a whole number"))
});

/// A limit of the build machine, on this one.
pub fn scaled(limit: Duration) -> Duration {
    limit * *FACTOR
}

/// The first `Some` that `look` gives, or a panic that says what did not happen.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let limit = scaled(limit);
    let end = Instant::now() + limit;
    loop {
        match look() {
            Some(found) => return found,
            None if Instant::now() > end => panic!("{what}: not within {limit:?}"),
            None => std::thread::sleep(PAUSE),
        }
    }
}

/// As [`until`], for conditions that must ask the daemon.
pub async fn until_async<T, F: Future<Output = Option<T>>>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> T {
    let limit = scaled(limit);
    let end = Instant::now() + limit;
    loop {
        match look().await {
            Some(found) => return found,
            None if Instant::now() > end => panic!("{what}: not within {limit:?}"),
            None => tokio::time::sleep(PAUSE).await,
        }
    }
}
