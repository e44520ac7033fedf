//! A record as Kafka may hold it, of any topic: wire header, then a body.
//!
//! Decoding neither panics nor allocates without bound, and what is decoded is the same when it is
//! written and read once more.

#![no_main]

use chassis::avro::unframe;
use chassis::event::{Event, Topic};
use events::{TOPICS, orders, payments, stock};
use libfuzzer_sys::fuzz_target;

fn same_again<E: Event>(body: &[u8]) {
    let codec = E::topic().codec();
    let Ok(event) = codec.decode::<E>(codec, body) else { return };
    let written = codec.encode(&event).expect("what was read can be written");
    let again = codec.decode::<E>(codec, &written).expect("what was written can be read");
    let again = codec.encode(&again).expect("what was read can be written");
    assert_eq!(written, again);
}

fn read(topic: &'static Topic, body: &[u8]) {
    // What an operator sees of a dead letter.
    let _ = topic.codec().json(body);
    match topic.name {
        "orders.created" => same_again::<orders::OrderCreated>(body),
        "orders.confirmed" => same_again::<orders::OrderConfirmed>(body),
        "orders.cancelled" => same_again::<orders::OrderCancelled>(body),
        "payments.verified" => same_again::<payments::PaymentVerified>(body),
        "payments.declined" => same_again::<payments::PaymentDeclined>(body),
        "payments.refunded" => same_again::<payments::PaymentRefunded>(body),
        "stock.reserved" => same_again::<stock::StockReserved>(body),
        "stock.rejected" => same_again::<stock::StockRejected>(body),
        "stock.released" => same_again::<stock::StockReleased>(body),
        "stock.items" => same_again::<stock::StockItem>(body),
        other => panic!("{other} is not fuzzed"),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((topic, record)) = bytes.split_first() else { return };
    if let Ok((_, body)) = unframe(record) {
        read(TOPICS[usize::from(*topic) % TOPICS.len()], body);
    }
});
