//! Two versions of a schema side by side: each version of a service publishes what the other one
//! wrote, and reads it.

use super::*;

/// The newer version adds a field with a default and a symbol to an enum that has one.
const OLDER: &str = r#"{"type": "record", "name": "Changed", "fields": [
    {"name": "till", "type": "string"},
    {"name": "amount", "type": "long"},
    {"name": "unit", "type": {"type": "enum", "name": "Unit", "symbols": ["coins", "notes", "unknown"],
                              "default": "unknown"}}]}"#;
const NEWER: &str = r#"{"type": "record", "name": "Changed", "fields": [
    {"name": "by", "type": "string", "default": "nobody"},
    {"name": "till", "type": "string"},
    {"name": "amount", "type": "long"},
    {"name": "unit", "type": {"type": "enum", "name": "Unit", "symbols": ["coins", "vouchers", "notes", "unknown"],
                              "default": "unknown"}}]}"#;

/// One version of the event, with a handler that tallies what it understood.
macro_rules! version {
    ($version:ident, $schema:expr, [$($symbol:ident),*], [$($field:ident: $type:ty)?]) => {
        mod $version {
            use super::*;

            #[derive(Clone, Debug, Serialize, Deserialize)]
            pub struct Changed {
                $(pub $field: $type,)?
                pub till: String,
                pub amount: i64,
                pub unit: Unit,
            }

            #[derive(Clone, Copy, Debug, Serialize, Deserialize)]
            #[serde(rename_all = "snake_case")]
            pub enum Unit { $($symbol),* }

            impl Event for Changed {
                fn topic() -> &'static Topic {
                    static TOPIC: LazyLock<Topic> = LazyLock::new(|| changed($schema));
                    &TOPIC
                }
                fn key(&self) -> String {
                    self.till.clone()
                }
            }

            impl Touches<Changed> for Drawer {
                fn touch(event: &Changed, keys: &mut BTreeSet<String>) {
                    keys.insert(understood(event));
                }
            }

            pub fn tally(event: &Changed, drawer: &mut Drawer, _: At) -> Answer<()> {
                drawer.add(&understood(event), event.amount);
                Ok(None)
            }

            pub fn discarded(_: &Changed, _: &Drawer) -> Loss {
                Loss::that("It is not tallied.")
            }

            fn understood(event: &Changed) -> String {
                let words = std::iter::once(format!("{:?}", event.unit));
                $(let words = words.chain([event.$field.clone()]);)?
                words.collect::<Vec<_>>().join(" by ")
            }
        }
    };
}

version!(older, OLDER, [Coins, Notes, Unknown], []);
version!(newer, NEWER, [Coins, Vouchers, Notes, Unknown], [by: String]);

/// The one topic, as either version declares it.
fn changed(schema: &'static str) -> Topic {
    static NAME: LazyLock<String> =
        LazyLock::new(|| format!("till.changed.{}", Uuid::now_v7().simple()));
    let heard_by = vec![names(501).service, names(502).service].leak();
    Topic::new(&NAME, names(501).service, heard_by, 3, Retention::Days(1), schema)
}

fn from_older(nth: i64) -> older::Changed {
    let unit = [older::Unit::Coins, older::Unit::Notes][nth as usize % 2];
    older::Changed { till: format!("till {}", nth % 5), amount: 1, unit }
}

fn from_newer(nth: i64) -> newer::Changed {
    let unit = [newer::Unit::Vouchers, newer::Unit::Notes][nth as usize % 2];
    newer::Changed { till: format!("till {}", nth % 5), amount: 1, unit, by: "ada".into() }
}

/// Writes an event into the outbox, as a replica of its version does.
async fn publish<const TEST: u32, E: Event>(till: &Till<TEST>, event: &E) {
    let mut tx = till.db.begin().await.unwrap();
    let (event_id, occurred_at) = (Uuid::now_v7(), chrono::Utc::now());
    let event = Outgoing::of(event);
    let envelope = Envelope { event, event_id, traceparent: None, cause: None, occurred_at };
    super::publish(&mut tx, &[envelope]).await;
    tx.commit().await.unwrap();
    till.wake.relay.notify_one();
}

/// Runs a relay until the outbox is empty; which version it was built with makes no difference.
async fn relay_all<const TEST: u32>(till: &Till<TEST>) {
    let relay = till.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    till.outbox_is_empty().await;
    relaying.stop().await;
}

async fn understood<const TEST: u32>(till: &Till<TEST>) -> Vec<(String, i64)> {
    let understood = till.tallies().await.into_iter();
    understood.map(|(what, (counted, _))| (what, counted)).collect()
}

fn consumer<const TEST: u32>(till: &Till<TEST>) -> Consumer<Drawer> {
    let beat = Heartbeats::new().register("consumer", WITHIN);
    let (db, wake) = (till.db.clone(), till.wake.clone());
    Consumer::new(till.service, &till.config.kafka, db, till.registry(), wake, beat)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_relay_publishes_what_a_newer_replica_wrote_and_each_version_reads_the_other() {
    let (older, newer) = (older::Changed::topic(), newer::Changed::topic());
    // Two services, of which one was deployed anew and the other was not.
    let (service, neighbour) = (Till::<501>::open().await, Till::<502>::open().await);
    service.create_topic(older, &[]).await;
    let ids = [service.register(older, OLDER).await, service.register(newer, NEWER).await];
    assert_ne!(ids[0], ids[1]);
    let old_reader = consumer(&service).on(older::tally, older::discarded);
    let new_reader = consumer(&neighbour).on(newer::tally, newer::discarded);
    let readers =
        [Running::start(|stop| old_reader.run(stop)), Running::start(|stop| new_reader.run(stop))];

    // Replicas of both versions write, as each would that has just been started.
    outbox::store_schemas(&service.db, &[older, newer]).await.unwrap();
    for nth in 0..20 {
        publish(&service, &from_older(nth)).await;
        publish(&service, &from_newer(nth)).await;
    }
    relay_all(&service).await;
    // Then a replica of the newer version leads.
    for nth in 0..20 {
        publish(&service, &from_older(nth)).await;
        publish(&service, &from_newer(nth)).await;
    }
    relay_all(&service).await;

    let mut written = BTreeMap::new();
    for record in service.records(older).await {
        let (id, _) = crate::avro::unframe(record.payload().unwrap()).unwrap();
        *written.entry(id).or_insert(0) += 1;
    }
    assert_eq!(written, ids.map(|id| (id, 40)).into(), "each goes out as it was written");

    let all = |understood: &[(String, i64)]| understood.iter().map(|(_, n)| n).sum::<i64>() == 80;
    eventually("everything is read", async || {
        all(&understood(&service).await) && all(&understood(&neighbour).await)
    })
    .await;
    let told = |what: &[(&str, i64)]| -> Vec<(String, i64)> {
        what.iter().map(|(what, count)| (what.to_string(), *count)).collect()
    };
    let by_older = told(&[("Coins", 20), ("Notes", 40), ("Unknown", 20)]);
    assert_eq!(understood(&service).await, by_older, "a new symbol is unknown, a new field unseen");
    let by_newer = [
        ("Coins by nobody", 20),
        ("Notes by ada", 20),
        ("Notes by nobody", 20),
        ("Vouchers by ada", 20),
    ];
    assert_eq!(understood(&neighbour).await, told(&by_newer), "a default stands in");
    for till_letters in [service.letters().await, neighbour.letters().await] {
        assert!(till_letters.is_empty(), "{till_letters:?}");
    }
    for reader in readers {
        reader.stop().await;
    }
}
