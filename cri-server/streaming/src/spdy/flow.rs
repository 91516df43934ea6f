//! How much may be sent: SPDY's windows, for peers that use them. Pure.
//!
//! The client that everybody has (Go's spdystream) neither keeps a window nor ever opens one, so a sender that waits
//! for it would hang after 64 KiB. A peer that does keep windows says so in SETTINGS at the start or by its first
//! WINDOW_UPDATE; until then TCP alone brakes.

/// What a window is before anybody says otherwise.
pub(crate) const INITIAL: i64 = 64 * 1024;
/// The specification's limit.
const MAX: i64 = 0x7fff_ffff;

/// The windows of one direction of a connection.
#[derive(Debug)]
pub(crate) struct Windows {
    /// The peer has spoken of windows.
    kept: bool,
    /// What new streams begin with.
    initial: i64,
    /// What all streams together may send; SPDY/3 has no such window, 3.1 has.
    session: i64,
    session_kept: bool,
}

impl Default for Windows {
    fn default() -> Self {
        Self { kept: false, initial: INITIAL, session: INITIAL, session_kept: false }
    }
}

/// A window that grew over what is possible: the stream, or with stream 0 the connection, is broken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overflow;

impl Windows {
    /// The window of a new stream.
    pub(crate) fn open(&self) -> i64 {
        self.initial
    }

    /// SETTINGS changes the windows of all streams by the difference, which may turn them negative.
    pub(crate) fn settings<'a>(
        &mut self,
        initial: u32,
        streams: impl Iterator<Item = &'a mut i64>,
    ) {
        let initial = i64::from(initial).min(MAX);
        let difference = initial - self.initial;
        (self.kept, self.initial) = (true, initial);
        streams.for_each(|window| *window += difference);
    }

    pub(crate) fn update(&mut self, stream: &mut i64, delta: u32) -> Result<(), Overflow> {
        self.kept = true;
        grow(stream, delta)
    }

    pub(crate) fn update_session(&mut self, delta: u32) -> Result<(), Overflow> {
        (self.kept, self.session_kept) = (true, true);
        grow(&mut self.session, delta)
    }

    /// Takes as much of `want` as may be sent now; 0: wait.
    pub(crate) fn take(&mut self, stream: &mut i64, want: usize) -> usize {
        let mut take = i64::try_from(want).unwrap_or(MAX);
        if self.kept {
            take = take.min(*stream).max(0);
        }
        if self.session_kept {
            take = take.min(self.session).max(0);
        }
        // Counted from the first byte, because the peer may speak of windows later.
        *stream -= take;
        self.session -= take;
        take as usize
    }
}

fn grow(window: &mut i64, delta: u32) -> Result<(), Overflow> {
    *window += i64::from(delta);
    if *window > MAX { Err(Overflow) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_never_speaks_of_windows_is_not_waited_for() {
        let mut windows = Windows::default();
        let mut stream = windows.open();
        assert_eq!(windows.take(&mut stream, 1 << 20), 1 << 20);
        assert_eq!(windows.take(&mut stream, 1 << 20), 1 << 20);
    }

    #[test]
    fn a_peer_that_sends_settings_is() {
        let mut windows = Windows::default();
        let mut stream = windows.open();
        windows.settings(10, [&mut stream].into_iter());
        assert_eq!(windows.take(&mut stream, 100), 10);
        assert_eq!(windows.take(&mut stream, 100), 0);
        windows.update(&mut stream, 7).unwrap();
        assert_eq!(windows.take(&mut stream, 100), 7);
    }

    #[test]
    fn what_was_sent_before_the_first_update_counts() {
        let mut windows = Windows::default();
        let mut stream = windows.open();
        windows.take(&mut stream, INITIAL as usize + 5);
        windows.update(&mut stream, 3).unwrap();
        assert_eq!(windows.take(&mut stream, 1), 0);
        windows.update(&mut stream, 3).unwrap();
        assert_eq!(windows.take(&mut stream, 9), 1);
    }

    #[test]
    fn the_session_has_a_window_of_its_own() {
        let mut windows = Windows::default();
        let (mut one, mut two) = (windows.open(), windows.open());
        windows.update_session(0).unwrap();
        assert_eq!(windows.take(&mut one, 60 * 1024), 60 * 1024);
        assert_eq!(windows.take(&mut two, 60 * 1024), 4 * 1024);
    }

    #[test]
    fn a_window_cannot_grow_for_ever() {
        let mut windows = Windows::default();
        let mut stream = windows.open();
        assert_eq!(windows.update(&mut stream, 0x7fff_ffff), Err(Overflow));
        assert_eq!(windows.update_session(0x7fff_ffff), Err(Overflow));
    }
}
