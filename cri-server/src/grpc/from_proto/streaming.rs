//! Exec, Attach and PortForward requests: which streams and which ports.

use ::streaming::Wanted;
use proto::cri::v1 as cri;

use crate::error::Error;

pub(in crate::grpc) fn exec(request: &cri::ExecRequest) -> Result<Wanted, Error> {
    let cri::ExecRequest { tty, stdin, stdout, stderr, .. } = *request;
    wanted(Wanted { stdin, stdout, stderr, tty })
}

pub(in crate::grpc) fn attach(request: &cri::AttachRequest) -> Result<Wanted, Error> {
    let cri::AttachRequest { tty, stdin, stdout, stderr, .. } = *request;
    wanted(Wanted { stdin, stdout, stderr, tty })
}

fn wanted(wanted: Wanted) -> Result<Wanted, Error> {
    let Wanted { stdin, stdout, stderr, tty } = wanted;
    if tty && stderr {
        let problem = "a terminal has no stderr of its own; set only one of tty and stderr";
        return Err(Error::invalid("stderr", problem));
    }
    if !(stdin || stdout || stderr) {
        return Err(Error::invalid("stdin, stdout, stderr", "one of them must be set"));
    }
    Ok(wanted)
}

pub(in crate::grpc) fn ports(ports: &[i32]) -> Result<Vec<u16>, Error> {
    let port = |port: &i32| match u16::try_from(*port) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(Error::invalid("port", format!("{port} is not between 1 and 65535"))),
    };
    ports.iter().map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_at_least_one_stream_and_no_stderr_on_a_terminal() {
        let check = |stdin, stdout, stderr, tty, fine: bool| {
            let request = cri::ExecRequest { stdin, stdout, stderr, tty, ..Default::default() };
            assert_eq!(exec(&request).is_ok(), fine, "{request:?}");
        };
        check(true, true, true, false, true);
        check(false, false, true, false, true);
        check(true, true, false, true, true);
        check(true, true, true, true, false);
        check(false, false, false, true, false);
    }

    #[test]
    fn ports_are_numbers_of_ports() {
        assert_eq!(ports(&[1, 65535]).ok(), Some(vec![1, 65535]));
        assert_eq!(ports(&[]).ok(), Some(vec![]));
        for bad in [0, -1, 65536] {
            assert!(ports(&[80, bad]).is_err());
        }
    }
}
