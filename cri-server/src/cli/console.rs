//! What the verbs print: results on standard output, progress and notices on standard error.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// Between two plain progress lines: a log file wants few of them.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Between two updates of a line on a terminal: fast enough to look alive.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(100);

/// Prints a result.
pub(crate) fn out(line: impl Display) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// Prints bytes as they are, for what a container wrote.
pub(crate) fn out_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Prints bytes as they are on standard error.
pub(crate) fn err_bytes(bytes: &[u8]) -> io::Result<()> {
    io::stderr().lock().write_all(bytes)
}

/// Tells the user what is going on. A closed standard error is not a reason to stop the work.
pub(crate) fn note(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Bytes of a transfer as they pass: one moving line on a terminal, a few plain lines elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    total_bytes: Option<u64>,
    terminal: bool,
    printed: Instant,
}

impl Progress {
    pub(crate) fn start(what: String, total_bytes: Option<u64>) -> Self {
        let terminal = io::stderr().is_terminal();
        if !terminal {
            note(&what);
        }
        Self { what, total_bytes, terminal, printed: Instant::now() }
    }

    pub(crate) fn update(&mut self, bytes: u64) {
        self.print(|progress| progress_line(&progress.what, bytes, progress.total_bytes));
    }

    /// For what is more than a number of bytes.
    pub(crate) fn say(&mut self, state: impl Display) {
        self.print(|progress| format!("{}: {state}", progress.what));
    }

    fn print(&mut self, line: impl FnOnce(&Self) -> String) {
        let interval = if self.terminal { TERMINAL_INTERVAL } else { PLAIN_INTERVAL };
        if self.printed.elapsed() < interval {
            return;
        }
        self.printed = Instant::now();
        let line = line(self);
        if self.terminal {
            let _ = write!(io::stderr().lock(), "\r\x1b[K{line}");
        } else {
            note(line);
        }
    }
}

/// Leaves a clean line for what is printed next.
impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

fn progress_line(what: &str, bytes: u64, total_bytes: Option<u64>) -> String {
    match total_bytes {
        Some(total) if total > 0 => {
            let percent = (u128::from(bytes) * 100 / u128::from(total)).min(100);
            format!("{what}: {} of {} ({percent}%)", size(bytes), size(total))
        }
        _ => format!("{what}: {}", size(bytes)),
    }
}

/// Columns padded to their widest cell, two blanks between them, nothing after the last.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            text.push_str(&format!("{cell:width$}  "));
        }
        text.trim_end().to_owned()
    };
    let mut lines = vec![line(header)];
    lines.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    lines.join("\n")
}

/// Bytes for a reader, in decimal units as registries print them.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    // 999.95 would be rounded up to "1000.0".
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// How long ago, in the largest unit that says enough. Times are nanoseconds since 1970.
pub(crate) fn age(then_ns: i64, now_ns: i64) -> String {
    let seconds = now_ns.saturating_sub(then_ns).max(0) / 1_000_000_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The first twelve digits of an id, without the name of its hash: enough to tell objects apart.
pub(crate) fn short_id(id: &str) -> &str {
    let digits = id.rsplit_once(':').map_or(id, |(_, digits)| digits);
    digits.get(..12).unwrap_or(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_cells_and_has_no_trailing_blanks() {
        let rows =
            [["nginx".to_owned(), "1".to_owned()], ["a-long-name".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "TAG"], &rows), "NAME         TAG\nnginx        1\na-long-name");
    }

    #[test]
    fn sizes_are_decimal_and_never_show_a_thousand() {
        for (bytes, expect) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (4_260_000, "4.3 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(size(bytes), expect);
        }
    }

    #[test]
    fn ages_use_the_largest_telling_unit() {
        for (seconds, expect) in
            [(-5, "0s"), (119, "119s"), (120, "2m"), (7_200, "2h"), (172_800, "2d")]
        {
            assert_eq!(age(0, seconds * 1_000_000_000), expect);
        }
    }

    #[test]
    fn a_short_id_drops_the_hash_name() {
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("abc"), "abc");
    }

    #[test]
    fn progress_says_how_much_of_how_much() {
        assert_eq!(progress_line("import", 500, Some(1000)), "import: 500 B of 1.0 kB (50%)");
        assert_eq!(progress_line("import", 500, None), "import: 500 B");
    }
}
