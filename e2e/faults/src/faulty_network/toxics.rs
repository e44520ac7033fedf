//! The toxics of a proxy: what it does to the bytes that pass.

use std::time::Duration;

use rand::Rng;

/// The toxics of a proxy. By default there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Toxics {
    /// Each chunk is delayed by this time, plus or minus the jitter, and chunks stay in order.
    pub latency: Duration,
    /// The largest deviation from the latency.
    pub jitter: Duration,
    /// Bytes from the service do not arrive. With both directions, the link is a black hole.
    pub holds_requests: bool,
    /// Bytes to the service do not arrive.
    pub holds_responses: bool,
    /// The bandwidth in bytes per second of each direction of each connection.
    pub bytes_per_second: Option<u32>,
    /// The proxy does not listen. Open connections continue.
    pub refuses_connections: bool,
    /// This percentage of commits reaches the server, and their responses are cut off.
    pub commit_cut_percent: u32,
}

impl Toxics {
    /// Nothing arrives in either direction, and connections stay open.
    pub fn black_hole() -> Toxics {
        Toxics { holds_requests: true, holds_responses: true, ..Toxics::default() }
    }

    /// Whether there is an effect on bytes in this direction.
    pub(super) fn affects(&self, direction: Direction) -> bool {
        let delays = !(self.latency + self.jitter).is_zero();
        delays || self.bytes_per_second.is_some() || !direction.is_open(self)
    }

    pub(super) fn delay(&self) -> Duration {
        if self.jitter.is_zero() {
            return self.latency;
        }
        let jitter = rand::rng().random_range(Duration::ZERO..=self.jitter * 2);
        (self.latency + jitter).saturating_sub(self.jitter)
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Direction {
    Requests,
    Responses,
}

impl Direction {
    pub(super) fn is_open(self, toxics: &Toxics) -> bool {
        match self {
            Direction::Requests => !toxics.holds_requests,
            Direction::Responses => !toxics.holds_responses,
        }
    }
}
