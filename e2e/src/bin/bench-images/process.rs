//! What a daemon uses, by the kernel's own account of it.

use std::fs;

/// A running process.
pub(crate) struct Process {
    pid: i32,
}

/// `utime` and its kind are in hundredths of a second on every architecture that matters.
const TICKS: f64 = 100.0;

impl Process {
    pub(crate) fn new(pid: i32) -> Self {
        Self { pid }
    }

    /// Processor time so far, with that of children it has waited for: some inflate by a program.
    /// In user space and in the kernel.
    pub(crate) fn cpu_s(&self) -> [f64; 2] {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        // utime, stime, cutime, cstime.
        let times: Vec<f64> =
            fields.skip(11).take(4).map(|it| it.parse::<f64>().unwrap() / TICKS).collect();
        [times[0] + times[2], times[1] + times[3]]
    }

    pub(crate) fn resident_mib(&self) -> f64 {
        self.status("VmRSS:")
    }

    /// Most that was resident since [`Process::forget_peak`].
    pub(crate) fn peak_mib(&self) -> f64 {
        self.status("VmHWM:")
    }

    pub(crate) fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid), "5").unwrap();
    }

    fn status(&self, name: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
    }
}
