//! Telling a process from a later one with the same pid.

use std::io::Read;

/// Field 22 of `/proc/<pid>/stat`, the start in clock ticks since boot; 0 when there is no such process.
pub fn start_ticks(pid: i32) -> u64 {
    stat(pid).map_or(0, |(_, ticks)| ticks)
}

/// Whether the process that started then still runs (a zombie does not).
pub fn is_alive(pid: i32, start_ticks: u64) -> bool {
    stat(pid).is_some_and(|(state, ticks)| !['Z', 'X'].contains(&state) && ticks == start_ticks)
}

/// State letter and start of a process. The name before them may contain anything, brackets and spaces included.
fn stat(pid: i32) -> Option<(char, u64)> {
    // One read is the whole file: 52 numbers and a name of 15 bytes.
    let mut text = [0; 2048];
    let length = std::fs::File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text[..length]);
    let (_, rest) = text.rsplit_once(") ")?;
    let ticks = rest.split(' ').nth(19)?.parse().ok()?;
    Some((rest.chars().next()?, ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_not_one_that_began_at_another_time() {
        let me = i32::try_from(std::process::id()).expect("pid");
        let ticks = start_ticks(me);
        assert!(is_alive(me, ticks) && !is_alive(me, ticks + 1));
    }
}
