//! What a connector captures in place of the relay. These databases have no log for connectors, so the rows are copied
//! as they are captured: the tests of the whole stack run a real one.

use chrono::DateTime;
use messaging::outbox::cdc::connector::is_carrying;
use messaging::outbox::cdc::schema_ids;
use messaging::outbox::query::{OutboxRow, record_headers};
use rdkafka::message::Headers;

use super::*;
use messaging::outbox::Carrier;

/// Copies each captured row, with the columns in their order.
const COPY: &str = "
    create table public.copies (nth bigint generated always as identity, captured json);
    create function public.copy_captured() returns trigger language plpgsql security definer as $$
    begin
        insert into public.copies (captured) values (row_to_json(new));
        return null;
    end $$;
    create trigger copy after insert on chassis.captured_events
        for each row execute function public.copy_captured();
    create trigger copy after insert on chassis.captured_answers
        for each row execute function public.copy_captured();
    grant select on public.copies to public;";

/// The columns that are no header.
const NO_HEADERS: [&str; 4] = ["position", "topic", "key", "record"];

impl<const TEST: u32> Fixture<TEST> {
    async fn copy_captured(&self) {
        let mut db = self.superuser.connect().await.unwrap();
        sqlx::raw_sql(COPY).execute(&mut db).await.unwrap();
    }

    async fn store_schema_ids(&self) {
        let mut db = self.db.acquire().await.unwrap();
        let topics = [names(TEST).counted, names(TEST).tallied];
        schema_ids::store(&self.registry(), &mut db, self.service, &topics).await.unwrap();
    }

    /// Returns whether no row is left.
    async fn hand_over(&self) -> bool {
        let hand_over = sqlx::query_scalar("select chassis.deliver_by_connector()");
        hand_over.fetch_one(&self.db).await.unwrap()
    }

    /// What was captured, in its order.
    async fn captured(&self) -> Vec<serde_json::Map<String, serde_json::Value>> {
        let copies = "select captured::text from public.copies order by nth";
        let copies: Vec<String> = sqlx::query_scalar(copies).fetch_all(&self.db).await.unwrap();
        copies.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_captured_row_is_the_record_that_the_relay_would_send() {
    let fixture = Fixture::<630>::create_with_contracts().await;
    fixture.copy_captured().await;
    fixture.store_schema_ids().await;
    let time: DateTime<chrono::Utc> = "2026-11-28T03:00:00.120000Z".parse().unwrap();
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned();
    let id = fixture.register_schema(names(630).counted, names(630).counted.schema).await;
    let mut expected = Vec::new();
    for (nth, causation_id) in [(1, None), (2, Some(Uuid::now_v7())), (3, None)] {
        if nth == 2 {
            // The first row has waited for the relay.
            assert_eq!(fixture.count("chassis.outbox").await, 1);
            fixture.hand_over().await;
        }
        let mut envelope = envelope(&counted::<630>("till", nth));
        (envelope.causation_id, envelope.occurred_at) = (causation_id, time);
        envelope.traceparent = Some(traceparent.clone());
        let Envelope { event, event_id, .. } = &envelope;
        let row = OutboxRow {
            position: 0,
            event_id: *event_id,
            topic: event.topic.name.to_owned(),
            key: event.key.clone(),
            schema_fingerprint: Vec::new(),
            body: event.body.clone(),
            traceparent: envelope.traceparent.clone(),
            tracestate: None,
            causation_id,
            occurred_at: time,
        };
        expected.push((row, frame(id, &event.body)));
        fixture.publish_together(&[envelope]).await;
    }

    let captured = fixture.captured().await;
    assert_eq!(captured.len(), expected.len());
    for (captured, (row, record)) in captured.iter().zip(&expected) {
        let hex: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(captured["topic"], *row.topic);
        assert_eq!(captured["key"], *row.key);
        assert_eq!(captured["record"], format!("\\x{hex}"));
        let dataschema = &names(630).counted.codec().dataschema;
        let headers = record_headers(&format!("/{}", fixture.service), row, dataschema);
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|header| (header.key, std::str::from_utf8(header.value.unwrap()).unwrap()))
            .collect();
        let mut of_row: Vec<(&str, &str)> = captured
            .iter()
            .filter(|(column, _)| !NO_HEADERS.contains(&column.as_str()))
            .map(|(column, value)| (column.as_str(), value.as_str().unwrap()))
            .collect();
        // The map of the test has lost the order of the columns, which the file of the connector gives the headers.
        of_row.sort_by_key(|(column, _)| headers.iter().position(|(name, _)| name == column));
        assert_eq!(of_row, headers);
    }
    for table in ["chassis.outbox", "chassis.captured_events", "chassis.captured_answers"] {
        assert_eq!(fixture.count(table).await, 0, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_a_known_id_waits_and_a_connector_that_is_relieved_captures_nothing() {
    let fixture = Fixture::<631>::create_with_contracts().await;
    fixture.copy_captured().await;
    fixture.hand_over().await;
    fixture.publish(&[counted::<631>("till", 1)]).await;
    assert_eq!(fixture.count("chassis.outbox").await, 1);
    fixture.store_schema_ids().await;
    fixture.hand_over().await;
    assert_eq!(fixture.count("chassis.outbox").await, 0);
    assert_eq!(fixture.captured().await.len(), 1);

    sqlx::query("select chassis.deliver_by_relay()").execute(&fixture.db).await.unwrap();
    fixture.publish(&[counted::<631>("till", 2)]).await;
    assert_eq!(fixture.count("chassis.outbox").await, 1);
    let topics: Vec<_> = fixture
        .captured()
        .await
        .iter()
        .map(|it| it["topic"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(topics, [names(631).counted.name, "connect-heartbeats"]);

    // There is no slot, so there is nothing to wait for.
    fixture.relay_all().await;
    assert_eq!(fixture.published().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn until_a_connector_reads_the_log_the_relay_goes_on() {
    let fixture = Fixture::<632>::create_with_contracts().await;
    let topics = [names(632).counted, names(632).tallied];
    let relay = fixture.relay().carried_by(Carrier::Cdc, &topics);
    let relaying = RunningLoop::start(|stop| relay.run(stop));
    fixture.deliver(&[counted::<632>("till", 1)]).await;
    sleep(QUIET_PERIOD).await;
    fixture.deliver(&[counted::<632>("till", 2)]).await;
    relaying.stop().await;
    assert_eq!(fixture.published().await.len(), 2);
    let mut db = fixture.db.acquire().await.unwrap();
    assert!(!is_carrying(&mut db).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn if_the_slot_is_gone_the_relay_carries_the_outbox_until_there_is_one() {
    let fixture = Fixture::<633>::create_with_contracts().await;
    fixture.store_schema_ids().await;
    fixture.hand_over().await;
    let topics = [names(633).counted, names(633).tallied];
    let relay = fixture.relay().carried_by(Carrier::Cdc, &topics);
    let relaying = RunningLoop::start(|stop| relay.run(stop));
    eventually("the relay takes the outbox back", async || {
        let mut db = fixture.db.acquire().await.unwrap();
        !is_carrying(&mut db).await.unwrap()
    })
    .await;
    fixture.deliver(&[counted::<633>("till", 1)]).await;
    relaying.stop().await;
    assert_eq!(fixture.published().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_outbox_is_handed_over_in_pieces_and_in_its_order() {
    const ROWS: i64 = 25_000;
    let fixture = Fixture::<634>::create_with_contracts().await;
    fixture.copy_captured().await;
    fixture.store_schema_ids().await;
    fixture.publish(&[counted::<634>("till", 1)]).await;
    let fill =
        "insert into chassis.outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
                select gen_random_uuid(), topic, number::text as key, schema_fingerprint, body, occurred_at
                from chassis.outbox, generate_series(2, $1) number order by number";
    sqlx::query(fill).bind(ROWS).execute(&fixture.db).await.unwrap();
    for expected in [false, false, true] {
        let is_carrying = async || is_carrying(&mut fixture.db.acquire().await.unwrap()).await;
        assert!(!is_carrying().await.unwrap());
        assert_eq!(fixture.hand_over().await, expected);
        // Until nothing is left, the relay waits for what was captured.
        let waits = "select count(drain_to) from chassis.delivery";
        assert_eq!(fixture.query_number(waits).await, i64::from(!expected));
        assert_eq!(is_carrying().await.unwrap(), expected);
    }
    let events =
        fixture.captured().await.into_iter().filter(|it| it["topic"] != "connect-heartbeats");
    let keys: Vec<String> = events.map(|it| it["key"].as_str().unwrap().to_owned()).collect();
    let expected = ["till".to_owned()].into_iter().chain((2..=ROWS).map(|nth| nth.to_string()));
    assert!(keys.into_iter().eq(expected));
}
