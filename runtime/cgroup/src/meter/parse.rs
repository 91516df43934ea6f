//! The texts of cgroupfs as numbers. Pure.

use super::{Cpu, Memory};
use crate::stats::working_set;

/// What a group has read from and written to one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceIo {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Time lost waiting for a resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks waited.
    pub full: Stall,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    pub total_ns: u64,
    /// Per cent of the last 10, 60 and 300 seconds.
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
}

pub(super) fn v2_cpu(text: &str) -> Cpu {
    let mut cpu = Cpu::default();
    for (key, value) in pairs(text) {
        let nanoseconds = Some(value.saturating_mul(1000));
        match key {
            "usage_usec" => cpu.total_ns = nanoseconds,
            "user_usec" => cpu.user_ns = nanoseconds,
            "system_usec" => cpu.system_ns = nanoseconds,
            "nr_periods" => cpu.periods = Some(value),
            "nr_throttled" => cpu.throttled_periods = Some(value),
            "throttled_usec" => cpu.throttled_ns = nanoseconds,
            _ => {}
        }
    }
    cpu
}

pub(super) fn v2_memory(text: &str, usage: Option<u64>) -> Memory {
    let mut memory = Memory { usage, ..Memory::default() };
    for (key, value) in pairs(text) {
        let value = Some(value);
        match key {
            "anon" => memory.rss = value,
            "file" => memory.cache = value,
            "kernel" => memory.kernel = value,
            "file_mapped" => memory.mapped_file = value,
            "active_file" => memory.active_file = value,
            "inactive_file" => memory.inactive_file = value,
            "pgfault" => (memory.page_faults, memory.own_page_faults) = (value, value),
            "pgmajfault" => {
                (memory.major_page_faults, memory.own_major_page_faults) = (value, value);
            }
            _ => {}
        }
    }
    memory.working_set = working_set(usage, memory.inactive_file);
    memory
}

pub(super) fn v1_memory(text: &str, usage: Option<u64>) -> Memory {
    let mut memory = Memory { usage, ..Memory::default() };
    for (key, value) in pairs(text) {
        let value = Some(value);
        match key {
            "pgfault" => memory.own_page_faults = value,
            "pgmajfault" => memory.own_major_page_faults = value,
            "total_rss" => memory.rss = value,
            "total_cache" => memory.cache = value,
            "total_swap" => memory.swap = value,
            "total_mapped_file" => memory.mapped_file = value,
            "total_active_file" => memory.active_file = value,
            "total_inactive_file" => memory.inactive_file = value,
            "total_pgfault" => memory.page_faults = value,
            "total_pgmajfault" => memory.major_page_faults = value,
            _ => {}
        }
    }
    memory.working_set = working_set(usage, memory.inactive_file);
    memory
}

fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`, and `full …`; totals in microseconds.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    let mut seen = false;
    for line in text.lines() {
        let mut words = line.split(' ');
        let stall = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        seen = true;
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let average = || value.parse().unwrap_or_default();
            match key {
                "avg10" => stall.avg10 = average(),
                "avg60" => stall.avg60 = average(),
                "avg300" => stall.avg300 = average(),
                "total" => {
                    stall.total_ns = value.parse::<u64>().unwrap_or_default().saturating_mul(1000);
                }
                _ => {}
            }
        }
    }
    seen.then_some(pressure)
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0` a line.
pub(super) fn v2_io(text: &str) -> Vec<DeviceIo> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (major, minor) = device(words.next()?)?;
        let mut io = DeviceIo { major, minor, ..DeviceIo::default() };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or_default();
            match key {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.written_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        }
        Some(io)
    });
    lines.collect()
}

/// `8:0 Read 123` a line; `fields` says what the file is about.
pub(super) fn v1_io(
    text: &str,
    devices: &mut Vec<DeviceIo>,
    fields: impl Fn(&mut DeviceIo) -> (&mut u64, &mut u64),
) {
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(at), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let (Some((major, minor)), Ok(value)) = (device(at), value.parse()) else { continue };
        let index = devices.iter().position(|io| (io.major, io.minor) == (major, minor));
        let index = index.unwrap_or_else(|| {
            devices.push(DeviceIo { major, minor, ..DeviceIo::default() });
            devices.len() - 1
        });
        let (read, written) = fields(&mut devices[index]);
        match kind {
            "Read" => *read = value,
            "Write" => *written = value,
            _ => {}
        }
    }
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `max 100000` or `20000 100000`: quota and period.
pub(super) fn cpu_max(text: &str) -> (Option<u64>, Option<u64>) {
    let mut words = text.split_whitespace();
    let quota = words.next().and_then(|word| word.parse().ok());
    (quota, words.next().and_then(|word| word.parse().ok()))
}

/// The inverse of the conversion by which a weight is made of CRI's shares.
pub(super) fn shares_of_weight(weight: u64) -> u64 {
    2 + weight.saturating_sub(1).saturating_mul(262_142) / 9_999
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_times_are_microseconds() {
        let cpu = v2_cpu(
            "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 7\nnr_throttled 3\nthrottled_usec 2\n",
        );
        assert_eq!((cpu.total_ns, cpu.user_ns), (Some(1_500_000), Some(1_000_000)));
        assert_eq!((cpu.periods, cpu.throttled_periods), (Some(7), Some(3)));
        assert_eq!(cpu.throttled_ns, Some(2_000));
    }

    #[test]
    fn the_working_set_is_usage_without_inactive_file_pages() {
        let memory = v2_memory("anon 70\nfile 30\ninactive_file 20\npgfault 5\n", Some(100));
        assert_eq!((memory.working_set, memory.rss), (Some(80), Some(70)));
        let memory =
            v1_memory("inactive_file 1\ntotal_inactive_file 20\ntotal_rss 60\n", Some(100));
        assert_eq!((memory.working_set, memory.rss), (Some(80), Some(60)));
        assert_eq!(v2_memory("", None).working_set, None, "an unknown part is not zero");
    }

    #[test]
    fn pressure_has_two_lines_and_no_file_is_no_pressure() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.25 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n";
        let pressure = pressure(text).unwrap();
        assert_eq!((pressure.some.total_ns, pressure.full.total_ns), (12_000, 3_000));
        assert!((pressure.some.avg10 - 1.5).abs() < 1e-9 && pressure.some.avg300 > 0.2);
        assert_eq!(super::pressure(""), None);
    }

    #[test]
    fn io_is_told_by_device_in_both_versions() {
        let expect = DeviceIo {
            major: 8,
            minor: 16,
            read_bytes: 10,
            written_bytes: 20,
            reads: 1,
            writes: 2,
        };
        let v2 = v2_io("8:16 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n");
        assert_eq!(v2, [expect]);
        let mut v1 = Vec::new();
        v1_io("8:16 Read 10\n8:16 Write 20\n8:16 Total 30\nTotal 30\n", &mut v1, |io| {
            (&mut io.read_bytes, &mut io.written_bytes)
        });
        v1_io("8:16 Read 1\n8:16 Write 2\nTotal 3\n", &mut v1, |io| {
            (&mut io.reads, &mut io.writes)
        });
        assert_eq!(v1, [expect]);
    }

    #[test]
    fn a_weight_of_one_hundred_is_about_the_default_of_1024_shares_below_it() {
        assert_eq!(shares_of_weight(1), 2);
        assert_eq!(shares_of_weight(10_000), 262_144);
        assert_eq!(cpu_max("max 100000\n"), (None, Some(100_000)));
        assert_eq!(cpu_max("20000 100000\n"), (Some(20_000), Some(100_000)));
    }
}
