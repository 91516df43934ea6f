//! Stop signals: CRI's enumeration, the image's text and the kernel's number.

use crate::error::Error;

/// What stops a container when neither the pod nor the image says.
pub(crate) const DEFAULT_STOP: i32 = libc::SIGTERM;

/// The real-time signals as programs name them: glibc keeps 32 and 33 for its threads.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The names of CRI's `Signal` enumeration in its order; the real-time ones follow by counting.
const CLASSIC: [(&str, i32); 34] = [
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("IOT", libc::SIGIOT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("POLL", libc::SIGPOLL),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

/// CRI's number of SIGRTMIN; 51 is SIGRTMAX−14, and so on up to SIGRTMAX.
const CRI_RTMIN: i32 = 35;

/// CRI number → kernel number; 0 means «not set».
pub(crate) fn from_cri(value: i32) -> Result<Option<i32>, Error> {
    let known = |value: i32| CLASSIC.get(usize::try_from(value).ok()?.checked_sub(1)?);
    match value {
        0 => Ok(None),
        CRI_RTMIN..=65 => Ok(Some(value - CRI_RTMIN + RTMIN)),
        value => match known(value) {
            Some((_, number)) => Ok(Some(*number)),
            None => {
                Err(Error::invalid("config.stop_signal", format!("{value} is no signal of CRI")))
            }
        },
    }
}

/// Kernel number → CRI number, the first of its names.
pub(crate) fn to_cri(signal: i32) -> i32 {
    if (RTMIN..=RTMAX).contains(&signal) {
        return signal - RTMIN + CRI_RTMIN;
    }
    let index = CLASSIC.iter().position(|(_, number)| *number == signal);
    index.and_then(|index| i32::try_from(index + 1).ok()).unwrap_or_default()
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `RTMAX-1`: as images write their stop signal.
pub(crate) fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        RTMIN + offset(rest)?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        RTMAX + offset(rest)?
    } else {
        return CLASSIC.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_write_signals_in_many_ways() {
        for (text, expect) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMIN", Some(34)),
            ("SIGNOPE", None),
            ("0", None),
            ("65", None),
            ("RTMAX+1", None),
        ] {
            assert_eq!(parse(text), expect, "{text}");
        }
    }

    #[test]
    fn cri_numbers_survive_the_way_through_the_kernel() {
        use proto::cri::v1::Signal;
        for (cri, kernel) in [
            (Signal::Sigterm, 15),
            (Signal::Sigxfsz, 25),
            (Signal::Sigrtmin, 34),
            (Signal::Sigrtminplus15, 49),
            (Signal::Sigrtmaxminus14, 50),
            (Signal::Sigrtmax, 64),
        ] {
            assert_eq!(from_cri(cri as i32).unwrap(), Some(kernel), "{cri:?}");
            assert_eq!(to_cri(kernel), cri as i32, "{cri:?}");
        }
        assert_eq!(from_cri(0).unwrap(), None);
        assert!(from_cri(66).is_err());
    }
}
