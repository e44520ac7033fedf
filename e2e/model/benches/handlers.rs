//! The cost of decisions: each handler and command of the three services on batches of 1 to 1,000,
//! on rows in memory, without SQL and without the encoding of events. Each batch finds the rows that
//! such a batch would have loaded; every order has two lines and its own customer.

use chassis::{Command, Decision, HandlerContext};
use std::hint::black_box;

use chrono::DateTime;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use events::orders::{CancelReason, OrderCancelled, OrderCreated};
use events::payments::{DeclineReason, PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{RejectReason, ReleasedLine, ReservedLine, StockItem};
use events::stock::{StockRejected, StockReleased, StockReserved};
use order::{CancelOrder, LineRequest, Orders, PlaceOrder};
use payment::{Deposit, Ledger};
use stock::{Delivery, PutItem, Warehouse};
use uuid::Uuid;

const BATCHES: [usize; 4] = [1, 10, 100, 1_000];

const SKUS: [&str; 2] = ["deck-lantern", "pen"];
const PRICE_CENTS: i64 = 150;
const TOTAL_CENTS: i64 = 300;
const PLENTY: i64 = 1_000_000;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let c = &mut criterion;
    measure(c, "place_order", |n| (items(), placements(n)), decide);
    measure(c, "verify_payment", |n| (ledger(n), created(n)), payment::saga::verify_payment);
    measure(c, "reserve_stock", |n| (warehouse(), created(n)), stock::saga::reserve_stock);
    // The first acceptance, and the second, which confirms.
    measure(c, "payment_verified", |n| (placed(n), verified(n)), order::saga::answered);
    measure(c, "stock_reserved", |n| (paid(n), reserved(n)), order::saga::answered);
    measure(c, "payment_declined", |n| (placed(n), declined(n)), order::saga::answered);
    measure(c, "stock_rejected", |n| (placed(n), rejected(n)), order::saga::answered);
    measure(c, "cancel_order", |n| (placed(n), cancellations(n)), decide);
    measure(c, "refund_payment", |n| (charged(n), cancelled(n)), payment::saga::refund_payment);
    measure(
        c,
        "release_stock",
        |n| (warehouse_with_reservations(n), cancelled(n)),
        stock::saga::release_stock,
    );
    measure(c, "payment_refunded", |n| (ended(n), refunded(n)), order::saga::answered);
    measure(c, "stock_released", |n| (ended(n), released(n)), order::saga::answered);
    measure(c, "put_item", |n| (Warehouse::default(), item_puts(n)), decide);
    measure(c, "item_changed", |n| (Orders::default(), item_changes(n)), order::saga::item_changed);
    criterion.final_summary();
}

/// Calls a handler with each event of a batch, on fresh rows every time.
fn measure<R, E, A, F>(
    criterion: &mut Criterion,
    name: &str,
    batch: impl Fn(usize) -> (R, Vec<E>),
    handler: fn(&E, &mut R, HandlerContext) -> Result<A, F>,
) {
    let mut group = criterion.benchmark_group(name);
    for size in BATCHES {
        let (_, events) = batch(size);
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            let decide = |mut rows| {
                for event in &events {
                    let answer = handler(black_box(event), &mut rows, context());
                    assert!(answer.is_ok(), "{name} refuses");
                    let _ = black_box(answer);
                }
                rows
            };
            b.iter_batched(|| batch(size).0, decide, BatchSize::LargeInput)
        });
    }
    group.finish();
}

fn decide<C: Command>(
    command: &C,
    rows: &mut C::Aggregate,
    context: HandlerContext,
) -> Decision<C> {
    command.decide(rows, context)
}

fn context() -> HandlerContext {
    HandlerContext { now: DateTime::UNIX_EPOCH, event_id: id(0), causation_id: Some(id(0)) }
}

/// The ids of the order and of the customer with a number.
fn id(nth: usize) -> Uuid {
    Uuid::from_u128(0x0193_4a5b_6c7d_7e8f_8123_4567_0000_0000 + nth as u128)
}

fn generate<T>(count: usize, make: impl Fn(Uuid) -> T) -> Vec<T> {
    (1..=count).map(|nth| make(id(nth))).collect()
}

fn euros() -> String {
    "EUR".to_string()
}

/// Rows as a handler left them.
fn apply_all<R, E, A>(
    mut rows: R,
    events: Vec<E>,
    handler: fn(&E, &mut R, HandlerContext) -> A,
) -> R {
    for event in &events {
        handler(event, &mut rows, context());
    }
    rows
}

// Rows.

fn items() -> Orders {
    let item = |sku: &str| order::Item {
        sku: sku.to_string(),
        name: sku.to_string(),
        price_cents: PRICE_CENTS,
        currency: euros(),
        version: 1,
    };
    let mut orders = Orders::default();
    SKUS.iter().for_each(|sku| orders.put_item(item(sku)));
    orders
}

fn placed(count: usize) -> Orders {
    apply_all(items(), placements(count), decide)
}

fn paid(count: usize) -> Orders {
    apply_all(placed(count), verified(count), order::saga::answered)
}

fn ended(count: usize) -> Orders {
    apply_all(placed(count), cancellations(count), decide)
}

fn ledger(count: usize) -> Ledger {
    let deposit = |customer_id| Deposit {
        deposit_id: customer_id,
        customer_id,
        amount_cents: PLENTY,
        currency: euros(),
    };
    apply_all(Ledger::default(), generate(count, deposit), decide)
}

fn charged(count: usize) -> Ledger {
    apply_all(ledger(count), created(count), payment::saga::verify_payment)
}

fn warehouse() -> Warehouse {
    let put = |sku: &str| PutItem {
        sku: sku.to_string(),
        name: sku.to_string(),
        price_cents: PRICE_CENTS,
        currency: euros(),
    };
    let delivery =
        |sku: &str| Delivery { delivery_id: id(0), sku: sku.to_string(), quantity: PLENTY };
    let there = apply_all(Warehouse::default(), SKUS.map(put).into(), decide);
    apply_all(there, SKUS.map(delivery).into(), decide)
}

fn warehouse_with_reservations(count: usize) -> Warehouse {
    apply_all(warehouse(), created(count), stock::saga::reserve_stock)
}

// Commands and events.

fn placements(count: usize) -> Vec<PlaceOrder> {
    let lines = || SKUS.map(|sku| LineRequest { sku: sku.to_string(), quantity: 1 }).into();
    generate(count, |id| PlaceOrder {
        order_id: id,
        customer_id: id,
        lines: lines(),
        also_asks: Vec::new(),
        deadline: None,
    })
}

fn cancellations(count: usize) -> Vec<CancelOrder> {
    generate(count, |order_id| CancelOrder { order_id, caller: chassis::Caller::unrestricted() })
}

fn created(count: usize) -> Vec<OrderCreated> {
    let placed = placed(count);
    generate(count, |order_id| placed.order(order_id).expect("it was placed").created())
}

fn cancelled(count: usize) -> Vec<OrderCancelled> {
    let (reason, occurred_at) = (CancelReason::Customer, context().now);
    generate(count, |order_id| OrderCancelled { order_id, reason, occurred_at })
}

fn verified(count: usize) -> Vec<PaymentVerified> {
    let (amount_cents, occurred_at) = (TOTAL_CENTS, context().now);
    generate(count, |order_id| PaymentVerified {
        order_id,
        amount_cents,
        currency: euros(),
        occurred_at,
    })
}

fn declined(count: usize) -> Vec<PaymentDeclined> {
    let (reason, occurred_at) = (DeclineReason::InsufficientFunds, context().now);
    generate(count, |order_id| PaymentDeclined { order_id, reason, occurred_at })
}

fn refunded(count: usize) -> Vec<PaymentRefunded> {
    let (amount_cents, occurred_at) = (Some(TOTAL_CENTS), context().now);
    generate(count, |order_id| PaymentRefunded {
        order_id,
        amount_cents,
        currency: Some(euros()),
        occurred_at,
    })
}

fn reserved(count: usize) -> Vec<StockReserved> {
    let line = |sku: &str| ReservedLine { sku: sku.to_string(), quantity: 1 };
    generate(count, |order_id| StockReserved {
        order_id,
        lines: SKUS.map(line).into(),
        occurred_at: context().now,
    })
}

fn rejected(count: usize) -> Vec<StockRejected> {
    generate(count, |order_id| StockRejected {
        order_id,
        reason: RejectReason::OutOfStock,
        sku: SKUS[0].to_string(),
        requested: 1,
        available: 0,
        occurred_at: context().now,
    })
}

fn released(count: usize) -> Vec<StockReleased> {
    let line = |sku: &str| ReleasedLine { sku: sku.to_string(), quantity: 1 };
    generate(count, |order_id| StockReleased {
        order_id,
        lines: SKUS.map(line).into(),
        occurred_at: context().now,
    })
}

fn item_puts(count: usize) -> Vec<PutItem> {
    generate(count, |id| PutItem {
        sku: id.to_string(),
        name: "Pen".to_string(),
        price_cents: PRICE_CENTS,
        currency: euros(),
    })
}

fn item_changes(count: usize) -> Vec<StockItem> {
    generate(count, |id| StockItem {
        sku: id.to_string(),
        name: "Pen".to_string(),
        price_cents: PRICE_CENTS,
        currency: euros(),
        version: 1,
        occurred_at: context().now,
    })
}
