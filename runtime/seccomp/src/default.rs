//! RuntimeDefault: the calls that a container may make, by purpose, and what each capability opens.
//!
//! An allow-list. A call of [`ALLOWED`] or of a capability's group in [`OPENED`] takes place; one
//! of the other groups or of [`REFUSED`] answers EPERM, since it exists and is forbidden; every
//! other number answers ENOSYS (`gate.rs`), since the author of this table never saw it and libc
//! has a fallback for a missing call but none for a forbidden one. Numbers, not rules, carry that
//! last decision, so it holds for calls that no libseccomp knows yet.
//!
//! Compared with the profiles built into containerd 2 and Docker 29 (as of mid-2026), which are
//! two spellings of one list:
//!
//! | what | they | here, and why |
//! |---|---|---|
//! | numbers newer than the profile | EPERM, which runc turns into ENOSYS above the highest number libseccomp resolved | ENOSYS for every number not in this table, holes included: with libseccomp 2.5.4 the hole at 451–453 makes fchmodat2 EPERM there, and chmod fails in new distributions |
//! | calls newer than libseccomp | dropped from the profile | allowed by number: the profile is the same on every node |
//! | clone3 | containerd and Docker: ENOSYS | the same; a filter cannot see flags in memory |
//! | socket families | all but AF_ALG and AF_VSOCK, compared in 64 bits, so a bit above the 32 that the kernel reads passes | a list of families; the others load seldom-audited modules on demand and open with CAP_NET_ADMIN only. AF_ALG and AF_VSOCK never. Compared in 32 bits. EAFNOSUPPORT, as without the module, so programs fall back |
//! | personality | five values compared in 64 bits | the same values in 32 bits |
//! | lsm_get_self_attr and its kin | containerd allows, Docker wants CAP_SYS_ADMIN | CAP_SYS_ADMIN: they tell a container about the host's policy |
//! | epoll_ctl_old, epoll_wait_old | allowed | ENOSYS: no kernel ever had them |
//! | remap_file_pages | allowed | refused: emulated since Linux 4.0, a source of kernel bugs before, mmap does the same |
//! | query_module | containerd 1 opens it with CAP_SYS_MODULE | ENOSYS: gone since Linux 2.6 |
//! | lookup_dcookie | CAP_SYS_ADMIN | refused: gone since Linux 6.7, a profiler's call before |
//! | syslog | CAP_SYSLOG or CAP_SYS_ADMIN | the same |
//! | quotactl, fanotify_init, bpf, perf_event_open | CAP_SYS_ADMIN; the last two also CAP_BPF, CAP_PERFMON | the same |
//! | kcmp | CAP_SYS_PTRACE | also CAP_CHECKPOINT_RESTORE, which exists for such tools; the kernel asks for ptrace rights on both processes besides |
//! | open_tree_attr | not known | CAP_SYS_ADMIN, with its older sibling open_tree |
//! | file_getattr, file_setattr | not known | not known either: ENOSYS, the ioctl beside them works |
//! | riscv_hwprobe, s390 and ppc calls, uretprobe | listed | absent: those machines are not supported; the kernel itself lets uretprobe past filters |
//! | ptrace, process_vm_readv/writev | allowed since kernel 4.8 | the same: debuggers and sanitizers need them, the kernel checks uid and namespace. Older kernels let ptrace step around seccomp, but cannot run this runtime |
//! | io_uring | refused | the same: a queue of operations that no filter sees |
//! | x32, the table of 64-bit registers and 32-bit pointers | as x86_64 | ENOSYS for all of it: kernels have it switched off, no distribution has programs for it, and it had holes of its own (CVE-2014-0038) |
//! | socketcall | allowed (Docker tried to refuse it and took that back) | the same: 32-bit programs have no network without it. Families cannot be checked there: `socket` by this way is the one hole that remains, on 32-bit x86 only |

use crate::filter::{Filter, Known, Rule};
use crate::machine::Machine;
use libseccomp::{ScmpAction, ScmpArch};

/// Names with blanks between them: the calls for one purpose.
type Calls = &'static str;

/// Calls that one of these capabilities opens. Without it they answer EPERM, which is also what
/// the kernel would say to a process that lacks the capability.
struct Opened {
    by: &'static [&'static str],
    calls: Calls,
}

const SYS_ADMIN: &str = "SYS_ADMIN";
const NET_ADMIN: &str = "NET_ADMIN";

/// The profile for a process that may have these capabilities (names without `CAP_`).
pub(crate) fn filter(machine: Machine, capabilities: &[&str]) -> Filter {
    let has = |name: &str| capabilities.contains(&name);
    let allowed = ALLOWED.iter().flat_map(|calls| calls.split_whitespace());
    let mut rules: Vec<Rule> = allowed.map(Rule::allow).collect();
    let mut refused: Vec<&str> = REFUSED.iter().flat_map(|c| c.split_whitespace()).collect();
    for group in OPENED {
        if group.by.iter().any(|name| has(name)) {
            rules.extend(group.calls.split_whitespace().map(Rule::allow));
        } else {
            refused.extend(group.calls.split_whitespace());
        }
    }
    if has(SYS_ADMIN) {
        rules.extend(["clone", "clone3"].map(Rule::allow));
    } else {
        rules.push(Rule::masked("clone", ScmpAction::Allow, 0, NEW_NAMESPACES, 0));
    }
    rules.extend(personalities());
    rules.extend(sockets(has(NET_ADMIN)));
    Filter {
        default: ScmpAction::Errno(crate::filter::EPERM as i32),
        arches: machine.arches().iter().copied().filter(|it| *it != ScmpArch::X32).collect(),
        rules,
        known: Known::Listed(refused),
    }
}

/// The given capabilities that make a difference, in a fixed order: two containers whose profile
/// is the same share one program.
pub(crate) fn relevant(capabilities: &[&str]) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = OPENED.iter().flat_map(|group| group.by).copied().collect();
    names.extend([SYS_ADMIN, NET_ADMIN]);
    names.sort_unstable();
    names.dedup();
    names.retain(|name| capabilities.contains(name));
    names
}

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: the flags of clone(2) that
/// make a namespace, in which a process without rights gains them over kernel code that expects
/// an administrator. (NEWTIME is not a flag of clone.)
const NEW_NAMESPACES: u64 = 0x7e02_0000;

const INT: u64 = 0xffff_ffff;
const PER_LINUX32: u64 = 0x0008;
const UNAME26: u64 = 0x0002_0000;

/// The plain Linux personality, the 32-bit `uname`, the 2.6 version number, both, and the
/// question. Not ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC and MMAP_PAGE_ZERO, which undo protections.
fn personalities() -> [Rule; 2] {
    let masked = |mask, value| Rule::masked("personality", ScmpAction::Allow, 0, mask, value);
    [masked(INT & !(PER_LINUX32 | UNAME26), 0), masked(INT, INT)]
}

/// AF_UNIX, AF_INET, AF_INET6; AF_NETLINK and AF_KEY (interfaces and IPsec of the own network
/// namespace); AF_PACKET and AF_XDP (raw, the kernel asks for CAP_NET_RAW); AF_CAN (vehicles and
/// machines, namespaced); AF_SMC (a faster TCP).
const FAMILIES: &[u64] = &[1, 2, 10, 15, 16, 17, 29, 43, 44];
/// AF_ALG: the kernel's ciphers, a way from any user to root more than once (CVE-2026-31431).
/// AF_VSOCK: reaches the host and the virtual machines of other pods past every network policy.
const NEVER: &[u64] = &[38, 40];
/// AF_MAX of Linux 6.18.
const FAMILY_END: u64 = 46;
const EAFNOSUPPORT: i32 = 97;

fn sockets(every_family: bool) -> impl Iterator<Item = Rule> {
    (0..FAMILY_END).map(move |family| {
        let open = FAMILIES.contains(&family) || every_family && !NEVER.contains(&family);
        let action = if open { ScmpAction::Allow } else { ScmpAction::Errno(EAFNOSUPPORT) };
        Rule::masked("socket", action, 0, INT, family)
    })
}

const ALLOWED: &[Calls] = &[
    // Processes and threads: start, end, wait, signals, and pidfds on the visible ones.
    "execve execveat exit exit_group fork vfork wait4 waitid waitpid kill tkill tgkill pause \
     restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
     rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signalfd \
     signalfd4 sigprocmask sigreturn pidfd_open pidfd_send_signal process_mrelease \
     set_tid_address prctl",
    // Threads need: locks, their own storage, restartable sequences, fences.
    "futex futex_time64 futex_waitv futex_wake futex_wait futex_requeue get_robust_list \
     set_robust_list get_thread_area set_thread_area rseq membarrier getcpu",
    // Debuggers, sanitizers and crash handlers on processes of the same user and namespace.
    "ptrace process_vm_readv process_vm_writev",
    // Who am I: ids, groups, sessions, limits. Changes are checked against capabilities.
    "getpid getppid gettid getpgid getpgrp getsid setpgid setsid getuid getuid32 geteuid \
     geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 getresgid getresgid32 \
     getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid \
     setregid32 setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid \
     setfsgid32 setgroups setgroups32 capget capset umask getrlimit setrlimit ugetrlimit \
     prlimit64 getrusage times uname sysinfo",
    // Scheduling of the own threads.
    "sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam \
     sched_setparam sched_getscheduler sched_setscheduler sched_get_priority_max \
     sched_get_priority_min sched_rr_get_interval sched_rr_get_interval_time64 getpriority \
     setpriority ioprio_get ioprio_set",
    // Memory: the own address space, locks within the limit, keys, shadow stacks, seals.
    "brk mmap mmap2 munmap mremap mprotect madvise mincore msync mlock mlock2 mlockall munlock \
     munlockall memfd_create memfd_secret pkey_alloc pkey_free pkey_mprotect map_shadow_stack \
     mseal cachestat",
    // Time: reading it, sleeping, timers. (clock_)adjtimex reads; to set asks for CAP_SYS_TIME.
    "time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 \
     clock_nanosleep clock_nanosleep_time64 nanosleep alarm getitimer setitimer timer_create \
     timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
     timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 adjtimex \
     clock_adjtime clock_adjtime64",
    // Files by path: open, look at, create, name and remove. Devices are the device cgroup's.
    "open openat openat2 creat access faccessat faccessat2 stat stat64 lstat lstat64 fstatat64 \
     newfstatat statx statfs statfs64 readlink readlinkat mkdir mkdirat rmdir mknod mknodat link \
     linkat symlink symlinkat unlink unlinkat rename renameat renameat2 truncate truncate64 chdir \
     fchdir getcwd getdents getdents64 name_to_handle_at",
    // Attributes of files: owner, mode, times, extended ones.
    "chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown lchown32 utime \
     utimes utimensat utimensat_time64 futimesat getxattr lgetxattr fgetxattr getxattrat setxattr \
     lsetxattr fsetxattr setxattrat listxattr llistxattr flistxattr listxattrat removexattr \
     lremovexattr fremovexattr removexattrat",
    // Open files: bytes in and out, position, locks, space, flushing.
    "read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 close close_range \
     dup dup2 dup3 fcntl fcntl64 ioctl flock lseek _llseek fstat fstat64 fstatfs fstatfs64 \
     ftruncate ftruncate64 fallocate fadvise64 fadvise64_64 readahead fsync fdatasync sync syncfs \
     sync_file_range sendfile sendfile64 copy_file_range splice tee vmsplice pipe pipe2",
    // Waiting for many things at once, and for changes of files.
    "poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64 epoll_create \
     epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 inotify_init \
     inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark",
    // The older asynchronous I/O. It reads and writes open files only.
    "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64",
    // Sockets that exist. `socketcall` stays before the rules for `socket`, see the table above.
    "socketcall socketpair bind listen accept accept4 connect shutdown getsockname getpeername \
     getsockopt setsockopt send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg \
     recvmmsg_time64",
    // System V and POSIX queues, semaphores and memory: all in the IPC namespace.
    "ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat \
     shmctl shmdt shmget mq_open mq_unlink mq_notify mq_getsetattr mq_timedreceive \
     mq_timedreceive_time64 mq_timedsend mq_timedsend_time64",
    // A process that confines itself further, and randomness.
    "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self getrandom",
    // The mounts of the own namespace, as /proc/self/mountinfo shows them.
    "statmount listmount",
    // What one machine alone has: x86's thread storage and segments, ARM's caches and storage.
    "arch_prctl modify_ldt arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint \
     cacheflush set_tls",
];

const OPENED: &[Opened] = &[
    // Mounts, namespaces, names of the host, quotas, policy modules: an administrator's.
    Opened {
        by: &[SYS_ADMIN],
        calls: "mount umount umount2 fsopen fsconfig fsmount fspick open_tree open_tree_attr move_mount \
         mount_setattr setns unshare sethostname setdomainname quotactl quotactl_fd fanotify_init \
         lsm_get_self_attr lsm_set_self_attr lsm_list_modules",
    },
    Opened { by: &[SYS_ADMIN, "BPF"], calls: "bpf" },
    Opened { by: &[SYS_ADMIN, "PERFMON"], calls: "perf_event_open" },
    // The kernel's log tells addresses and other containers' names.
    Opened { by: &[SYS_ADMIN, "SYSLOG"], calls: "syslog" },
    // Files by handle go around every mount and path check.
    Opened { by: &["DAC_READ_SEARCH"], calls: "open_by_handle_at" },
    // Reach into other processes' descriptors and memory policy.
    Opened { by: &["SYS_PTRACE"], calls: "pidfd_getfd process_madvise" },
    Opened { by: &["SYS_PTRACE", "CHECKPOINT_RESTORE"], calls: "kcmp" },
    Opened { by: &["SYS_CHROOT"], calls: "chroot" },
    Opened { by: &["SYS_MODULE"], calls: "init_module finit_module delete_module" },
    Opened { by: &["SYS_BOOT"], calls: "reboot" },
    Opened { by: &["SYS_PACCT"], calls: "acct" },
    Opened { by: &["SYS_RAWIO"], calls: "iopl ioperm" },
    Opened { by: &["SYS_TIME"], calls: "settimeofday stime clock_settime clock_settime64" },
    Opened { by: &["SYS_TTY_CONFIG"], calls: "vhangup" },
    // Which node's memory is used: a way to learn about and press on neighbours.
    Opened {
        by: &["SYS_NICE"],
        calls: "get_mempolicy set_mempolicy set_mempolicy_home_node mbind",
    },
];

/// Known and forbidden whatever the capabilities.
const REFUSED: &[Calls] = &[
    // Queues of operations that the kernel performs past this filter; many escapes.
    "io_uring_setup io_uring_enter io_uring_register",
    // The keyring is not namespaced: keys of the host and of other containers.
    "add_key request_key keyctl",
    // Page faults handled by the program itself hold the kernel still where it is not prepared.
    "userfaultfd",
    // Another kernel, another swap, another root under everybody's feet.
    "kexec_load kexec_file_load swapon swapoff pivot_root",
    // Other processes' memory between nodes.
    "migrate_pages move_pages",
    // Old doors with a newer one beside them, kept by kernels for programs of the last century.
    "sysfs ustat uselib _sysctl remap_file_pages lookup_dcookie vm86 vm86old nfsservctl bdflush \
     sgetmask ssetmask oldstat oldfstat oldlstat olduname oldolduname nice readdir sigaction \
     signal sigpending sigsuspend",
];

#[cfg(test)]
mod tests;
