//! A record in Kafka: wire header, then a body, which is read as an event of each topic.
//!
//! Decoding neither panics nor allocates without bound, and a decoded event is the same after it is
//! encoded and decoded again.

#![no_main]

use chassis::DeclaredEvent;
use chassis::event::avro::unframe;
use chassis::event::declared_events;
use libfuzzer_sys::fuzz_target;

// Declares the events.
use events as _;

fn assert_round_trip(event: &DeclaredEvent, body: &[u8]) {
    let codec = event.topic.codec();
    // The content of a dead letter as an operator sees it.
    let _ = codec.decode_json(body);
    let Ok(written) = event.recode(codec, body) else { return };
    let again = event.recode(codec, &written).expect("what was written can be read");
    assert_eq!(written, again);
}

fuzz_target!(|record: &[u8]| {
    if let Ok((_, body)) = unframe(record) {
        declared_events().iter().for_each(|event| assert_round_trip(event, body));
    }
});
