//! A registry that was replaced or set back, and gives ids to other schemas than before.

use axum::Router;
use axum::extract::Request;
use messaging::event::avro::{dataschema, unframe};
use serde_json::json;
use tokio::net::TcpListener;

use super::*;

/// A schema of another topic that reads the bodies of [`Counted`]: its fields have the same types.
const OTHER_SCHEMA: &str = r#"{"type": "record", "name": "Other", "fields": [
    {"name": "drawer", "type": "string"},
    {"name": "coins", "type": "long"},
    {"name": "by", "type": ["null", "string"], "default": null}]}"#;

const ID: u32 = 7;

/// A registry with the schemas that the test gives it. It has the schema of every subject under the first id of the
/// schema.
#[derive(Clone, Default)]
struct Registry(Arc<Mutex<BTreeMap<u32, String>>>);

impl Registry {
    async fn serve(&self) -> String {
        let registry = self.clone();
        let answer = async move |request: Request| {
            let path = request.uri().path().to_owned();
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            registry.answer(&path, &body)
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, Router::new().fallback(answer)).await });
        url
    }

    fn answer(&self, path: &str, body: &[u8]) -> (StatusCode, axum::Json<serde_json::Value>) {
        let schemas = self.0.lock();
        let found = match path.strip_prefix("/schemas/ids/") {
            Some(id) => schemas.get(&id.parse().unwrap()).map(|schema| json!({ "schema": schema })),
            None => {
                let wanted: serde_json::Value = serde_json::from_slice(body).unwrap();
                let mut ids = schemas.iter().filter(|(_, schema)| wanted["schema"] == **schema);
                ids.next().map(|(id, schema)| json!({ "id": id, "schema": schema }))
            }
        };
        match found {
            Some(found) => (StatusCode::OK, axum::Json(found)),
            None => {
                (StatusCode::NOT_FOUND, axum::Json(json!({ "error_code": 40403, "message": "" })))
            }
        }
    }

    fn replace(&self, schemas: &[(u32, &str)]) {
        *self.0.lock() = schemas.iter().map(|(id, schema)| (*id, (*schema).to_owned())).collect();
    }
}

impl<const TEST: u32> Fixture<TEST> {
    async fn with_registry(registry: &Registry) -> Fixture<TEST> {
        let url = registry.serve().await;
        let fixture = Fixture::<TEST>::create().await;
        fixture.create_topic(names(TEST).counted, &[]).await;
        fixture.with_config(|config| config.schema_registry.schema_registry_url = url)
    }

    /// A record with the id of [`ID`], and with this header.
    fn record(&self, nth: i64, dataschema: Option<&str>) -> OwnedMessage {
        let event: Counted<TEST> = counted("a", 1);
        let headers = event_id_header(&Uuid::now_v7().to_string());
        let headers = dataschema.into_iter().fold(headers, |headers, value| {
            headers.insert(Header { key: "ce_dataschema", value: Some(value) })
        });
        OwnedMessage::new(
            Some(frame(ID, &Outgoing::from_event(&event).body)),
            Some(b"a".to_vec()),
            names(TEST).counted.name.to_owned(),
            Timestamp::now(),
            0,
            nth,
            Some(headers),
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_waits_while_its_id_means_another_schema_than_before_unless_it_names_its_own() {
    let registry = Registry::default();
    registry.replace(&[(ID, COUNTED_SCHEMA)]);
    let fixture = Fixture::<640>::with_registry(&registry).await;
    let own = dataschema(COUNTED_SCHEMA).unwrap();
    fixture.handle(vec![fixture.record(0, None), fixture.record(1, Some(&own))]).await;
    assert_eq!(fixture.counted().await, 2);
    let kept = "select count(*) from chassis.schema_ids";
    assert_eq!(fixture.query_number(kept).await, 1, "one row for the id");

    registry.replace(&[(ID, OTHER_SCHEMA), (8, COUNTED_SCHEMA)]);
    // A service that starts now has only what its database keeps.
    let stepped = fixture.stepped_consumer();
    let mut batches = stepped.batches();
    let batch = vec![fixture.record(2, None), fixture.record(3, Some(&own))];
    batches.handle(batch, &Assignment::default()).await;
    assert_eq!(fixture.counted().await, 3, "the one that names its schema");
    assert!(batches.next_due().is_some() && fixture.dead_letters().await.is_empty());
    sleep(QUIET_PERIOD).await;
    batches.retry_deferred().await;
    assert_eq!((fixture.counted().await, fixture.dead_letters().await.len()), (3, 0));

    registry.replace(&[(ID, COUNTED_SCHEMA)]);
    eventually("the other one, once the registry is right", async || {
        batches.retry_deferred().await;
        batches.next_due().is_none()
    })
    .await;
    assert_eq!((fixture.counted().await, fixture.dead_letters().await.len()), (4, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_decides_that_an_id_means_another_schema_from_now_on() {
    let registry = Registry::default();
    registry.replace(&[(ID, OTHER_SCHEMA)]);
    let fixture = Fixture::<641>::with_registry(&registry).await;
    let insert = "insert into chassis.schema_ids (registry_id, dataschema, schema, referenced)
                  values (7, 'urn:avro:sha-256:00', '\"null\"', '{}')";
    sqlx::query(insert).execute(&fixture.db).await.unwrap();
    let stepped = fixture.stepped_consumer();
    let mut batches = stepped.batches();
    batches.handle(vec![fixture.record(0, None)], &Assignment::default()).await;
    assert!(batches.next_due().is_some());
    registry.replace(&[(ID, COUNTED_SCHEMA)]);
    fixture.execute_as_superuser("delete from chassis.schema_ids").await;
    eventually("its effect", async || {
        batches.retry_deferred().await;
        batches.next_due().is_none()
    })
    .await;
    assert_eq!((fixture.counted().await, fixture.dead_letters().await.len()), (1, 0));
}

/// An id that no record was read with before is unknown to the database, and the schema that the record names to all.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_schema_is_nowhere_waits_and_its_id_is_not_kept() {
    let registry = Registry::default();
    registry.replace(&[(ID, OTHER_SCHEMA)]);
    let fixture = Fixture::<642>::with_registry(&registry).await;
    let named = dataschema(&newer_schema()).unwrap();
    let stepped = fixture.stepped_consumer();
    let mut batches = stepped.batches();
    batches.handle(vec![fixture.record(0, Some(&named))], &Assignment::default()).await;
    assert!(batches.next_due().is_some() && fixture.dead_letters().await.is_empty());
    assert_eq!(fixture.count("chassis.schema_ids").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_has_lost_an_id_changes_nothing_for_an_id_that_was_used() {
    let registry = Registry::default();
    registry.replace(&[(ID, COUNTED_SCHEMA)]);
    let fixture = Fixture::<643>::with_registry(&registry).await;
    fixture.handle(vec![fixture.record(0, None)]).await;
    registry.replace(&[]);
    fixture.handle(vec![fixture.record(1, None)]).await;
    assert_eq!((fixture.counted().await, fixture.dead_letters().await.len()), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_relay_takes_the_new_ids_and_each_record_names_its_schema() {
    let registry = Registry::default();
    registry.replace(&[(ID, COUNTED_SCHEMA)]);
    let fixture = Fixture::<644>::with_registry(&registry).await;
    let (topic, own) = (names(644).counted, dataschema(COUNTED_SCHEMA).unwrap());
    let relaying = fixture.start_relay();
    fixture.deliver(&[counted("a", 1)]).await;
    registry.replace(&[(ID, OTHER_SCHEMA), (9, COUNTED_SCHEMA)]);
    let ids = async || {
        let records = fixture.records(topic).await;
        for record in &records {
            assert_eq!(header(record, "ce_dataschema"), Some(&*own));
        }
        let id = |record: &OwnedMessage| unframe(record.payload().unwrap()).unwrap().0;
        records.iter().map(id).collect::<Vec<_>>()
    };
    assert_eq!(ids().await, [ID]);
    eventually("the new id", async || {
        fixture.deliver(&[counted("a", 1)]).await;
        ids().await.last() == Some(&9)
    })
    .await;
    // Without its schema the event waits, and is not sent under an id that means nothing.
    registry.replace(&[]);
    eventually("the registry to be found empty", async || {
        fixture.publish(&[counted("a", 1)]).await;
        sleep(Duration::from_millis(300)).await;
        fixture.count("chassis.outbox").await > 0
    })
    .await;
    registry.replace(&[(11, COUNTED_SCHEMA)]);
    fixture.wait_for_empty_outbox().await;
    assert_eq!(ids().await.last(), Some(&11));
    relaying.stop().await;
}
