//! One run of the checker: it waits for quiescence, reads the databases and all topics, runs every
//! check and returns a [`Verdict`].
//!
//! Rows are streamed by order id and compared with the records, of which the checker keeps some 100
//! bytes each. So its memory is bounded by the number of records.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::Result;
use checker::dead_letters::{DeadLetterIndex, check_dead_letters};
use checker::inbox::{InboxContext, check_inbox};
use checker::record::{EventRecord, RecordPosition};
use checker::{Sources, retained_since};
use declaration::SUBSCRIPTIONS;
use futures::stream::StreamExt;

use crate::checker::balances::{
    AccountRow, ItemDescription, ItemRow, Totals, check_account, check_item, check_totals,
};
use crate::checker::erasures::Erasures;
use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::{I4, I13};
use crate::checker::order_cases::OrderCases;
use crate::checker::records::check_records;
use crate::checker::sources::system;
use crate::checker::tally::{CheckContext, Tally};
use crate::checker::topic_reader::TopicsSnapshot;
use crate::checker::verdict::Verdict;
use crate::checker::waivers::Waivers;
use crate::checker::{change_log, quiescence, shipments};
use crate::client::http_client::Client;
use crate::console::seconds;

/// Options of a run.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckOptions {
    /// How long to wait for quiescence.
    #[arg(long = "within-seconds", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
}

impl Default for CheckOptions {
    fn default() -> CheckOptions {
        CheckOptions { timeout: Duration::from_secs(60) }
    }
}

/// Waits for quiescence, then checks.
pub async fn run(client: &Client, options: &CheckOptions) -> Result<Verdict> {
    check_all(client, options, async || Ok(None)).await
}

/// Like [`run`], with the dead letters that the run made or found at its start. Any other dead
/// letter is a finding.
pub async fn run_expecting(
    client: &Client,
    options: &CheckOptions,
    expected: &HashSet<RecordPosition>,
) -> Result<Verdict> {
    check_all(client, options, async || Ok(Some(expected.clone()))).await
}

/// Like [`run_expecting`], for dead letters that are complete only after quiescence.
pub async fn run_expecting_with(
    client: &Client,
    options: &CheckOptions,
    expected: impl AsyncFnOnce() -> Result<HashSet<RecordPosition>>,
) -> Result<Verdict> {
    check_all(client, options, async || expected().await.map(Some)).await
}

async fn check_all(
    client: &Client,
    options: &CheckOptions,
    expected: impl AsyncFnOnce() -> Result<Option<HashSet<RecordPosition>>>,
) -> Result<Verdict> {
    let began = Instant::now();
    let system = system(client);
    let sources = Sources::connect(&system).await?;
    let mut findings = Findings::default();
    let mut waivers = Waivers::load(sources.databases()).await?;
    let ledger = client.addresses.carrier_ledger.as_deref();
    quiescence::require(&sources, &waivers, ledger, options.timeout, &mut findings).await?;
    let before = sources.end_offsets().await?;
    let dead_letter_rows = sources.dead_letters().await?;
    let count = |state: &str| dead_letter_rows.iter().filter(|row| row.state == state).count();
    let (dead_letters_replayed, dead_letters_waiting) = (count("replayed"), count("waiting"));
    // After the dead letters are read, so that the expected set misses none of them.
    if let Some(expected) = expected().await? {
        check_dead_letters(&dead_letter_rows, &expected, &mut findings);
    }
    let discarded = sources.discarded_events().await?;
    let dead_letters = DeadLetterIndex::from_rows(&dead_letter_rows, discarded);

    let mut snapshot = TopicsSnapshot::read(&system, dead_letters.positions().collect()).await?;
    let erasures = Erasures::load(sources.databases()).await?;
    erasures.check_ended(&mut findings);
    let context = CheckContext {
        dead_letters: &dead_letters,
        erasures: &erasures,
        retained_since: retained_since(system.topics),
        clock_skew_ms: sources.clock_skew_ms()?,
        carried_by_connector: sources.carried_by_connector().await?,
    };
    check_records(&snapshot, &sources.services(), &context, &mut findings);
    snapshot.kept.of_orders.sort_unstable_by_key(|record| (record.order_id, record.position));
    let mut tally = Tally::default();
    let mut cases = OrderCases::new(&sources, &snapshot.kept.of_orders);
    while let Some(case) = cases.next_case().await? {
        waivers.check_case(&case, &context, &mut tally, &mut findings);
    }
    let inbox_context = InboxContext {
        dead_letters: &dead_letters,
        retained_since: context.retained_since,
        unanswered: &tally.unanswered,
    };
    let handled = check_inboxes(&sources, &snapshot, &inbox_context, &mut findings).await?;
    let money = check_money(&sources, &mut findings).await?;
    check_totals(money.taken - waivers.unrefunded_cents, &tally, &mut findings);
    let stock = check_stock(&sources, &snapshot, &waivers, &mut findings).await?;
    let shipments = shipments::check(&sources, ledger, &waivers, &mut findings).await?;
    let changes = change_log::check(sources.databases(), &mut findings).await?;
    findings.unless(sources.end_offsets().await? == before, I13, "not quiescent", || {
        "records were written during the check. Stop all clients that place orders, and check again".into()
    });
    Ok(Verdict {
        tally,
        money,
        stock,
        shipments,
        records: snapshot.records,
        republished: snapshot.kept.republished,
        unknown_records: snapshot.unknown.len() as u64,
        handled,
        dead_letters_waiting: dead_letters_waiting as i64,
        dead_letters_replayed: dead_letters_replayed as u64,
        changes,
        waivers,
        findings,
        duration: began.elapsed(),
    })
}

/// The position of every dead letter of a stack. A run reads it at its start, since it did not make
/// these.
pub async fn dead_letter_positions(client: &Client) -> Result<HashSet<RecordPosition>> {
    let dead_letters = Sources::connect(&system(client)).await?.dead_letters().await?;
    Ok(dead_letters.into_iter().map(|dead_letter| dead_letter.position).collect())
}

/// The number of events that each service handled.
async fn check_inboxes(
    sources: &Sources,
    snapshot: &TopicsSnapshot,
    context: &InboxContext<'_>,
    findings: &mut Findings,
) -> Result<BTreeMap<&'static str, u64>> {
    let mut handled = BTreeMap::new();
    for (service, db) in sources.databases() {
        let records = snapshot.kept.of_orders.iter().chain(&snapshot.kept.others);
        let records = records
            .map(|record| EventRecord { event_id: record.event_id, position: record.position });
        handled.insert(
            *service,
            check_inbox(service, &SUBSCRIPTIONS, db, records, context, findings).await?,
        );
    }
    Ok(handled)
}

async fn check_money(sources: &Sources, findings: &mut Findings) -> Result<Totals> {
    let mut rows = sqlx::query_as::<_, AccountRow>(
        "select customer_id,
                coalesce(deposits_cents, 0)::bigint as deposits_cents,
                coalesce(verified_cents, 0)::bigint as verified_cents,
                deposited_cents, balance_cents, taken_cents
         from accounts
         full join (select customer_id, sum(amount_cents) as deposits_cents
                    from deposits group by customer_id) as deposits using (customer_id)
         full join (select customer_id, sum(amount_cents) as verified_cents
                    from payments where state = 'verified'
                    group by customer_id) as payments using (customer_id)",
    )
    .fetch(sources.db("payment"));
    let mut money = Totals::default();
    while let Some(row) = rows.next().await {
        check_account(&row?, &mut money, findings);
    }
    Ok(money)
}

async fn check_stock(
    sources: &Sources,
    snapshot: &TopicsSnapshot,
    waivers: &Waivers,
    findings: &mut Findings,
) -> Result<Totals> {
    let known: Vec<ItemDescription> =
        sqlx::query_as("select * from items").fetch_all(sources.db("order")).await?;
    let known: HashMap<&str, &ItemDescription> =
        known.iter().map(|item| (item.sku.as_str(), item)).collect();
    let rows: Vec<ItemRow> = sqlx::query_as(
        "select sku, coalesce(deliveries, 0)::bigint as deliveries, coalesce(held, 0)::bigint as held,
                name, price_cents, currency, version, delivered, available, reserved, event_id
         from items
         full join (select sku, sum(quantity) as deliveries
                    from deliveries group by sku) as deliveries using (sku)
         full join (select line ->> 'sku' as sku, sum((line ->> 'quantity')::bigint) as held
                    from reservations, jsonb_array_elements(lines) as line
                    where state = 'reserved' group by 1) as lines using (sku)",
    )
    .fetch_all(sources.db("stock"))
    .await?;
    let mut stock = Totals::default();
    for row in &rows {
        let newest = snapshot.kept.items.get(&row.sku);
        let known = match waivers.covers(&row.sku) {
            true => newest.map(|(_, newest)| newest),
            false => known.get(row.sku.as_str()).copied(),
        };
        check_item(row, newest, known, &mut stock, findings);
    }
    let skus: HashSet<&str> = rows.iter().map(|row| row.sku.as_str()).collect();
    let unknown_skus = known.keys().copied().chain(snapshot.kept.items.keys().map(String::as_str));
    for sku in unknown_skus.filter(|sku| !skus.contains(sku)).collect::<HashSet<_>>() {
        findings.add(I4, "item", || format!("{sku}: stock does not have this item"));
    }
    Ok(stock)
}
