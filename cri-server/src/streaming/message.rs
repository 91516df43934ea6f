//! What the daemon and its streaming process say to each other: one question, one answer, as JSON behind its length.
//! Both are the same binary, so there are no versions to agree on.

use std::io;
use std::time::Duration;

use ::streaming::{Errand, Listen};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// An exec's arguments and environment: ARG_MAX is 6 MiB at most, and JSON can double it.
const MESSAGE_MAX: u32 = 16 << 20;

/// Daemon to process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Question {
    /// The first one.
    Open {
        listen: Listen,
        idle: Duration,
        creation: Duration,
    },
    Issue {
        errand: Errand,
        target: Target,
    },
}

/// Process to daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Open,
    Url(String),
    TooMany(String),
    Refused(String),
    /// How many sessions there are: told unasked whenever that changes.
    Sessions(usize),
}

/// The pod, and what is to be done there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) pod: String,
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    /// An OCI `process` object for a container.
    Exec {
        container: String,
        process: String,
    },
    /// A client's input to a container that takes none is dropped.
    Attach {
        container: String,
        stdin: bool,
        stdin_once: bool,
        replay: u64,
    },
    PortForward,
}

pub(super) async fn send(
    socket: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).ok().filter(|length| *length <= MESSAGE_MAX);
    let length = length.ok_or_else(|| too_long(text.len()))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(text);
    socket.write_all(&bytes).await
}

/// `None`: the peer has closed.
pub(super) async fn receive<T: DeserializeOwned>(
    socket: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match socket.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let length = u32::from_be_bytes(length);
    if length > MESSAGE_MAX {
        return Err(too_long(length as usize));
    }
    let mut text = vec![0; length as usize];
    socket.read_exact(&mut text).await?;
    Ok(Some(serde_json::from_slice(&text)?))
}

fn too_long(length: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("message of {length} bytes"))
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn messages_arrive_as_they_were_sent() {
        let (mut one, mut two) = UnixStream::pair().unwrap();
        let what = What::Exec { container: "c".into(), process: "{}".into() };
        let target = Target { pod: "p".into(), what };
        let errand = Errand::PortForward(vec![80]);
        let question = Question::Issue { errand: errand.clone(), target: target.clone() };
        send(&mut one, &question).await.unwrap();
        let got = receive::<Question>(&mut two).await.unwrap();
        let Some(Question::Issue { errand: e, target: t }) = got else { panic!("{got:?}") };
        assert_eq!((e, t), (errand, target));
        drop(one);
        assert!(receive::<Answer>(&mut two).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_length_beyond_the_bound_is_not_believed() {
        let (mut one, mut two) = UnixStream::pair().unwrap();
        one.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        assert!(receive::<Answer>(&mut two).await.is_err());
    }
}
