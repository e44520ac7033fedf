//! A record of any topic in Kafka: wire header, then a body.
//!
//! Decoding neither panics nor allocates without bound, and a decoded event is the same after it is
//! encoded and decoded again.

#![no_main]

use chassis::{Event, Topic};
use chassis::event::avro::unframe;
use events::{TOPICS, orders, payments, stock};
use libfuzzer_sys::fuzz_target;

fn assert_round_trip<E: Event>(body: &[u8]) {
    let codec = E::topic().codec();
    let Ok(event) = codec.decode::<E>(codec, body) else { return };
    let written = codec.encode(&event).expect("what was read can be written");
    let again = codec.decode::<E>(codec, &written).expect("what was written can be read");
    let again = codec.encode(&again).expect("what was read can be written");
    assert_eq!(written, again);
}

fn decode(topic: &'static Topic, body: &[u8]) {
    // The content of a dead letter as an operator sees it.
    let _ = topic.codec().decode_json(body);
    match topic.name {
        "orders.created" => assert_round_trip::<orders::OrderCreated>(body),
        "orders.confirmed" => assert_round_trip::<orders::OrderConfirmed>(body),
        "orders.cancelled" => assert_round_trip::<orders::OrderCancelled>(body),
        "payments.verified" => assert_round_trip::<payments::PaymentVerified>(body),
        "payments.declined" => assert_round_trip::<payments::PaymentDeclined>(body),
        "payments.refunded" => assert_round_trip::<payments::PaymentRefunded>(body),
        "stock.reserved" => assert_round_trip::<stock::StockReserved>(body),
        "stock.rejected" => assert_round_trip::<stock::StockRejected>(body),
        "stock.released" => assert_round_trip::<stock::StockReleased>(body),
        "stock.items" => assert_round_trip::<stock::StockItem>(body),
        other => panic!("{other} is not fuzzed"),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((topic, record)) = bytes.split_first() else { return };
    if let Ok((_, body)) = unframe(record) {
        decode(TOPICS[usize::from(*topic) % TOPICS.len()], body);
    }
});
