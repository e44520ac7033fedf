//! What a proxy does to the bytes that pass.

use std::time::Duration;

use rand::Rng;

/// What the proxy does to what passes. By default, nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Toxics {
    /// Each chunk arrives so much later, more or less, and never before an earlier one.
    pub latency: Duration,
    pub jitter: Duration,
    /// What the service sends does not arrive. With both, the link is a black hole.
    pub holds_requests: bool,
    /// What is sent to the service does not arrive.
    pub holds_responses: bool,
    /// In each direction of each connection.
    pub bytes_per_second: Option<u32>,
    /// The proxy does not listen. Connections that are open go on.
    pub refuses_connections: bool,
    /// So many commits of a hundred reach the server, and their answers are cut off.
    pub commit_cut_percent: u32,
}

impl Toxics {
    pub fn black_hole() -> Toxics {
        Toxics { holds_requests: true, holds_responses: true, ..Toxics::default() }
    }

    /// Whether there is an effect on what passes in this direction.
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
