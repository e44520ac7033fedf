//! Two versions of a schema side by side: each version of a service publishes and reads the events of the other.

use super::*;

/// The newer version adds a field with a default and a symbol to an enum that has one.
const OLDER_SCHEMA: &str = r#"{"type": "record", "name": "Changed", "fields": [
    {"name": "till", "type": "string"},
    {"name": "amount", "type": "long"},
    {"name": "unit", "type": {"type": "enum", "name": "Unit", "symbols": ["coins", "notes", "unknown"],
                              "default": "unknown"}}]}"#;
const NEWER_SCHEMA: &str = r#"{"type": "record", "name": "Changed", "fields": [
    {"name": "by", "type": "string", "default": "unknown"},
    {"name": "till", "type": "string"},
    {"name": "amount", "type": "long"},
    {"name": "unit", "type": {"type": "enum", "name": "Unit", "symbols": ["coins", "vouchers", "notes", "unknown"],
                              "default": "unknown"}}]}"#;

/// One version of the event, with a handler that tallies the decoded values.
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
                    static TOPIC: LazyLock<Topic> = LazyLock::new(|| changed_topic($schema));
                    &TOPIC
                }
                fn key(&self) -> String {
                    self.till.clone()
                }
            }

            impl Loads<Changed> for Tills {
                fn keys(event: &Changed, keys: &mut BTreeSet<String>) {
                    keys.insert(understood(event));
                }
            }

            pub fn tally(event: &Changed, tills: &mut Tills, _: HandlerContext) -> HandlerResult<()> {
                tills.add(&understood(event), event.amount);
                Ok(None)
            }

            fn understood(event: &Changed) -> String {
                let words = std::iter::once(format!("{:?}", event.unit));
                $(let words = words.chain([event.$field.clone()]);)?
                words.collect::<Vec<_>>().join(" by ")
            }
        }
    };
}

version!(older, OLDER_SCHEMA, [Coins, Notes, Unknown], []);
version!(newer, NEWER_SCHEMA, [Coins, Vouchers, Notes, Unknown], [by: String]);

/// The topic, as each version declares it.
fn changed_topic(schema: &'static str) -> Topic {
    static NAME: LazyLock<String> =
        LazyLock::new(|| format!("till.changed.{}", Uuid::now_v7().simple()));
    Topic::new(&NAME, names(501).service, schema).days(1)
}

fn from_older(nth: i64) -> older::Changed {
    let unit = [older::Unit::Coins, older::Unit::Notes][nth as usize % 2];
    older::Changed { till: format!("till {}", nth % 5), amount: 1, unit }
}

fn from_newer(nth: i64) -> newer::Changed {
    let unit = [newer::Unit::Vouchers, newer::Unit::Notes][nth as usize % 2];
    newer::Changed { till: format!("till {}", nth % 5), amount: 1, unit, by: "ada".into() }
}

async fn understood<const TEST: u32>(fixture: &Fixture<TEST>) -> Vec<(String, i64)> {
    let understood = fixture.tallies().await.into_iter();
    understood.map(|(what, (counted, _))| (what, counted)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_relay_publishes_what_a_newer_replica_wrote_and_each_version_reads_the_other() {
    let (older, newer) = (older::Changed::topic(), newer::Changed::topic());
    // Two services, of which only one was redeployed.
    let (service, neighbour) = (Fixture::<501>::create().await, Fixture::<502>::create().await);
    service.create_topic(older, &[]).await;
    let ids = [
        service.register_schema(older, OLDER_SCHEMA).await,
        service.register_schema(newer, NEWER_SCHEMA).await,
    ];
    assert_ne!(ids[0], ids[1]);
    let old_reader = service.consumer_of(Handlers::new().on(older::tally));
    let new_reader = neighbour.consumer_of(Handlers::new().on(newer::tally));
    let readers = [
        RunningLoop::start(|stop| old_reader.run(stop)),
        RunningLoop::start(|stop| new_reader.run(stop)),
    ];

    // Replicas of both versions write; each has stored its schema at its start.
    outbox::store_schemas(&service.db, &[older, newer]).await.unwrap();
    // A replica of the older version relays, then one of the newer: which it is makes no difference.
    for _ in 0..2 {
        for nth in 0..20 {
            service.publish_together(&[envelope(&from_older(nth))]).await;
            service.publish_together(&[envelope(&from_newer(nth))]).await;
        }
        service.relay_all().await;
    }

    let mut written = BTreeMap::new();
    for record in service.records(older).await {
        let (id, _) = messaging::event::avro::unframe(record.payload().unwrap()).unwrap();
        *written.entry(id).or_insert(0) += 1;
    }
    assert_eq!(written, ids.map(|id| (id, 40)).into(), "each goes out as it was written");

    let all = |understood: &[(String, i64)]| understood.iter().map(|(_, n)| n).sum::<i64>() == 80;
    eventually("everything is read", async || {
        all(&understood(&service).await) && all(&understood(&neighbour).await)
    })
    .await;
    let expected = |what: &[(&str, i64)]| -> Vec<(String, i64)> {
        what.iter().map(|(what, count)| (what.to_string(), *count)).collect()
    };
    let by_older = expected(&[("Coins", 20), ("Notes", 40), ("Unknown", 20)]);
    assert_eq!(understood(&service).await, by_older, "a new symbol is unknown, a new field unseen");
    let by_newer = [
        ("Coins by unknown", 20),
        ("Notes by ada", 20),
        ("Notes by unknown", 20),
        ("Vouchers by ada", 20),
    ];
    assert_eq!(understood(&neighbour).await, expected(&by_newer), "a default stands in");
    for till_letters in [service.dead_letters().await, neighbour.dead_letters().await] {
        assert!(till_letters.is_empty(), "{till_letters:?}");
    }
    for reader in readers {
        reader.stop().await;
    }
}
