//! Waiting for what the kernel or the daemon does in its own time, always bounded.

use std::time::{Duration, Instant};

/// How often a condition is looked at again.
const PAUSE: Duration = Duration::from_millis(10);

/// The first `Some` that `look` gives, or a panic that says what did not happen.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
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
    let end = Instant::now() + limit;
    loop {
        match look().await {
            Some(found) => return found,
            None if Instant::now() > end => panic!("{what}: not within {limit:?}"),
            None => tokio::time::sleep(PAUSE).await,
        }
    }
}
