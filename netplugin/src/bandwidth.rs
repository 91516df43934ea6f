//! How fast a pod may send and receive. Pure.

/// Limits of a pod's link; `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// What the pod receives.
    pub ingress: Option<Rate>,
    /// What the pod sends.
    pub egress: Option<Rate>,
}

/// A rate with the burst it tolerates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bits per second, at least 1000.
    pub bits_per_second: u64,
    /// Bits that may pass at once; `None` takes what the rate gives in 50 ms.
    pub burst_bits: Option<u64>,
}

/// A bucket must hold the largest packet a pod's link may hand over in one piece.
const BURST_MIN: u32 = 64 * 1024;
/// Burst that a rate gives by itself, in fractions of a second.
const BURST_PER_SECOND: u64 = 20;
/// Packets wait at most this fraction of a second before they are dropped.
const QUEUE_PER_SECOND: u64 = 40;

impl Rate {
    pub(crate) fn bytes_per_second(&self) -> u64 {
        (self.bits_per_second / 8).max(1)
    }

    pub(crate) fn burst_bytes(&self) -> u32 {
        let bytes = match self.burst_bits {
            Some(bits) => bits / 8,
            None => self.bytes_per_second() / BURST_PER_SECOND,
        };
        u32::try_from(bytes).unwrap_or(u32::MAX).max(BURST_MIN)
    }

    pub(crate) fn queue_bytes(&self) -> u32 {
        let bytes = self.bytes_per_second() / QUEUE_PER_SECOND;
        u32::try_from(bytes).unwrap_or(u32::MAX).saturating_add(self.burst_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_always_holds_the_largest_packet() {
        let slow = Rate { bits_per_second: 1000, burst_bits: Some(8) };
        assert_eq!((slow.bytes_per_second(), slow.burst_bytes()), (125, BURST_MIN));
        let fast = Rate { bits_per_second: 80_000_000, burst_bits: None };
        assert_eq!((fast.bytes_per_second(), fast.burst_bytes()), (10_000_000, 500_000));
        assert_eq!(fast.queue_bytes(), 750_000);
        let unlimited_burst = Rate { burst_bits: Some(u64::MAX), ..fast };
        assert_eq!(unlimited_burst.queue_bytes(), u32::MAX);
    }
}
