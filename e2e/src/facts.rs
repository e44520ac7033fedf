//! What is kept of a record, in few bytes: there may be millions. And what an event says, as a hash
//! that a record and the row that it came from must share.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use chassis::event::Topic;
use events::TOPICS;
use serde::Deserialize;
use uuid::Uuid;

/// Where a record lies. The topic is its index in [`TOPICS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub topic: u8,
    pub partition: i32,
    pub offset: i64,
}

impl Place {
    pub fn topic(&self) -> &'static Topic {
        TOPICS[usize::from(self.topic)]
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}[{}]@{}", self.topic().name, self.partition, self.offset)
    }
}

pub fn topic_number(topic: &Topic) -> u8 {
    let at = TOPICS.iter().position(|declared| declared.name == topic.name);
    u8::try_from(at.expect("every topic is declared")).expect("there are ten topics")
}

/// A record that decodes and says which event it is, in few bytes: there may be millions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fact {
    pub order_id: Uuid,
    pub event_id: Uuid,
    pub place: Place,
    /// A hash of what it says; see [`Says`].
    pub content: u64,
    /// A hash of the trace that it belongs to.
    pub trace: u64,
    /// When it arrived, by the broker's clock, in milliseconds.
    pub appended_ms: i64,
    /// An operator had it announced again; the trace is not the one it was decided in.
    pub announced: bool,
}

/// A record that is none of ours: it does not decode, or nothing says which event it is.
#[derive(Clone, Debug)]
pub struct Foreign {
    pub place: Place,
    /// SHA-256 of its bytes.
    pub hash: [u8; 32],
    pub reason: String,
}

/// A record that a service set aside.
#[derive(Clone, Debug)]
pub struct Letter {
    pub place: Place,
    pub service: &'static str,
    /// SHA-256 of its bytes.
    pub hash: [u8; 32],
    /// Waiting, replayed or discarded.
    pub state: String,
    pub reason: String,
}

/// Which services set aside which records. The hash tells whether it is still that record.
#[derive(Debug, Default)]
pub struct Letters {
    by_place: HashMap<Place, Vec<(&'static str, [u8; 32])>>,
    waiting: HashSet<Place>,
}

impl Letters {
    pub fn of(read: &[Letter]) -> Letters {
        let mut letters = Letters::default();
        for Letter { place, service, hash, state, .. } in read {
            letters.add(*place, service, *hash);
            if state == "waiting" {
                letters.add_waiting(*place);
            }
        }
        letters
    }

    pub fn add(&mut self, place: Place, service: &'static str, hash: [u8; 32]) {
        self.by_place.entry(place).or_default().push((service, hash));
    }

    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.by_place.keys().copied()
    }

    /// Nobody has settled the letter of this record yet.
    pub fn add_waiting(&mut self, place: Place) {
        self.waiting.insert(place);
    }

    pub fn has(&self, place: Place) -> bool {
        self.by_place.contains_key(&place)
    }

    pub fn has_of(&self, place: Place, service: &str) -> bool {
        self.by_place
            .get(&place)
            .is_some_and(|letters| letters.iter().any(|(of, _)| *of == service))
    }

    pub fn is_waiting(&self, place: Place) -> bool {
        self.waiting.contains(&place)
    }

    pub fn has_exactly(&self, foreign: &Foreign, service: &str) -> bool {
        let letters = self.by_place.get(&foreign.place);
        letters.is_some_and(|letters| letters.contains(&(service, foreign.hash)))
    }
}

/// What an event says, hashed: a record and the row that it came from must say the same.
/// Lines are compared as sets, since their order means nothing.
pub struct Says;

impl Says {
    pub fn ordered(
        customer_id: Uuid,
        total_cents: i64,
        currency: &str,
        lines: &[OrderLine],
    ) -> u64 {
        let mut lines: Vec<_> =
            lines.iter().map(|line| (&line.sku, line.quantity, line.unit_price_cents)).collect();
        lines.sort_unstable();
        hash(&(customer_id, total_cents, currency, lines))
    }

    pub fn cancelled(reason: &str) -> u64 {
        hash(reason)
    }

    pub fn paid(amount_cents: i64, currency: &str) -> u64 {
        hash(&(Some(amount_cents), Some(currency)))
    }

    pub fn refunded(amount_cents: Option<i64>, currency: Option<&str>) -> u64 {
        hash(&(amount_cents, currency))
    }

    pub fn set_aside<'a>(lines: impl Iterator<Item = (&'a str, i32)>) -> u64 {
        let mut lines: Vec<_> = lines.collect();
        lines.sort_unstable();
        hash(&lines)
    }

    pub fn lines(lines: &[Line]) -> u64 {
        Says::set_aside(lines.iter().map(|line| (line.sku.as_str(), line.quantity)))
    }
}

pub fn hash(what: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OrderLine {
    pub sku: String,
    pub quantity: i32,
    pub unit_price_cents: i64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Line {
    pub sku: String,
    pub quantity: i32,
}

/// Why stock said no.
#[derive(Clone, Debug, PartialEq, Hash, Deserialize)]
pub struct Shortfall {
    pub reason: String,
    pub sku: String,
    pub requested: i32,
    pub available: i64,
}
