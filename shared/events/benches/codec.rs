//! The cost of encoding and decoding each event, with the functions that handlers' results and
//! consumed records go through. Events with lines have 2 and 50 of them, the largest number of an
//! order.

use std::hint::black_box;

use chassis::event::avro::{Codec, frame, unframe};
use chassis::event::{Event, Outgoing};
use chrono::DateTime;
use criterion::{Criterion, Throughput};
use events::orders::{CancelReason, OrderCancelled, OrderConfirmed, OrderCreated};
use events::orders::{ConfirmedLine, OrderLine};
use events::payments::{DeclineReason, PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{RejectReason, StockItem, StockRejected, StockReleased, StockReserved};
use events::stock::{ReleasedLine, ReservedLine};
use uuid::Uuid;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    events(&mut criterion);
    criterion.final_summary();
}

fn events(criterion: &mut Criterion) {
    let id = Uuid::from_u128(0x0193_4a5b_6c7d_7e8f_8123_4567_89ab_cdef);
    let (order_id, customer_id) = (id, id);
    let occurred_at = DateTime::from_timestamp_micros(1_795_132_800_123_456).expect("a time");
    let currency = || "EUR".to_string();
    let sku = |nth| format!("deck-lantern-{nth}");
    let (quantity, unit_price_cents, total_cents) = (2, 5_990, 11_980);

    for count in [2, 50] {
        let name = |topic| format!("{topic}, {count} lines");
        let skus = || (1..=count).map(sku);
        let ordered = skus().map(|sku| OrderLine { sku, quantity, unit_price_cents }).collect();
        let event = OrderCreated {
            order_id,
            customer_id,
            lines: ordered,
            total_cents,
            currency: currency(),
            also_asks: Vec::new(),
            occurred_at,
        };
        measure(criterion, &name("orders.created"), event);
        let confirmed =
            skus().map(|sku| ConfirmedLine { sku, quantity, unit_price_cents }).collect();
        let event = OrderConfirmed {
            order_id,
            customer_id,
            lines: confirmed,
            total_cents,
            currency: currency(),
            occurred_at,
        };
        measure(criterion, &name("orders.confirmed"), event);
        let reserved = skus().map(|sku| ReservedLine { sku, quantity }).collect();
        let event = StockReserved { order_id, lines: reserved, occurred_at };
        measure(criterion, &name("stock.reserved"), event);
        let released = skus().map(|sku| ReleasedLine { sku, quantity }).collect();
        let event = StockReleased { order_id, lines: released, occurred_at };
        measure(criterion, &name("stock.released"), event);
    }
    let event = OrderCancelled { order_id, reason: CancelReason::Customer, occurred_at };
    measure(criterion, "orders.cancelled", event);
    let (amount_cents, paid_in) = (total_cents, currency());
    let event = PaymentVerified { order_id, amount_cents, currency: paid_in, occurred_at };
    measure(criterion, "payments.verified", event);
    let reason = DeclineReason::InsufficientFunds;
    let event = PaymentDeclined { order_id, reason, occurred_at };
    measure(criterion, "payments.declined", event);
    let (amount_cents, paid_in) = (Some(total_cents), Some(currency()));
    let event = PaymentRefunded { order_id, amount_cents, currency: paid_in, occurred_at };
    measure(criterion, "payments.refunded", event);
    let (reason, requested, available) = (RejectReason::OutOfStock, 2, 1);
    let event = StockRejected { order_id, reason, sku: sku(1), requested, available, occurred_at };
    measure(criterion, "stock.rejected", event);
    let event = StockItem {
        sku: sku(1),
        name: "Deck lantern".to_string(),
        price_cents: unit_price_cents,
        currency: currency(),
        version: 1,
        occurred_at,
    };
    measure(criterion, "stock.items", event);
}

/// From the struct to a row of the outbox, and from a record to the struct. As in a consumer, the
/// writer's schema is the registry's copy, here of the same version.
fn measure<E: Event>(criterion: &mut Criterion, name: &str, event: E) {
    let written = Codec::new(E::topic().schema).expect("the committed schema is valid");
    let record = frame(1, &Outgoing::from_event(&event).body);
    let read = |record| -> E {
        let (_, body) = unframe(record).expect("a record");
        E::topic().codec().decode(&written, body).expect("an event")
    };
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode", |b| b.iter(|| Outgoing::from_event(black_box(&event))));
    group.bench_function("decode", |b| b.iter(|| read(black_box(&record))));
    group.finish();
}
