//! How much of a container's output reaches its log: bytes per second and bytes in the file; pure.

use std::time::{Duration, Instant};

use protocol::{LogLimits, LogPolicy};

/// What was asked for; zero is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Content bytes of one line before it is split.
    pub(crate) line_max: usize,
    pub(crate) rate: u64,
    pub(crate) size: u64,
    /// Beyond the limits nothing is read: the container waits. Otherwise it is read, counted and gone.
    pub(crate) block: bool,
}

impl From<LogLimits> for Limits {
    fn from(l: LogLimits) -> Self {
        let block = l.policy() == LogPolicy::Block;
        Self { line_max: l.line_max as usize, rate: l.rate, size: l.size, block }
    }
}

impl From<Limits> for LogLimits {
    fn from(l: Limits) -> Self {
        let policy = if l.block { LogPolicy::Block } else { LogPolicy::Drop }.into();
        let line_max = u32::try_from(l.line_max).unwrap_or(u32::MAX);
        Self { line_max, rate: l.rate, size: l.size, policy }
    }
}

/// A burst may be as long as a second's worth, but at least one read.
const BURST_MIN: u64 = 64 * 1024;
/// A container that waits for the rotation of its log is looked after so often, should nobody rotate.
const ROTATION: Duration = Duration::from_secs(3600);

/// The state of the limits of one container.
#[derive(Debug)]
pub(super) struct Limiter {
    limits: Limits,
    /// What may be written now; below zero after more was, when the policy is to wait.
    tokens: i64,
    at: Instant,
    /// Of each stream: the rest of a line whose beginning was left out is left out, too.
    skipping: [bool; 2],
}

/// What to do with a piece of output.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict<'a> {
    /// The line that was begun before ends here.
    pub(super) cut: bool,
    pub(super) keep: &'a [u8],
    pub(super) dropped: usize,
}

impl Limiter {
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        let mut new = Self { limits, tokens: 0, at: now, skipping: [false; 2] };
        new.tokens = new.burst();
        new
    }

    fn burst(&self) -> i64 {
        i64::try_from(self.limits.rate.max(BURST_MIN)).unwrap_or(i64::MAX)
    }

    fn refill(&mut self, now: Instant) {
        let millis = now.saturating_duration_since(self.at).as_millis() as u64;
        let new = self.limits.rate.saturating_mul(millis) / 1000;
        if new > 0 {
            let new = i64::try_from(new).unwrap_or(i64::MAX);
            self.tokens = self.tokens.saturating_add(new).min(self.burst());
            self.at = now;
        }
    }

    /// `len`: bytes in the file before. Whole lines are kept or left out.
    pub(super) fn admit<'a>(
        &mut self,
        stream: usize,
        bytes: &'a [u8],
        now: Instant,
        len: u64,
    ) -> Verdict<'a> {
        let Limits { rate, size, block, .. } = self.limits;
        if rate == 0 && size == 0 {
            return Verdict { cut: false, keep: bytes, dropped: 0 };
        }
        self.refill(now);
        if block {
            self.tokens -= bytes.len() as i64;
            return Verdict { cut: false, keep: bytes, dropped: 0 };
        }
        let by_rate = if rate == 0 { u64::MAX } else { self.tokens.max(0) as u64 };
        let by_size = if size == 0 { u64::MAX } else { size.saturating_sub(len) };
        let room = usize::try_from(by_rate.min(by_size)).unwrap_or(usize::MAX);
        let (keep, cut) = self.whole_lines(stream, bytes, room);
        self.tokens -= keep.len() as i64;
        Verdict { cut, keep, dropped: bytes.len() - keep.len() }
    }

    fn whole_lines<'a>(&mut self, stream: usize, bytes: &'a [u8], room: usize) -> (&'a [u8], bool) {
        let skipping = &mut self.skipping[stream];
        let rest = match memchr::memchr(b'\n', bytes) {
            _ if !*skipping => bytes,
            Some(end) => &bytes[end + 1..],
            None => return (&[], false),
        };
        if rest.len() <= room {
            *skipping = false;
            return (rest, false);
        }
        let whole = memchr::memrchr(b'\n', &rest[..room]).map_or(0, |end| end + 1);
        let cut = whole == 0 && !*skipping;
        // What is left out may end inside a line.
        *skipping = rest.last() != Some(&b'\n');
        (&rest[..whole], cut)
    }

    /// Until when nothing more may be read.
    pub(super) fn rest(&mut self, now: Instant, len: u64) -> Option<Instant> {
        let Limits { rate, size, block, .. } = self.limits;
        if !block {
            return None;
        }
        if size > 0 && len >= size {
            return Some(now + ROTATION);
        }
        if rate == 0 || self.tokens >= 0 {
            return None;
        }
        let millis = self.tokens.unsigned_abs().saturating_mul(1000).div_ceil(rate);
        Some(self.at + Duration::from_millis(millis.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(rate: u64, size: u64, block: bool) -> (Limiter, Instant) {
        let now = Instant::now();
        (Limiter::new(Limits { line_max: 0, rate, size, block }, now), now)
    }

    #[test]
    fn without_limits_everything_is_kept() {
        let (mut l, now) = limiter(0, 0, false);
        let all = vec![b'x'; 1 << 20];
        assert_eq!(l.admit(0, &all, now, u64::MAX).keep.len(), all.len());
        assert_eq!(l.rest(now, u64::MAX), None);
    }

    #[test]
    fn beyond_the_size_whole_lines_are_left_out_until_there_is_room_again() {
        let (mut l, now) = limiter(0, 10, false);
        assert_eq!(
            l.admit(0, b"aaa\nbbbbbbbb", now, 0),
            Verdict { cut: false, keep: b"aaa\n", dropped: 8 }
        );
        // The rest of the line that was left out is not taken for a line of its own.
        assert_eq!(l.admit(0, b"BBB\nc\n", now, 4).keep, b"c\n");
        assert_eq!(l.admit(0, b"d\n", now, 10), Verdict { cut: true, keep: b"", dropped: 2 });
        assert_eq!(l.admit(0, b"e\n", now, 0).keep, b"e\n");
    }

    #[test]
    fn the_streams_do_not_spoil_each_other() {
        let (mut l, now) = limiter(0, 4, false);
        assert!(l.admit(0, b"too long", now, 4).keep.is_empty());
        assert_eq!(l.admit(1, b"x\n", now, 0).keep, b"x\n");
    }

    #[test]
    fn a_rate_lets_a_burst_through_and_then_what_time_brings() {
        let (mut l, now) = limiter(1000, 0, false);
        let burst = vec![b'\n'; BURST_MIN as usize];
        assert_eq!(l.admit(0, &burst, now, 0).keep.len(), burst.len());
        assert_eq!(l.admit(0, b"a\n", now, 0).dropped, 2);
        assert_eq!(l.admit(0, b"a\n", now + Duration::from_millis(2), 0).keep, b"a\n");
    }

    #[test]
    fn who_waits_loses_nothing_and_is_told_for_how_long() {
        let (mut l, now) = limiter(100_000, 0, true);
        let much = vec![b'x'; 150_000];
        assert_eq!(l.admit(0, &much, now, 0).keep.len(), much.len());
        assert_eq!(l.rest(now, 0), Some(now + Duration::from_millis(500)));
        l.refill(now + Duration::from_millis(501));
        assert_eq!(l.rest(now, 0), None);
        let (mut l, now) = limiter(0, 10, true);
        assert_eq!((l.rest(now, 9), l.rest(now, 10)), (None, Some(now + ROTATION)));
    }
}
