//! The user's terminal while it belongs to a command elsewhere: every key goes there, and its size is told.

use std::io;

use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal that hands on every key; as it was before when this value goes.
#[derive(Debug)]
pub(super) struct Raw(Termios);

impl Raw {
    /// `Ok(None)`: standard input is no terminal.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        let input = rustix::stdio::stdin();
        if !rustix::termios::isatty(input) {
            return Ok(None);
        }
        let before = tcgetattr(input)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(input, OptionalActions::Now, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Columns and rows.
pub(super) fn size() -> Option<(u16, u16)> {
    let Winsize { ws_col, ws_row, .. } = tcgetwinsize(rustix::stdio::stdin()).ok()?;
    (ws_col > 0 && ws_row > 0).then_some((ws_col, ws_row))
}
