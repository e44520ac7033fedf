//! What must hold, as pure functions over rows and records: an order with everything that is known
//! of it, an account, an item, an inbox. Each is refused by the check that is meant for it, which
//! the tests below show with hand-made rows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use chassis::event::{Retention, Topic};
use chrono::{DateTime, Utc};
use events::{TOPICS, orders, payments, stock};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::audit::{self, Standing};

/// Violations shown of one kind; all are counted.
const SHOWN_MAX: usize = 20;

/// What is off, by kind.
#[derive(Debug, Default)]
pub struct Findings {
    kinds: BTreeMap<&'static str, (u64, Vec<String>)>,
}

impl Findings {
    pub fn add(&mut self, kind: &'static str, what: impl FnOnce() -> String) {
        let (count, shown) = self.kinds.entry(kind).or_default();
        *count += 1;
        if shown.len() < SHOWN_MAX {
            shown.push(what());
        }
    }

    pub fn unless(&mut self, holds: bool, kind: &'static str, what: impl FnOnce() -> String) {
        if !holds {
            self.add(kind, what);
        }
    }

    pub fn count(&self) -> u64 {
        self.kinds.values().map(|(count, _)| count).sum()
    }

    /// Kind, how many, and the first few.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64, &[String])> {
        self.kinds.iter().map(|(kind, (count, shown))| (*kind, *count, shown.as_slice()))
    }

    pub fn kinds(&self) -> Vec<&'static str> {
        self.kinds.keys().copied().collect()
    }
}

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

/// Which services set aside which records. The hash tells whether it is still that record.
#[derive(Debug, Default)]
pub struct Letters {
    by_place: HashMap<Place, Vec<(&'static str, [u8; 32])>>,
    waiting: HashSet<Place>,
}

impl Letters {
    pub fn add(&mut self, place: Place, service: &'static str, hash: [u8; 32]) {
        self.by_place.entry(place).or_default().push((service, hash));
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

    fn has_exactly(&self, foreign: &Foreign, service: &str) -> bool {
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

    fn lines(lines: &[Line]) -> u64 {
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

/// A row of order's table.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct OrderRow {
    pub order_id: Uuid,
    pub customer_id: Uuid,
    pub status: String,
    pub reason: Option<String>,
    pub payment: String,
    pub stock: String,
    pub total_cents: i64,
    pub currency: String,
    #[sqlx(json)]
    pub lines: Vec<OrderLine>,
    pub created_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    pub created_event_id: Uuid,
    pub ended_event_id: Option<Uuid>,
}

/// A row of payment's table.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct PaymentRow {
    pub order_id: Uuid,
    pub state: String,
    pub customer_id: Option<Uuid>,
    pub amount_cents: i64,
    pub currency: Option<String>,
    pub reason: Option<String>,
    pub answer_event_id: Option<Uuid>,
    pub undo_event_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// A row of stock's table.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct ReservationRow {
    pub order_id: Uuid,
    pub state: String,
    #[sqlx(json)]
    pub lines: Vec<Line>,
    #[sqlx(json(nullable))]
    pub shortfall: Option<Shortfall>,
    pub answer_event_id: Option<Uuid>,
    pub undo_event_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// A row of order's history.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct HistoryRow {
    pub order_id: Uuid,
    pub event_id: Uuid,
    pub position: i64,
    pub event: String,
    pub detail: Value,
    pub occurred_at: DateTime<Utc>,
}

/// Everything that is known of one order.
#[derive(Clone, Debug, Default)]
pub struct Case {
    pub order_id: Uuid,
    pub order: Option<OrderRow>,
    pub payment: Option<PaymentRow>,
    pub reservation: Option<ReservationRow>,
    pub history: Vec<HistoryRow>,
    pub facts: Vec<Fact>,
}

/// An event that a row says was published.
pub struct Expected {
    pub topic: &'static Topic,
    pub event_id: Uuid,
    content: Option<u64>,
    pub at: DateTime<Utc>,
}

/// What the checks need to know beside an order's case.
pub struct Around<'a> {
    pub letters: &'a Letters,
    /// Older events may be gone from their topics.
    pub kept_since: DateTime<Utc>,
}

/// What the cases come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    pub pending: u64,
    pub confirmed: u64,
    pub confirmed_cents: i128,
    /// By reason.
    pub cancelled: BTreeMap<String, u64>,
    /// By payment's and stock's word for it.
    pub payments: BTreeMap<String, u64>,
    pub reservations: BTreeMap<String, u64>,
    pub facts: u64,
    /// Records of an event that lie there a second time, though nobody had it announced again.
    pub repeats: u64,
    /// Well-formed records that no row recorded and a dead letter names.
    pub set_aside: u64,
    /// Events too old to be still in their topics.
    pub expired: u64,
}

/// Checks one order against everything that is known of it.
pub fn check_case(case: &Case, around: &Around<'_>, tally: &mut Tally, findings: &mut Findings) {
    if let Some(order) = &case.order {
        check_order(order, case, tally, findings);
        check_audit(order, case, findings);
    } else if case.payment.is_some() || case.reservation.is_some() || !case.history.is_empty() {
        findings
            .add("ghost", || format!("{}: payment or stock has it, order does not", case.order_id));
    }
    if let Some(payment) = &case.payment {
        *tally.payments.entry(payment.state.clone()).or_default() += 1;
    }
    if let Some(reservation) = &case.reservation {
        *tally.reservations.entry(reservation.state.clone()).or_default() += 1;
    }
    let expected = expected(case, findings);
    check_history(case, &expected, findings);
    check_facts(case, &expected, around, tally, findings);
}

fn check_order(order: &OrderRow, case: &Case, tally: &mut Tally, findings: &mut Findings) {
    let id = order.order_id;
    let total: i128 = order
        .lines
        .iter()
        .map(|line| i128::from(line.quantity) * i128::from(line.unit_price_cents))
        .sum();
    findings.unless(total == i128::from(order.total_cents), "amounts", || {
        format!("{id}: its lines come to {total}, its total is {}", order.total_cents)
    });
    let payment = case.payment.as_ref().map_or("waiting", |payment| &payment.state);
    let stock = case.reservation.as_ref().map_or("waiting", |reservation| &reservation.state);
    let legs =
        || format!("{id}: {}, payment {}, stock {}", order.status, order.payment, order.stock);
    match order.status.as_str() {
        "confirmed" => {
            tally.confirmed += 1;
            tally.confirmed_cents += i128::from(order.total_cents);
            let both = order.payment == "verified" && order.stock == "reserved";
            findings.unless(both, "open", legs);
        }
        "cancelled" => {
            *tally.cancelled.entry(order.reason.clone().unwrap_or_default()).or_default() += 1;
            let paid = ["refunded", "declined", "void"].contains(&order.payment.as_str());
            let held = ["released", "rejected", "void"].contains(&order.stock.as_str());
            findings.unless(paid && held, "open", legs);
        }
        _ => {
            tally.pending += 1;
            findings.add("open", legs);
        }
    }
    findings.unless(order.payment == payment, "disagreement", || {
        format!("{id}: order says payment is {}, payment says {payment}", order.payment)
    });
    findings.unless(order.stock == stock, "disagreement", || {
        format!("{id}: order says stock is {}, stock says {stock}", order.stock)
    });
    if let Some(payment) = &case.payment {
        check_payment(order, payment, findings);
    }
    if let Some(reservation) = &case.reservation {
        check_reservation(order, reservation, findings);
    }
}

fn check_payment(order: &OrderRow, payment: &PaymentRow, findings: &mut Findings) {
    let id = order.order_id;
    if ["verified", "refunded"].contains(&payment.state.as_str()) {
        let taken = (payment.amount_cents, payment.currency.as_deref());
        let due = (order.total_cents, Some(order.currency.as_str()));
        findings.unless(taken == due, "amounts", || {
            format!("{id}: payment took {taken:?}, the order is about {due:?}")
        });
        findings.unless(payment.customer_id == Some(order.customer_id), "amounts", || {
            format!(
                "{id}: payment took it from {:?}, not from {}",
                payment.customer_id, order.customer_id
            )
        });
    } else if payment.state == "void" {
        findings.unless(payment.amount_cents == 0, "amounts", || {
            format!("{id}: payment is void and about {} cents", payment.amount_cents)
        });
    }
}

fn check_reservation(order: &OrderRow, reservation: &ReservationRow, findings: &mut Findings) {
    let id = order.order_id;
    let ordered = order.lines.iter().map(|line| (line.sku.as_str(), line.quantity));
    let same = match reservation.state.as_str() {
        "reserved" | "released" => Says::lines(&reservation.lines) == Says::set_aside(ordered),
        _ => true,
    };
    findings.unless(same, "lines", || {
        format!("{id}: stock set aside {:?}, ordered were {:?}", reservation.lines, order.lines)
    });
}

/// The events that the rows of an order say were published. A row that ought to say so and does not
/// is a finding.
pub fn expected(case: &Case, findings: &mut Findings) -> Vec<Expected> {
    let mut expected = Vec::with_capacity(6);
    let mut unrecorded = Vec::new();
    let mut expect = |topic: &'static Topic, event_id: Option<Uuid>, content, at| match event_id {
        Some(event_id) => expected.push(Expected { topic, event_id, content, at }),
        None => unrecorded.push(topic.name),
    };
    if let Some(order) = &case.order {
        let OrderRow { customer_id, total_cents, currency, lines, .. } = order;
        let content = Some(Says::ordered(*customer_id, *total_cents, currency, lines));
        expect(&orders::CREATED, Some(order.created_event_id), content, order.created_at);
        let ended_at = order.ended_at.unwrap_or(order.created_at);
        match order.status.as_str() {
            "confirmed" => expect(&orders::CONFIRMED, order.ended_event_id, content, ended_at),
            "cancelled" => {
                let content = order.reason.as_deref().map(Says::cancelled);
                expect(&orders::CANCELLED, order.ended_event_id, content, ended_at);
            }
            _ => {}
        }
    }
    if let Some(payment) = &case.payment {
        let (answer, undo) = (payment.answer_event_id, payment.undo_event_id);
        let (answered_at, undone_at) = (payment.created_at, payment.updated_at);
        let currency = payment.currency.as_deref();
        let paid = Some(Says::refunded(Some(payment.amount_cents), currency));
        match payment.state.as_str() {
            "verified" => expect(&payments::VERIFIED, answer, paid, answered_at),
            "declined" => {
                let content = payment.reason.as_deref().map(Says::cancelled);
                expect(&payments::DECLINED, answer, content, answered_at);
            }
            "refunded" => {
                expect(&payments::VERIFIED, answer, paid, answered_at);
                expect(&payments::REFUNDED, undo, paid, undone_at);
            }
            _ => expect(&payments::REFUNDED, undo, Some(Says::refunded(None, None)), undone_at),
        }
    }
    if let Some(reservation) = &case.reservation {
        let (answer, undo) = (reservation.answer_event_id, reservation.undo_event_id);
        let (answered_at, undone_at) = (reservation.created_at, reservation.updated_at);
        let lines = Some(Says::lines(&reservation.lines));
        match reservation.state.as_str() {
            "reserved" => expect(&stock::RESERVED, answer, lines, answered_at),
            "rejected" => {
                let content = reservation.shortfall.as_ref().map(hash);
                expect(&stock::REJECTED, answer, content, answered_at);
            }
            "released" => {
                expect(&stock::RESERVED, answer, lines, answered_at);
                expect(&stock::RELEASED, undo, lines, undone_at);
            }
            _ => expect(&stock::RELEASED, undo, Some(Says::lines(&[])), undone_at),
        }
    }
    for topic in unrecorded {
        findings.add("unrecorded", || format!("{}: no row records its {topic}", case.order_id));
    }
    expected
}

/// The order's history has exactly what its rows say happened: nothing twice, nothing else.
fn check_history(case: &Case, expected: &[Expected], findings: &mut Findings) {
    if case.order.is_none() {
        return;
    }
    let id = case.order_id;
    let mut should: Vec<(Uuid, &str)> =
        expected.iter().map(|e| (e.event_id, e.topic.name)).collect();
    let mut is: Vec<(Uuid, &str)> =
        case.history.iter().map(|row| (row.event_id, row.event.as_str())).collect();
    should.sort_unstable();
    is.sort_unstable();
    for row in &should {
        findings.unless(is.contains(row), "history", || format!("{id}: lacks {} {}", row.1, row.0));
    }
    for row in &is {
        findings.unless(should.contains(row), "history", || {
            format!("{id}: has {} {}, which nobody recorded", row.1, row.0)
        });
    }
    findings.unless(is.windows(2).all(|pair| pair[0].0 != pair[1].0), "history", || {
        format!("{id}: has an event twice")
    });
}

/// The history, folded, comes to where the order stands.
fn check_audit(order: &OrderRow, case: &Case, findings: &mut Findings) {
    let mut history: Vec<&HistoryRow> = case.history.iter().collect();
    history.sort_unstable_by_key(|row| row.position);
    let lines = history.iter().map(|row| audit::Line {
        event: &row.event,
        detail: &row.detail,
        occurred_at: row.occurred_at,
    });
    let stands = Standing {
        status: order.status.clone(),
        reason: order.reason.clone(),
        payment: order.payment.clone(),
        stock: order.stock.clone(),
        ended_at: order.ended_at,
    };
    match audit::fold(lines) {
        Ok(folded) => findings.unless(folded == stands, "audit", || {
            format!("{}: its history comes to {folded:?}, it is {stands:?}", order.order_id)
        }),
        Err(because) => {
            findings.add("audit", || format!("{}: its history {because}", order.order_id));
        }
    }
}

/// What lies in the topics is what the rows say was published, both ways.
fn check_facts(
    case: &Case,
    expected: &[Expected],
    around: &Around<'_>,
    tally: &mut Tally,
    findings: &mut Findings,
) {
    let id = case.order_id;
    let is = |fact: &Fact, e: &Expected| {
        fact.event_id == e.event_id && fact.place.topic().name == e.topic.name
    };
    for e in expected {
        let mut found = case.facts.iter().filter(|fact| is(fact, e)).peekable();
        if found.peek().is_none() {
            if e.at < around.kept_since {
                tally.expired += 1;
            } else {
                findings.add("lost", || {
                    format!("{id}: {} {} is not in its topic", e.topic.name, e.event_id)
                });
            }
            continue;
        }
        let mut first = true;
        for fact in found {
            // Of a record that is none of ours, a letter is all that there should be.
            findings.unless(!around.letters.waiting.contains(&fact.place), "dead letters", || {
                format!("{id}: {} at {} lies among the dead letters", e.topic.name, fact.place)
            });
            tally.facts += 1;
            tally.repeats += u64::from(!first && !fact.announced);
            first &= fact.announced;
            // A reason newer than this checker can't be held against the row's.
            let is_newer = e.topic.name == orders::CANCELLED.name
                && fact.content == Says::cancelled("unknown");
            findings.unless(
                e.content.is_none_or(|content| content == fact.content || is_newer),
                "content",
                || {
                    format!(
                        "{id}: {} at {} says something else than the row",
                        e.topic.name, fact.place
                    )
                },
            );
        }
    }
    for fact in &case.facts {
        if expected.iter().any(|e| is(fact, e)) {
            continue;
        }
        if around.letters.has(fact.place) {
            tally.set_aside += 1;
        } else {
            findings.add("foreign", || {
                format!(
                    "{id}: no row recorded {} at {}, and no dead letter names it",
                    fact.event_id, fact.place
                )
            });
        }
    }
    check_traces(case, expected, findings);
}

/// What an event causes belongs to its trace. A customer's cancel begins one of its own.
///
/// Where an event was announced again it has a second trace, and what it caused may belong to either;
/// to an unknown one only where the first record went with the broker's disk.
fn check_traces(case: &Case, expected: &[Expected], findings: &mut Findings) {
    let records = |topic: &Topic| {
        let e = expected.iter().find(|e| e.topic.name == topic.name);
        let event_id = e.map(|e| e.event_id);
        case.facts.iter().filter(move |fact| Some(fact.event_id) == event_id)
    };
    let by_customer =
        case.order.as_ref().and_then(|order| order.reason.as_deref()) == Some("customer");
    let mut caused: Vec<(&Topic, &Topic)> = vec![
        (&orders::CREATED, &payments::VERIFIED),
        (&orders::CREATED, &payments::DECLINED),
        (&orders::CREATED, &stock::RESERVED),
        (&orders::CREATED, &stock::REJECTED),
        (&orders::CREATED, &orders::CONFIRMED),
        (&orders::CANCELLED, &payments::REFUNDED),
        (&orders::CANCELLED, &stock::RELEASED),
    ];
    if !by_customer {
        caused.push((&orders::CREATED, &orders::CANCELLED));
    }
    for (cause, effect) in caused {
        let after = records(effect).find(|fact| !fact.announced);
        if let Some(after) = after
            && records(cause).any(|fact| !fact.announced)
        {
            let caused = records(cause).any(|fact| fact.trace == after.trace);
            findings.unless(caused, "trace", || {
                format!("{}: {} is not in the trace of {}", case.order_id, effect.name, cause.name)
            });
        }
    }
}

/// A record that is none of ours is fine only where everybody who reads its topic set it aside.
pub fn check_foreign(foreign: &Foreign, letters: &Letters, findings: &mut Findings) {
    for service in foreign.place.topic().subscribers {
        findings.unless(letters.has_exactly(foreign, service), "foreign", || {
            format!("{}: {}; {service} has no dead letter of it", foreign.place, foreign.reason)
        });
    }
}

/// A customer's money: what came in, what is there, what was taken.
#[derive(Clone, Debug, Default, sqlx::FromRow)]
pub struct AccountRow {
    pub customer_id: Uuid,
    /// Sums of the rows; the other three are the account's own counters.
    pub deposits_cents: i64,
    pub verified_cents: i64,
    pub deposited_cents: Option<i64>,
    pub balance_cents: Option<i64>,
    pub taken_cents: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Money {
    pub accounts: u64,
    pub deposited_cents: i128,
    pub balance_cents: i128,
    pub taken_cents: i128,
}

pub fn check_account(row: &AccountRow, money: &mut Money, findings: &mut Findings) {
    let (Some(deposited), Some(balance), Some(taken)) =
        (row.deposited_cents, row.balance_cents, row.taken_cents)
    else {
        findings.add("money", || {
            format!("customer {}: deposits or payments without account", row.customer_id)
        });
        return;
    };
    money.accounts += 1;
    money.deposited_cents += i128::from(deposited);
    money.balance_cents += i128::from(balance);
    money.taken_cents += i128::from(taken);
    let conserved = i128::from(deposited) == i128::from(balance) + i128::from(taken);
    let holds = conserved && row.deposits_cents == deposited && row.verified_cents == taken;
    findings.unless(holds, "money", || format!("customer {}: {row:?}", row.customer_id));
    findings.unless(balance >= 0 && taken >= 0, "negative", || {
        format!("customer {}: {row:?}", row.customer_id)
    });
}

/// What was taken is what confirmed orders cost.
pub fn check_totals(money: &Money, tally: &Tally, findings: &mut Findings) {
    findings.unless(money.taken_cents == tally.confirmed_cents, "money", || {
        format!(
            "taken are {}, confirmed orders come to {}",
            money.taken_cents, tally.confirmed_cents
        )
    });
}

/// An item: what came in, what is there, what is set aside.
#[derive(Clone, Debug, Default, sqlx::FromRow)]
pub struct ItemRow {
    pub sku: String,
    pub deliveries: i64,
    pub held: i64,
    pub name: Option<String>,
    pub price_cents: Option<i64>,
    pub currency: Option<String>,
    pub version: Option<i64>,
    pub delivered: Option<i64>,
    pub available: Option<i64>,
    pub reserved: Option<i64>,
    pub event_id: Option<Uuid>,
}

/// An item as a record of `stock.items`, or order's read model, has it.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Described {
    pub sku: String,
    pub name: String,
    pub price_cents: i64,
    pub currency: String,
    pub version: i64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Goods {
    pub items: u64,
    pub delivered: i128,
    pub available: i128,
    pub reserved: i128,
}

/// `newest` is the newest record of the item, `known` what the order service knows of it.
pub fn check_item(
    row: &ItemRow,
    newest: Option<&(Uuid, Described)>,
    known: Option<&Described>,
    goods: &mut Goods,
    findings: &mut Findings,
) {
    let sku = &row.sku;
    let (Some(delivered), Some(available), Some(reserved)) =
        (row.delivered, row.available, row.reserved)
    else {
        findings.add("stock", || format!("{sku}: deliveries or reservations without item"));
        return;
    };
    goods.items += 1;
    goods.delivered += i128::from(delivered);
    goods.available += i128::from(available);
    goods.reserved += i128::from(reserved);
    let conserved = i128::from(delivered) == i128::from(available) + i128::from(reserved);
    let holds = conserved && row.deliveries == delivered && row.held == reserved;
    findings.unless(holds, "stock", || format!("{row:?}"));
    findings.unless(available >= 0 && reserved >= 0, "negative", || format!("{row:?}"));
    findings.unless(newest.map(|(event_id, _)| *event_id) == row.event_id, "item", || {
        format!("{sku}: its row recorded {:?}, the newest record is {newest:?}", row.event_id)
    });
    let same = |described: &Described| {
        (
            Some(&described.name),
            Some(described.price_cents),
            Some(&described.currency),
            Some(described.version),
        ) == (row.name.as_ref(), row.price_cents, row.currency.as_ref(), row.version)
    };
    findings.unless(newest.is_some_and(|(_, newest)| same(newest)), "item", || {
        format!("{sku}: the newest record says something else than the row: {newest:?}")
    });
    findings.unless(known.is_some_and(same), "item", || {
        format!("{sku}: the order service knows it differently: {known:?}")
    });
}

/// A row of an inbox.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct InboxRow {
    pub event_id: Uuid,
    pub topic: String,
    pub received_at: DateTime<Utc>,
}

/// Goes through a subscriber's inbox and through what lies in its topics, both by event id, once.
pub struct InboxCheck<'a> {
    pub service: &'static str,
    /// Sorted by event id.
    pub facts: std::iter::Peekable<std::slice::Iter<'a, &'a Fact>>,
    pub around: &'a Around<'a>,
    pub matched: u64,
}

impl<'a> InboxCheck<'a> {
    pub fn new(
        service: &'static str,
        facts: &'a [&'a Fact],
        around: &'a Around<'a>,
    ) -> InboxCheck<'a> {
        InboxCheck { service, facts: facts.iter().peekable(), around, matched: 0 }
    }

    /// The next row, in order of event id.
    pub fn row(&mut self, row: &InboxRow, findings: &mut Findings) {
        while let Some(fact) = self.facts.next_if(|fact| fact.event_id < row.event_id) {
            self.unhandled(fact, findings);
        }
        let mut known = false;
        while let Some(fact) = self.facts.next_if(|fact| fact.event_id == row.event_id) {
            known = true;
            findings.unless(fact.place.topic().name == row.topic, "inbox", || {
                format!(
                    "{}: {} is entered for {}, and lies at {}",
                    self.service, row.event_id, row.topic, fact.place
                )
            });
        }
        self.matched += u64::from(known);
        findings.unless(known || row.received_at < self.around.kept_since, "inbox", || {
            format!(
                "{}: {} of {} is entered, and in no topic",
                self.service, row.event_id, row.topic
            )
        });
    }

    pub fn end(&mut self, findings: &mut Findings) {
        while let Some(fact) = self.facts.next() {
            self.unhandled(fact, findings);
        }
    }

    fn unhandled(&self, fact: &Fact, findings: &mut Findings) {
        let service = self.service;
        findings.unless(self.around.letters.has_of(fact.place, service), "inbox", || {
            format!("{service}: never handled {} at {}", fact.event_id, fact.place)
        });
    }
}

/// The topics of facts that a service reads; `stock.items` needs no inbox.
pub fn enters(service: &str, topic: &Topic) -> bool {
    topic.retention != Retention::Compact && topic.subscribers.contains(&service)
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
