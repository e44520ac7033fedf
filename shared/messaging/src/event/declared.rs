//! The events of a program: `#[derive(Event)]` registers each one where it is declared, and the linker collects them.
//! So a program knows exactly the events of the crates that it links, and keeps no list of them.

use std::sync::LazyLock;

use crate::event::avro::{Codec, Undecodable};
use crate::event::{Event, Topic};

/// The slice that the linker fills.
#[doc(hidden)]
#[linkme::distributed_slice]
pub static DECLARED: [DeclaredEvent];

/// For the code that `#[derive(Event)]` writes.
#[doc(hidden)]
pub use linkme;

/// An event with its topic, without its type.
pub struct DeclaredEvent {
    /// Its topic.
    pub topic: &'static Topic,
    recode: fn(&Codec, &[u8]) -> Result<Vec<u8>, Undecodable>,
}

impl DeclaredEvent {
    /// The event of this type, whose topic this is.
    pub const fn new<E: Event>(topic: &'static Topic) -> DeclaredEvent {
        DeclaredEvent {
            topic,
            recode: |written, body| {
                let event: E = E::topic().codec().decode(written, body)?;
                E::topic().codec().encode(&event)
            },
        }
    }

    /// Reads a body that was written with `written`'s schema into the struct of this event, and writes it with the
    /// schema of its topic.
    ///
    /// # Errors
    /// If the body is no such event, or the struct does not fit the schema.
    pub fn recode(&self, written: &Codec, body: &[u8]) -> Result<Vec<u8>, Undecodable> {
        (self.recode)(written, body)
    }
}

/// Every event that is linked into this program, in the order of the names of their topics.
///
/// # Panics
/// If two of them have one topic.
pub fn declared_events() -> &'static [&'static DeclaredEvent] {
    static SORTED: LazyLock<Vec<&DeclaredEvent>> = LazyLock::new(|| {
        let mut events: Vec<&DeclaredEvent> = DECLARED.iter().collect();
        events.sort_by_key(|event| event.topic.name);
        for pair in events.windows(2) {
            let [one, other] = [pair[0], pair[1]].map(|event| event.topic.name);
            assert!(
                one != other,
                "two events declare the topic {one}, and a topic carries one type"
            );
        }
        events
    });
    &SORTED
}

/// The topics of these events, in the order of their names.
pub fn topics() -> &'static [&'static Topic] {
    static TOPICS: LazyLock<Vec<&Topic>> =
        LazyLock::new(|| declared_events().iter().map(|event| event.topic).collect());
    &TOPICS
}
