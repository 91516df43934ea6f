//! The kernel's route netlink, one small function per verb.

pub(crate) mod addr;
pub(crate) mod link;
pub(crate) mod netfilter;
pub(crate) mod route;
pub(crate) mod shaper;
pub(crate) mod socket;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    ParseableParametrized,
};
use netlink_packet_route::RouteNetlinkMessage;

use crate::error::Error;
use socket::{Channel, Family};

/// One change asked of the kernel, with the words for the case that it refuses.
pub(crate) struct Request {
    pub(crate) stage: &'static str,
    pub(crate) object: String,
    pub(crate) flags: u16,
    pub(crate) message: RouteNetlinkMessage,
}

/// A route netlink socket; it keeps talking to the namespace it was opened in.
pub(crate) struct Route(Channel);

impl Route {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Route, Error> {
        Ok(Route(Channel::open(Family::Route)?))
    }

    /// Sends all requests in one datagram. The kernel carries them out in order and does not stop at
    /// a failure; the first one is reported.
    pub(crate) fn batch(&mut self, requests: &[Request]) -> Result<(), Error> {
        if requests.is_empty() {
            return Ok(());
        }
        let first = self.0.sequence(requests.len());
        let mut datagram = Vec::with_capacity(512 * requests.len());
        for (sequence, request) in (first..).zip(requests) {
            let flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
            append(&mut datagram, sequence, flags, request.message.clone());
        }
        let refusals = self.0.exchange(&datagram, first, requests.len())?;
        match refusals.into_iter().min_by_key(|refusal| refusal.index) {
            None => Ok(()),
            Some(refusal) => {
                let request = &requests[refusal.index];
                Err(refusal.into_error(request.stage, request.object.clone()))
            }
        }
    }

    /// Asks for all objects of one kind.
    pub(crate) fn dump(
        &mut self,
        stage: &'static str,
        question: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.ask(stage, "", NLM_F_DUMP, question)
    }

    /// Asks for one object.
    pub(crate) fn get(
        &mut self,
        stage: &'static str,
        object: &str,
        question: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        Ok(self.ask(stage, object, NLM_F_ACK, question)?.pop())
    }

    fn ask(
        &mut self,
        stage: &'static str,
        object: &str,
        flags: u16,
        question: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let sequence = self.0.sequence(1);
        let mut datagram = Vec::new();
        append(&mut datagram, sequence, NLM_F_REQUEST | flags, question);
        let mut answers = Vec::new();
        self.0
            .question(&datagram, sequence, |kind, payload| {
                // A message this library cannot read is not one of those asked for.
                if let Ok(message) = RouteNetlinkMessage::parse_with_param(payload, kind) {
                    answers.push(message);
                }
            })?
            .map_or(Ok(()), |refusal| Err(refusal.into_error(stage, object)))?;
        Ok(answers)
    }
}

fn append(datagram: &mut Vec<u8>, sequence: u32, flags: u16, message: RouteNetlinkMessage) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let start = datagram.len();
    // Messages in one datagram begin at multiples of four bytes.
    datagram.resize(start + packet.buffer_len().next_multiple_of(4), 0);
    packet.serialize(&mut datagram[start..start + packet.buffer_len()]);
}
