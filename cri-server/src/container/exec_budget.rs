//! How much output of all ExecSyncs together the node holds: in the shims until the end, then here until it is sent.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// For the whole node. One call alone may fill a kubelet's message of 16 MiB; many at once share.
const TOTAL: usize = 64 << 20;
/// Of that, kept for calls that only get the least: 256 at once.
const SMALL: usize = 32 << 20;
/// What every call gets at least: more than the kubelet keeps of a probe's output (10 KiB).
const LEAST: usize = 128 << 10;
/// Permits are counted in KiB.
const UNIT: usize = 1 << 10;

#[derive(Debug)]
pub(crate) struct ExecBudget(Arc<Semaphore>);

/// One call's part; goes back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) bytes: usize,
    _permit: OwnedSemaphorePermit,
}

impl Default for ExecBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TOTAL / UNIT)))
    }
}

impl ExecBudget {
    /// Waits only while hundreds of calls are under way.
    pub(crate) async fn take(&self, wanted: usize) -> Share {
        let bytes = share(self.0.available_permits() * UNIT, wanted);
        let permits = |bytes: usize| u32::try_from(bytes / UNIT).unwrap_or(u32::MAX);
        if let Ok(permit) = self.0.clone().try_acquire_many_owned(permits(bytes)) {
            return Share { bytes, _permit: permit };
        }
        match self.0.clone().acquire_many_owned(permits(LEAST)).await {
            Ok(permit) => Share { bytes: LEAST, _permit: permit },
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }
}

/// Half of what is left, so that there is always something for the next one.
fn share(free: usize, wanted: usize) -> usize {
    wanted.min(free.saturating_sub(SMALL) / 2).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn one_alone_gets_what_it_wants_and_many_share() {
        assert_eq!(share(TOTAL, 16 * MIB), 16 * MIB);
        assert_eq!(share(TOTAL, MIB), MIB);
        assert_eq!(share(48 * MIB, 16 * MIB), 8 * MIB);
        assert_eq!(share(0, 16 * MIB), LEAST);
    }

    #[tokio::test]
    async fn a_hundred_at_once_stay_within_the_whole_and_give_it_back() {
        let budget = ExecBudget::default();
        let mut shares = Vec::new();
        for _ in 0..100 {
            shares.push(budget.take(16 * MIB).await);
        }
        assert!(shares.iter().map(|s| s.bytes).sum::<usize>() <= TOTAL);
        assert!(shares.iter().all(|s| s.bytes >= LEAST));
        drop(shares);
        assert_eq!(budget.take(16 * MIB).await.bytes, 16 * MIB);
    }
}
