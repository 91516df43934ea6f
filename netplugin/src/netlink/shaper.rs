//! Limits on how fast a link sends: a token bucket at its root.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::Request;
use crate::bandwidth::Rate;

const TBF_PARAMETERS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
/// Sizes are counted with Ethernet headers; the other choice needs a table of times from us.
const LINK_LAYER_ETHERNET: u8 = 1;

/// Makes a link send no faster than `rate`.
pub(crate) fn limit(index: u32, name: &str, rate: &Rate) -> Request {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle { major: 1, minor: 0 };
    let option = |kind, value: &[u8]| TcOption::Other(DefaultNla::new(kind, value.to_vec()));
    message.attributes = vec![
        TcAttribute::Kind("tbf".to_owned()),
        TcAttribute::Options(vec![
            option(TBF_PARAMETERS, &parameters(rate)),
            option(TBF_RATE64, &rate.bytes_per_second().to_ne_bytes()),
            option(TBF_BURST, &rate.burst_bytes().to_ne_bytes()),
        ]),
    ];
    Request {
        stage: "limit bandwidth of",
        object: name.to_owned(),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        message: RouteNetlinkMessage::NewQueueDiscipline(message),
    }
}

/// `struct tc_tbf_qopt`: rate and peak rate (12 bytes each), limit, buffer, mtu. The fields left at
/// zero are given as attributes of their own or not used.
fn parameters(rate: &Rate) -> [u8; 36] {
    const LINK_LAYER: usize = 1;
    const RATE: usize = 8;
    const QUEUE_LIMIT: usize = 24;
    let mut bytes = [0; 36];
    bytes[LINK_LAYER] = LINK_LAYER_ETHERNET;
    let low = u32::try_from(rate.bytes_per_second()).unwrap_or(u32::MAX);
    bytes[RATE..RATE + 4].copy_from_slice(&low.to_ne_bytes());
    bytes[QUEUE_LIMIT..QUEUE_LIMIT + 4].copy_from_slice(&rate.queue_bytes().to_ne_bytes());
    bytes
}
