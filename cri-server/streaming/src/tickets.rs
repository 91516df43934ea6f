//! Tickets: what a client may do once within a minute, and the secret in the URL by which it proves so. Time comes in
//! as an argument.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;
use tokio::time::Instant;

/// What the kubelet's clients are used to.
pub(crate) const LIFE: Duration = Duration::from_secs(60);
/// Tickets at once: a client that asks and never comes must not fill the memory.
pub(crate) const TICKETS_MAX: usize = 1000;
/// 192 bits.
const SECRET: usize = 24;
/// The letters of a secret.
const LETTERS: usize = SECRET / 3 * 4;

/// The tickets that are not used yet.
#[derive(Debug)]
pub(crate) struct Tickets<T> {
    held: Vec<Held<T>>,
}

#[derive(Debug)]
struct Held<T> {
    secret: [u8; LETTERS],
    until: Instant,
    errand: T,
}

/// Why no ticket is given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "{TICKETS_MAX} streaming requests wait for their clients already; each is kept for {} s",
        LIFE.as_secs()
    )]
    TooMany,
    #[error("the kernel gives no random numbers: {0}")]
    Random(getrandom::Error),
}

impl<T> Default for Tickets<T> {
    fn default() -> Self {
        Self { held: Vec::new() }
    }
}

impl<T> Tickets<T> {
    /// The secret for a new ticket.
    pub(crate) fn issue(&mut self, errand: T, now: Instant) -> Result<String, Refused> {
        self.expire(now);
        if self.held.len() >= TICKETS_MAX {
            return Err(Refused::TooMany);
        }
        let mut random = [0; SECRET];
        getrandom::fill(&mut random).map_err(Refused::Random)?;
        let text = URL_SAFE_NO_PAD.encode(random);
        let mut secret = [0; LETTERS];
        secret.copy_from_slice(text.as_bytes());
        self.held.push(Held { secret, until: now + LIFE, errand });
        Ok(text)
    }

    /// Takes the ticket with this secret, if there is one. How long that takes tells nothing about the secrets.
    pub(crate) fn redeem(&mut self, secret: &str, now: Instant) -> Option<T> {
        self.expire(now);
        let secret: &[u8; LETTERS] = secret.as_bytes().try_into().ok()?;
        let mut found = None;
        for (index, held) in self.held.iter().enumerate() {
            if bool::from(held.secret.ct_eq(secret)) {
                found = Some(index);
            }
        }
        found.map(|index| self.held.swap_remove(index).errand)
    }

    /// How many wait.
    pub(crate) fn waiting(&mut self, now: Instant) -> usize {
        self.expire(now);
        self.held.len()
    }

    fn expire(&mut self, now: Instant) {
        self.held.retain(|held| held.until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_once() {
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        let secret = tickets.issue("exec", now).unwrap();
        let other = tickets.issue("attach", now).unwrap();
        assert!(secret.len() * 6 >= 128 && secret != other);
        assert_eq!(tickets.redeem(&secret, now), Some("exec"));
        assert_eq!(tickets.redeem(&secret, now), None);
        assert_eq!(tickets.redeem(&other[1..], now), None);
        assert_eq!(tickets.redeem("", now), None);
        assert_eq!(tickets.redeem(&other, now), Some("attach"));
    }

    #[test]
    fn a_ticket_is_good_for_a_minute() {
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        let early = tickets.issue(1, now).unwrap();
        let late = tickets.issue(2, now).unwrap();
        let just = now + LIFE - Duration::from_millis(1);
        assert_eq!(tickets.redeem(&early, just), Some(1));
        assert_eq!(tickets.redeem(&late, now + LIFE), None);
        assert_eq!(tickets.waiting(now), 0);
    }

    #[test]
    fn tickets_are_bounded_and_the_bound_heals() {
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        for it in 0..TICKETS_MAX {
            tickets.issue(it, now).unwrap();
        }
        assert_eq!(tickets.issue(0, now), Err(Refused::TooMany));
        assert!(tickets.issue(0, now + LIFE).is_ok());
    }
}
