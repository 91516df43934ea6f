//! A group that is read again and again: its directories stay open, so that a reading costs no path walk and can never be
//! that of another group which has got the same name later.
//!
//! Directories are held and only two files: an open file of cgroupfs keeps a page of kernel memory, and a group has dozens.
//! The two, of CPU time and of memory in use, are read at every turn and tell whether the others are worth it.

mod parse;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Access, AtFlags, Dir, FileType, Mode, OFlags, accessat, fstat, openat};
use rustix::io::{Errno, pread, read};

use crate::stats::value;
use crate::{Hierarchies, unit};
pub use parse::{DeviceIo, Pressure, Stall};

/// What a group has used since it was made. Times in nanoseconds, memory in bytes; a part is `None` when the kernel has
/// no such file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    pub cpu: Cpu,
    pub memory: Memory,
    /// Tasks, as `pids.current` counts them: threads.
    pub threads: Option<u64>,
    pub threads_max: Option<u64>,
    pub processes: Option<u64>,
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
    pub io: Vec<DeviceIo>,
    pub huge_pages: Vec<HugePages>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    pub total_ns: Option<u64>,
    pub user_ns: Option<u64>,
    pub system_ns: Option<u64>,
    pub periods: Option<u64>,
    pub throttled_periods: Option<u64>,
    pub throttled_ns: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    pub usage: Option<u64>,
    pub peak: Option<u64>,
    /// Usage less inactive file pages: what the kubelet evicts by.
    pub working_set: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    pub cache: Option<u64>,
    pub mapped_file: Option<u64>,
    pub active_file: Option<u64>,
    pub inactive_file: Option<u64>,
    pub kernel: Option<u64>,
    pub swap: Option<u64>,
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    /// Faults of the group itself, without those of groups below it. Kernels with v2 count only both together.
    pub own_page_faults: Option<u64>,
    pub own_major_page_faults: Option<u64>,
    /// How often the limit was hit.
    pub limit_hits: Option<u64>,
    pub oom_kills: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugePages {
    /// As the kernel spells it: `2MB`.
    pub page_size: &'static str,
    pub usage: u64,
    /// Absent on v2, which does not keep it.
    pub peak: Option<u64>,
}

/// What the group may use; `None` is «no limit».
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu_period_us: Option<u64>,
    pub cpu_quota_us: Option<u64>,
    pub cpu_shares: Option<u64>,
    pub memory: Option<u64>,
    pub memory_reservation: Option<u64>,
    pub swap: Option<u64>,
    /// As the kernel's file has it. v1: memory and swap together. v2: swap alone.
    pub swap_file: Option<u64>,
}

/// One group, held open.
#[derive(Debug)]
pub struct Meter {
    layout: Layout,
    vital: Vital,
    /// Which of [`PAGE_SIZES`] this node has: to try the others each time would cost more than to read these.
    page_sizes: Vec<&'static str>,
}

/// Where files are read into; one serves all meters.
#[derive(Debug)]
pub struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; BUFFER])
    }
}

/// What is read so often that it stays open.
#[derive(Debug)]
struct Vital {
    /// v1: `cpuacct.usage`; v2: `cpu.stat`.
    cpu: Option<OwnedFd>,
    /// Memory in use.
    memory: Option<OwnedFd>,
}

#[derive(Debug)]
enum Layout {
    V2(OwnedFd),
    V1(Box<V1>),
}

#[derive(Debug, Default)]
struct V1 {
    cpuacct: Option<OwnedFd>,
    cpu: Option<OwnedFd>,
    memory: Option<OwnedFd>,
    pids: Option<OwnedFd>,
    blkio: Option<OwnedFd>,
    hugetlb: Option<OwnedFd>,
    /// The v2 tree of a hybrid node, which has the pressure and sometimes huge pages.
    unified: Option<OwnedFd>,
}

/// The largest file is `memory.stat`, of about 2 KiB; `cgroup.procs` is longer only in crowds, and is then counted in
/// pieces.
const BUFFER: usize = 16 * 1024;

/// v1 reports "no limit" as the largest page-aligned value; anything near it is no limit.
const UNLIMITED: u64 = 1 << 62;

/// Page sizes of all architectures that have several.
const PAGE_SIZES: [&str; 6] = ["2MB", "1GB", "64KB", "32MB", "512MB", "16GB"];

/// How deep processes in groups below are counted: containers in containers, each with some levels of its own.
const DEPTH_MAX: usize = 16;

impl Meter {
    /// Opens the group in every hierarchy; systemd's names for one are understood too. `None` when it exists in none.
    pub fn open(node: &Hierarchies, group: &str) -> Option<Self> {
        let group = &path_of(group)?;
        if node.is_v2() {
            return Some(Self::of(Layout::V2(open(&node.unified_dir(group)?)?)));
        }
        let dir = |controller| node.dir(controller, group).and_then(|dir| open(&dir));
        let v1 = V1 {
            cpuacct: dir("cpuacct"),
            cpu: dir("cpu"),
            memory: dir("memory"),
            pids: dir("pids"),
            blkio: dir("blkio"),
            hugetlb: dir("hugetlb"),
            unified: node.unified_dir(group).and_then(|dir| open(&dir)),
        };
        let any = [&v1.cpuacct, &v1.cpu, &v1.memory, &v1.pids, &v1.blkio, &v1.unified];
        let there = any.into_iter().any(Option::is_some);
        there.then(|| Self::of(Layout::V1(Box::new(v1))))
    }

    fn of(layout: Layout) -> Self {
        let has = |size: &&str| {
            let (dir, file) = match &layout {
                Layout::V2(dir) => (Some(dir), "current"),
                Layout::V1(v1) if v1.hugetlb.is_some() => (v1.hugetlb.as_ref(), "usage_in_bytes"),
                Layout::V1(v1) => (v1.unified.as_ref(), "current"),
            };
            let name = format!("hugetlb.{size}.{file}");
            dir.is_some_and(|dir| accessat(dir, name, Access::EXISTS, AtFlags::empty()).is_ok())
        };
        let page_sizes = PAGE_SIZES.into_iter().filter(has).collect();
        let file = |dir: &OwnedFd, name: &str| file(dir.as_fd(), name).ok();
        let vital = match &layout {
            Layout::V2(dir) => {
                Vital { cpu: file(dir, "cpu.stat"), memory: file(dir, "memory.current") }
            }
            Layout::V1(v1) => Vital {
                cpu: v1.cpuacct.as_ref().and_then(|dir| file(dir, "cpuacct.usage")),
                memory: v1.memory.as_ref().and_then(|dir| file(dir, "memory.usage_in_bytes")),
            },
        };
        Self { layout, vital, page_sizes }
    }

    /// Reads every counter. What is gone or missing is `None`.
    pub fn read(&self, buffer: &mut Buffer) -> Reading {
        let files = &mut Files(&mut buffer.0);
        match &self.layout {
            Layout::V2(dir) => v2(files, dir.as_fd(), &self.vital, &self.page_sizes),
            Layout::V1(v1) => v1.read(files, &self.vital, &self.page_sizes),
        }
    }

    /// Brings up to date what changes all the time: CPU time, memory and threads. False, after two files, when the
    /// group's tasks have not run since and its memory is the same: then nothing that they could change is another.
    pub fn refresh(&self, buffer: &mut Buffer, reading: &mut Reading) -> bool {
        let files = &mut Files(&mut buffer.0);
        let cpu = match &self.layout {
            Layout::V2(_) => parse::v2_cpu(files.kept(&self.vital.cpu)),
            Layout::V1(_) => Cpu { total_ns: files.kept_number(&self.vital.cpu), ..reading.cpu },
        };
        let usage = files.kept_number(&self.vital.memory);
        let same = cpu.total_ns == reading.cpu.total_ns && usage == reading.memory.usage;
        if same && cpu.total_ns.is_some() {
            return false;
        }
        reading.cpu = cpu;
        match &self.layout {
            Layout::V2(dir) => {
                let dir = dir.as_fd();
                let now = parse::v2_memory(files.text(dir, "memory.stat"), usage);
                reading.memory = reading.memory.and(now);
                reading.memory.swap = files.number(dir, "memory.swap.current");
                reading.threads = files.number(dir, "pids.current");
            }
            Layout::V1(v1) => v1.refresh(files, usage, reading),
        }
        true
    }

    /// Brings up to date what happens to a group while its tasks sleep: they wait, and what they wrote goes to disks.
    pub fn refresh_waits(&self, buffer: &mut Buffer, reading: &mut Reading) {
        let files = &mut Files(&mut buffer.0);
        match &self.layout {
            Layout::V2(dir) => {
                pressure(files, dir.as_fd(), reading);
                reading.io = parse::v2_io(files.text(dir.as_fd(), "io.stat"));
            }
            Layout::V1(v1) => v1.waits(files, reading),
        }
    }

    /// Reads what the group may use.
    pub fn limits(&self, buffer: &mut Buffer) -> Limits {
        let files = &mut Files(&mut buffer.0);
        match &self.layout {
            Layout::V2(dir) => v2_limits(files, dir.as_fd()),
            Layout::V1(v1) => v1.limits(files),
        }
    }

    /// The processes of a group and of those below it; none when there is no such group.
    pub fn processes(node: &Hierarchies, group: &str, buffer: &mut Buffer) -> Vec<i32> {
        let mut pids = Vec::new();
        let in_v1 = |group: &str| PROCESSES.iter().find_map(|it| node.dir(it, group));
        let dir = path_of(group).and_then(|group| in_v1(&group).or(node.unified_dir(&group)));
        if let Some(dir) = dir.and_then(|dir| open(&dir)) {
            walk(&mut Files(&mut buffer.0), dir.as_fd(), 0, &mut |text| {
                pids.extend(text.lines().filter_map(|line| line.trim().parse::<i32>().ok()));
            });
        }
        pids
    }
}

/// Where processes are counted on v1: nobody makes groups below in these hierarchies but the workload.
const PROCESSES: [&str; 4] = ["pids", "memory", "cpuacct", "cpu"];

impl Memory {
    /// What another reading has of `memory.stat`, and of this one what is in files of its own.
    fn and(self, now: Self) -> Self {
        Self {
            peak: self.peak.max(now.usage),
            limit_hits: self.limit_hits,
            oom_kills: self.oom_kills,
            kernel: now.kernel.or(self.kernel),
            ..now
        }
    }
}

fn v2(
    files: &mut Files<'_>,
    dir: BorrowedFd<'_>,
    vital: &Vital,
    page_sizes: &[&'static str],
) -> Reading {
    let cpu = parse::v2_cpu(files.kept(&vital.cpu));
    let usage = files.kept_number(&vital.memory);
    let mut memory = parse::v2_memory(files.text(dir, "memory.stat"), usage);
    memory.peak = files.number(dir, "memory.peak");
    memory.swap = files.number(dir, "memory.swap.current");
    let events = files.text(dir, "memory.events");
    memory.oom_kills = value(events, "oom_kill");
    memory.limit_hits = value(events, "max");
    let mut reading = Reading {
        cpu,
        memory,
        threads: files.number(dir, "pids.current"),
        threads_max: files.number(dir, "pids.max"),
        processes: count(files, Some(dir)),
        io: parse::v2_io(files.text(dir, "io.stat")),
        huge_pages: huge_pages(files, dir, page_sizes, "current", None),
        ..Reading::default()
    };
    pressure(files, dir, &mut reading);
    reading
}

fn pressure(files: &mut Files<'_>, dir: BorrowedFd<'_>, reading: &mut Reading) {
    reading.cpu_pressure = parse::pressure(files.text(dir, "cpu.pressure"));
    reading.memory_pressure = parse::pressure(files.text(dir, "memory.pressure"));
    reading.io_pressure = parse::pressure(files.text(dir, "io.pressure"));
}

fn v2_limits(files: &mut Files<'_>, dir: BorrowedFd<'_>) -> Limits {
    let (quota, period) = parse::cpu_max(files.text(dir, "cpu.max"));
    let swap = files.number(dir, "memory.swap.max");
    Limits {
        cpu_period_us: period,
        cpu_quota_us: quota,
        cpu_shares: files.number(dir, "cpu.weight").map(parse::shares_of_weight),
        memory: files.number(dir, "memory.max"),
        memory_reservation: files.number(dir, "memory.low").filter(|low| *low > 0),
        swap,
        swap_file: swap,
    }
}

impl V1 {
    fn procs(&self) -> Option<BorrowedFd<'_>> {
        let dirs = [&self.pids, &self.memory, &self.cpuacct, &self.cpu, &self.unified];
        dirs.into_iter().flatten().next().map(AsFd::as_fd)
    }

    fn refresh(&self, files: &mut Files<'_>, usage: Option<u64>, reading: &mut Reading) {
        if let Some(dir) = fd(&self.memory) {
            let now = parse::v1_memory(files.text(dir, "memory.stat"), usage);
            reading.memory = reading.memory.and(now);
        }
        if let Some(dir) = fd(&self.pids) {
            reading.threads = files.number(dir, "pids.current");
        }
    }

    fn waits(&self, files: &mut Files<'_>, reading: &mut Reading) {
        if let Some(dir) = fd(&self.blkio) {
            let bytes = files.text(dir, "blkio.throttle.io_service_bytes_recursive");
            parse::v1_io(bytes, &mut reading.io, |io| (&mut io.read_bytes, &mut io.written_bytes));
            let operations = files.text(dir, "blkio.throttle.io_serviced_recursive");
            parse::v1_io(operations, &mut reading.io, |io| (&mut io.reads, &mut io.writes));
        }
        if let Some(dir) = fd(&self.unified) {
            pressure(files, dir, reading);
        }
    }

    fn read(&self, files: &mut Files<'_>, vital: &Vital, page_sizes: &[&'static str]) -> Reading {
        let mut reading = Reading::default();
        if let Some(dir) = fd(&self.cpuacct) {
            reading.cpu.total_ns = files.kept_number(&vital.cpu);
            reading.cpu.user_ns = files.number(dir, "cpuacct.usage_user");
            reading.cpu.system_ns = files.number(dir, "cpuacct.usage_sys");
        }
        if let Some(dir) = fd(&self.cpu) {
            let text = files.text(dir, "cpu.stat");
            reading.cpu.periods = value(text, "nr_periods");
            reading.cpu.throttled_periods = value(text, "nr_throttled");
            reading.cpu.throttled_ns = value(text, "throttled_time");
        }
        if let Some(dir) = fd(&self.memory) {
            let usage = files.kept_number(&vital.memory);
            reading.memory = parse::v1_memory(files.text(dir, "memory.stat"), usage);
            reading.memory.peak = files.number(dir, "memory.max_usage_in_bytes");
            reading.memory.kernel = files.number(dir, "memory.kmem.usage_in_bytes");
            reading.memory.limit_hits = files.number(dir, "memory.failcnt");
            let control = files.text(dir, "memory.oom_control");
            reading.memory.oom_kills = value(control, "oom_kill");
        }
        if let Some(dir) = fd(&self.pids) {
            reading.threads = files.number(dir, "pids.current");
            reading.threads_max = files.number(dir, "pids.max");
        }
        self.waits(files, &mut reading);
        reading.huge_pages = match (fd(&self.hugetlb), fd(&self.unified)) {
            (Some(dir), _) => {
                huge_pages(files, dir, page_sizes, "usage_in_bytes", Some("max_usage_in_bytes"))
            }
            (None, Some(dir)) => huge_pages(files, dir, page_sizes, "current", None),
            (None, None) => Vec::new(),
        };
        reading.processes = count(files, self.procs());
        reading
    }

    fn limits(&self, files: &mut Files<'_>) -> Limits {
        let mut limits = Limits::default();
        if let Some(dir) = fd(&self.cpu) {
            limits.cpu_period_us = files.number(dir, "cpu.cfs_period_us");
            limits.cpu_quota_us = files.number(dir, "cpu.cfs_quota_us"); // -1 is no number here
            limits.cpu_shares = files.number(dir, "cpu.shares");
        }
        if let Some(dir) = fd(&self.memory) {
            let mut limit = |file| files.number(dir, file).filter(|limit| *limit < UNLIMITED);
            limits.memory = limit("memory.limit_in_bytes");
            limits.memory_reservation = limit("memory.soft_limit_in_bytes");
            limits.swap_file = limit("memory.memsw.limit_in_bytes");
            limits.swap = limits
                .swap_file
                .zip(limits.memory)
                .map(|(both, memory)| both.saturating_sub(memory));
        }
        limits
    }
}

fn fd(dir: &Option<OwnedFd>) -> Option<BorrowedFd<'_>> {
    dir.as_ref().map(AsFd::as_fd)
}

fn huge_pages(
    files: &mut Files<'_>,
    dir: BorrowedFd<'_>,
    page_sizes: &[&'static str],
    usage: &str,
    peak: Option<&str>,
) -> Vec<HugePages> {
    let sizes = page_sizes.iter().filter_map(|size| {
        let used = files.number(dir, &format!("hugetlb.{size}.{usage}"))?;
        let peak = peak.and_then(|peak| files.number(dir, &format!("hugetlb.{size}.{peak}")));
        Some(HugePages { page_size: size, usage: used, peak })
    });
    sizes.collect()
}

fn count(files: &mut Files<'_>, dir: Option<BorrowedFd<'_>>) -> Option<u64> {
    let mut lines = 0;
    walk(files, dir?, 0, &mut |text| lines += text.matches('\n').count() as u64);
    Some(lines)
}

/// `slice:prefix:name` is a scope, `a-b.slice` a slice, and everything else a path.
fn path_of(group: &str) -> Option<String> {
    if unit::Unit::is_form(group) {
        return unit::Unit::parse(group).ok().map(|unit| unit.group());
    }
    match group.strip_suffix(".slice") {
        Some(_) if !group.contains('/') => unit::slice_path(group).ok(),
        _ => Some(group.to_owned()),
    }
}

/// Hands over the text of `cgroup.procs` of the group and of all below it, in pieces of whole lines or not: a piece may
/// end inside a line only when the file is longer than the buffer, and lines are put together then.
fn walk(files: &mut Files<'_>, dir: BorrowedFd<'_>, depth: usize, each: &mut dyn FnMut(&str)) {
    files.whole(dir, "cgroup.procs", each);
    // A directory of cgroupfs has a link for each one below it: mostly there is none, and nothing to list.
    let is_leaf = fstat(dir).is_ok_and(|stat| stat.st_nlink <= 2);
    if is_leaf || depth >= DEPTH_MAX {
        return;
    }
    let Ok(mut listing) = Dir::read_from(dir) else { return };
    while let Some(Ok(entry)) = listing.read() {
        let name = entry.file_name();
        if entry.file_type() != FileType::Directory || matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if let Ok(child) = openat(dir, name, flags, Mode::empty()) {
            walk(files, child.as_fd(), depth + 1, each);
        }
    }
}

fn open(path: &std::path::Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

fn file(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Small files read into one buffer that is used again.
struct Files<'a>(&'a mut Vec<u8>);

impl Files<'_> {
    /// Empty when the file is not there.
    fn text(&mut self, dir: BorrowedFd<'_>, name: &str) -> &str {
        let length = self.fill(dir, name).unwrap_or(0);
        std::str::from_utf8(&self.0[..length]).unwrap_or_default()
    }

    fn number(&mut self, dir: BorrowedFd<'_>, name: &str) -> Option<u64> {
        self.text(dir, name).trim().parse().ok()
    }

    /// The text of a file that is held open. Empty when its group is gone.
    fn kept(&mut self, file: &Option<OwnedFd>) -> &str {
        let length = file.as_ref().and_then(|file| pread(file, &mut self.0[..], 0).ok());
        std::str::from_utf8(&self.0[..length.unwrap_or(0)]).unwrap_or_default()
    }

    fn kept_number(&mut self, file: &Option<OwnedFd>) -> Option<u64> {
        self.kept(file).trim().parse().ok()
    }

    /// The kernel makes the whole text of such a file at once, and the buffer has room for all of it.
    fn fill(&mut self, dir: BorrowedFd<'_>, name: &str) -> Result<usize, Errno> {
        read(&file(dir, name)?, &mut self.0[..])
    }

    /// Of a list, the kernel gives as much as it likes at a time.
    fn whole(&mut self, dir: BorrowedFd<'_>, name: &str, each: &mut dyn FnMut(&str)) {
        let Ok(file) = file(dir, name) else { return };
        let mut kept = 0;
        while let Ok(more) = read(&file, &mut self.0[kept..]) {
            let end = kept + more;
            let lines =
                self.0[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            each(std::str::from_utf8(&self.0[..lines]).unwrap_or_default());
            self.0.copy_within(lines..end, 0);
            kept = end - lines;
            if more == 0 || kept == self.0.len() {
                return;
            }
        }
    }
}
