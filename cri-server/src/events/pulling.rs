//! A pull of an image as events: its beginning and, whatever comes of it, its end.

use std::fmt::Display;
use std::time::Instant;

use super::Events;

pub(crate) struct Pulling<'a> {
    events: &'a Events,
    reference: &'a str,
    began: Instant,
    ended: bool,
}

impl<'a> Pulling<'a> {
    pub(crate) fn begin(events: &'a Events, reference: &'a str) -> Self {
        events.image("pulling", reference.to_owned());
        Self { events, reference, began: Instant::now(), ended: false }
    }

    pub(crate) fn end(mut self, pulled: &Result<impl Display, impl Display>) {
        self.ended = true;
        let reference = self.reference;
        match pulled {
            Ok(id) => {
                let text = format!("{reference} is {id}, after {:.1?}", self.began.elapsed());
                self.events.image("pulled", text);
            }
            Err(why) => self.events.image("not pulled", format!("{reference}: {why}")),
        }
    }
}

/// Without an end said, whoever asked for it has gone away, and the pull with it.
impl Drop for Pulling<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let text = format!("{}: nobody waits for it any more", self.reference);
            self.events.image("not pulled", text);
        }
    }
}
