//! One operation per key at a time: whoever asks for the same thing meanwhile waits for the same
//! result, and when the last one stops waiting the operation is cancelled.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Operations under way, by key.
pub(crate) struct Flights<T> {
    table: Arc<Table<T>>,
}

type Table<T> = Mutex<HashMap<String, Flight<T>>>;
type Outcome<T> = watch::Receiver<Option<T>>;

#[derive(Clone)]
struct Flight<T> {
    /// Changed only under the table's lock.
    waiters: Arc<AtomicUsize>,
    outcome: Outcome<T>,
    cancel: CancellationToken,
}

/// How a flight ended for one who waited.
pub(crate) enum Landed<T> {
    /// The operation this caller started.
    Own(T),
    /// An operation somebody else had started.
    Joined(T),
    /// The operation died before it had a result.
    Lost,
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    pub(crate) fn new() -> Flights<T> {
        Flights { table: Arc::default() }
    }

    /// Runs `start` unless an operation for `key` is under way, and waits for its result. When the
    /// last waiter's future is dropped, the operation's future is dropped too.
    pub(crate) async fn join<F>(&self, key: &str, start: impl FnOnce() -> F) -> Landed<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (mut outcome, own, waiting) = loop {
            // A cancelled operation still cleans up behind itself: wait for its end.
            let mut ending = {
                let mut table = lock(&self.table);
                match table.get(key) {
                    None => {
                        let flight = self.launch(key, start());
                        table.insert(key.to_owned(), flight.clone());
                        break (flight.outcome.clone(), true, self.waiting(flight));
                    }
                    Some(flight) if !flight.cancel.is_cancelled() => {
                        flight.waiters.fetch_add(1, Ordering::Relaxed);
                        break (flight.outcome.clone(), false, self.waiting(flight.clone()));
                    }
                    Some(flight) => flight.outcome.clone(),
                }
            };
            while ending.changed().await.is_ok() {}
        };
        let landed = outcome.wait_for(Option::is_some).await.ok().and_then(|r| r.clone());
        drop(waiting);
        match landed {
            Some(value) if own => Landed::Own(value),
            Some(value) => Landed::Joined(value),
            None => Landed::Lost,
        }
    }

    /// Cancels every operation under way.
    pub(crate) fn cancel(&self) {
        for flight in lock(&self.table).values() {
            flight.cancel.cancel();
        }
    }

    fn launch<F>(&self, key: &str, operation: F) -> Flight<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (sender, outcome) = watch::channel(None);
        let cancel = CancellationToken::new();
        let landing = Landing { table: Arc::clone(&self.table), key: key.to_owned() };
        let token = cancel.clone();
        tokio::spawn(async move {
            let value = token.run_until_cancelled_owned(operation).await;
            // Off the table first, so that nobody joins an operation that is over.
            drop(landing);
            sender.send_replace(value);
        });
        Flight { waiters: Arc::new(AtomicUsize::new(1)), outcome, cancel }
    }

    fn waiting(&self, flight: Flight<T>) -> Waiting<T> {
        Waiting { table: Arc::clone(&self.table), flight }
    }
}

/// Counts one waiter out.
struct Waiting<T> {
    table: Arc<Table<T>>,
    flight: Flight<T>,
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        let _table = lock(&self.table); // nobody may join between the count and the cancellation
        if self.flight.waiters.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.flight.cancel.cancel();
        }
    }
}

/// Takes the operation off the table when it ends, also by a panic.
struct Landing<T> {
    table: Arc<Table<T>>,
    key: String,
}

impl<T> Drop for Landing<T> {
    fn drop(&mut self) {
        lock(&self.table).remove(&self.key);
    }
}

fn lock<T>(table: &Table<T>) -> MutexGuard<'_, HashMap<String, Flight<T>>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn value<T>(landed: Landed<T>) -> Option<T> {
        match landed {
            Landed::Own(value) | Landed::Joined(value) => Some(value),
            Landed::Lost => None,
        }
    }

    #[tokio::test]
    async fn twenty_callers_share_one_operation() {
        let flights = Flights::new();
        let started = Arc::new(AtomicUsize::new(0));
        let calls = (0..20).map(|_| {
            flights.join("key", || {
                let started = Arc::clone(&started);
                async move {
                    started.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    7
                }
            })
        });
        for landed in futures::future::join_all(calls).await {
            assert_eq!(value(landed), Some(7));
        }
        assert_eq!(started.load(Ordering::SeqCst), 1);
        assert!(lock(&flights.table).is_empty());
    }

    #[tokio::test]
    async fn an_operation_goes_on_for_the_waiters_that_remain() {
        let flights = Flights::new();
        let slow = || async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            1
        };
        let leaves = tokio::time::timeout(Duration::from_millis(5), flights.join("key", slow));
        let stays = flights.join("key", slow);
        let (left, stayed) = tokio::join!(leaves, stays);
        assert!(left.is_err());
        assert_eq!(value(stayed), Some(1));
    }

    #[tokio::test]
    async fn an_operation_nobody_waits_for_is_dropped_and_may_start_again() {
        struct Dropped(Arc<AtomicUsize>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let flights = Flights::new();
        let drops = Arc::new(AtomicUsize::new(0));
        let forever = || {
            let mark = Dropped(Arc::clone(&drops));
            async move {
                std::future::pending::<()>().await;
                drop(mark);
                1
            }
        };
        let cut = tokio::time::timeout(Duration::from_millis(5), flights.join("key", forever));
        assert!(cut.await.is_err());
        let again =
            tokio::time::timeout(Duration::from_secs(5), flights.join("key", || async { 2 }));
        assert_eq!(value(again.await.unwrap()), Some(2));
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_panic_is_a_lost_flight_and_not_a_hang() {
        let flights: Flights<u8> = Flights::new();
        let landed = flights.join("key", || async { panic!("as planned") }).await;
        assert!(matches!(landed, Landed::Lost));
    }
}
