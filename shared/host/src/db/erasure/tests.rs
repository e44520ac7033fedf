//! Erasures on a database of their own: what is replaced, what is refused, and what waits.

use messaging::db;
use serde_json::{Value, json};
use sqlx::{PgPool, SqlSafeStr};

use super::*;
use crate::db::migrate::migrate;
use crate::db::migrate::tests::migrator;
use crate::db::pool::connect;
use crate::testing::{config, fresh_database};

/// A table of a service, with an id in each type of column.
const NOTES: &str = "
    create table notes (id bigserial, person uuid primary key, label varchar, detail json, extra jsonb, bytes bytea);
    comment on column notes.person is 'personal';
    comment on column notes.label is 'personal: free text';
    comment on column notes.detail is 'personal';
    comment on column notes.extra is 'personal';
    comment on column notes.bytes is 'personal'";

struct ErasureFixture {
    config: Config,
    /// As the serving role.
    db: PgPool,
    person: Uuid,
}

impl ErasureFixture {
    async fn create(statements: &'static str) -> ErasureFixture {
        let (owner, server) = fresh_database().await;
        let config = config(owner, server);
        migrate("till", &config, migrator([(1, statements.into_sql_str())])).await.unwrap();
        let db = connect("till", &config).unwrap();
        ErasureFixture { config, db, person: Uuid::now_v7() }
    }

    fn request(&self) -> ErasureRequest {
        let (person_id, replacement_id) = (self.person, Uuid::now_v7());
        ErasureRequest { person_id, replacement_id, actor: Some("a test".into()) }
    }

    async fn erase(&self, request: &ErasureRequest) -> anyhow::Result<Erasure> {
        let erased = erase("till", &self.config, request).await?;
        end("till", &self.config, request).await?;
        Ok(erased)
    }

    async fn add_note(&self, person: Uuid) -> sqlx::Result<()> {
        let label = format!("of {person} and {}", person.simple().to_string().to_uppercase());
        let detail = json!({ "person_id": person });
        sqlx::query(
            "insert into notes (person, label, detail, extra, bytes) values ($1, $2, $3, $3, $4)",
        )
        .bind(person)
        .bind(label)
        .bind(detail)
        .bind(every_form(person))
        .execute(&self.db)
        .await
        .map(drop)
    }

    /// A row of each table of the chassis that may name a person.
    async fn add_chassis_rows(&self) {
        let text = self.person.to_string();
        sqlx::raw_sql(AssertSqlSafe(format!(
            "insert into chassis.outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
             values (gen_random_uuid(), 'a', '{text}', '', '\\x0148{}02', now());
             insert into chassis.idempotency_keys (path, key, request_hash, status, location, body, tick)
             values ('/tills/{text}/sums', 'a', 'hash', 201, '/tills/{text}', '{{\"id\": \"{text}\"}}', 0),
                    ('/tills', 'b', 'hash', 201, null, '{{}}', 0);
             insert into chassis.dead_letters
                 (cluster, topic, partition, \"offset\", hash, key, headers, record, kind, reason)
             values ('c', 'a', 0, 0, 'hash', '{text}', '{{\"subject\": \"{text}\"}}', '\\x00{}ff',
                     'undecodable', 'no till of {text}')",
            hex(text.as_bytes()),
            hex(self.person.as_bytes()),
        )))
        .execute(&self.db)
        .await
        .unwrap();
    }

    /// All rows of all tables, as text.
    async fn dump(&self) -> String {
        let tables =
            ["notes", "chassis.outbox", "chassis.idempotency_keys", "chassis.dead_letters"];
        let mut dump = String::new();
        for table in tables.into_iter().chain(["chassis.erasures", "chassis.unfinished_erasures"]) {
            let rows = AssertSqlSafe(format!("select row_to_json(t)::text from {table} as t"));
            let rows: Vec<String> = sqlx::query_scalar(rows).fetch_all(&self.db).await.unwrap();
            dump += &rows.join("\n");
        }
        dump
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes with an id in each form, twice, and with other bytes around it.
fn every_form(id: Uuid) -> Vec<u8> {
    let (text, simple) = (id.to_string(), id.simple().to_string());
    let mut bytes = vec![0, 0x48, 0xff];
    for _ in 0..2 {
        bytes.extend(id.as_bytes());
        bytes.extend(
            [&text, &text.to_uppercase(), &simple, &simple.to_uppercase()]
                .map(|it| it.as_bytes())
                .concat(),
        );
        bytes.extend([0, b'\\', 0x80]);
    }
    bytes
}

#[tokio::test]
async fn an_id_is_replaced_in_every_declared_column_and_its_replacement_is_journalled() {
    let fixture = ErasureFixture::create(NOTES).await;
    let other = Uuid::now_v7();
    for person in [fixture.person, other] {
        fixture.add_note(person).await.unwrap();
    }
    fixture.add_chassis_rows().await;
    let request = fixture.request();
    let erased = fixture.erase(&request).await.unwrap();
    assert_eq!(erased.replacement_id, request.replacement_id);
    let dump = fixture.dump().await.to_lowercase();
    for form in [
        fixture.person.to_string(),
        fixture.person.simple().to_string(),
        hex(fixture.person.to_string().as_bytes()),
    ] {
        assert!(!dump.contains(&form), "{dump}");
    }

    for person in [request.replacement_id, other] {
        let (detail, bytes): (Value, Vec<u8>) =
            sqlx::query_as("select detail, bytes from notes where person = $1 and extra = $2")
                .bind(person)
                .bind(json!({ "person_id": person }))
                .fetch_one(&fixture.db)
                .await
                .unwrap();
        assert_eq!(detail, json!({ "person_id": person }));
        assert_eq!(bytes, every_form(person), "each other byte is where it was");
    }
    let body: Vec<u8> =
        sqlx::query_scalar("select body from chassis.outbox").fetch_one(&fixture.db).await.unwrap();
    let expected = [&[1, 0x48], request.replacement_id.to_string().as_bytes(), &[2]].concat();
    assert_eq!(body, expected);
    // The hash of the letter still identifies its record in Kafka.
    let (hash, record): (Vec<u8>, Vec<u8>) =
        sqlx::query_as("select hash, record from chassis.dead_letters")
            .fetch_one(&fixture.db)
            .await
            .unwrap();
    assert_eq!(
        (&*hash, &*record),
        (&b"hash"[..], &*[&[0], &request.replacement_id.as_bytes()[..], &[0xff]].concat())
    );
    let keys: Vec<(String, Vec<u8>)> =
        sqlx::query_as("select path, request_hash from chassis.idempotency_keys order by key")
            .fetch_all(&fixture.db)
            .await
            .unwrap();
    let path = format!("/tills/{}/sums", request.replacement_id);
    assert_eq!(keys, [(path, b"".to_vec()), ("/tills".to_owned(), b"hash".to_vec())]);
    let journal: Vec<(Uuid, Option<String>)> =
        sqlx::query_as("select replacement_id, actor from chassis.erasures")
            .fetch_all(&fixture.db)
            .await
            .unwrap();
    assert_eq!(journal, [(request.replacement_id, Some("a test".to_owned()))]);

    let of_replacement = ErasureRequest { person_id: request.replacement_id, ..fixture.request() };
    let refused = fixture.erase(&of_replacement).await.unwrap_err().to_string();
    assert_eq!(refused, "nothing was erased: the id is a replacement itself");
    let again = fixture.erase(&fixture.request()).await.unwrap();
    assert_eq!(again.replaced, 0, "a second run finds nothing");
    assert_eq!(fixture.dump().await.to_lowercase(), dump);
}

#[tokio::test]
async fn an_id_in_a_column_that_is_not_declared_refuses_the_erasure_and_nothing_is_changed() {
    const TABLES: &str = concat!(
        "create table notes (id bigserial, person uuid primary key, label varchar, detail json, extra jsonb, bytes bytea);",
        "comment on table notes is 'deletable'; comment on column notes.label is 'personal';",
        "comment on column notes.person is 'personal';",
        "comment on column notes.detail is 'personal'; comment on column notes.extra is 'personal'"
    );
    let fixture = ErasureFixture::create(TABLES).await;
    fixture.add_note(fixture.person).await.unwrap();
    let before = fixture.dump().await;
    let refused = fixture.erase(&fixture.request()).await.unwrap_err().to_string();
    assert!(refused.contains("notes.bytes as well"), "{refused}");
    assert!(!refused.contains(&fixture.person.to_string()), "{refused}");
    assert_eq!(fixture.dump().await, before);
    // The rows of the person do not wait for an erasure that was refused.
    sqlx::query("delete from notes").execute(&fixture.db).await.unwrap();
    fixture.add_note(fixture.person).await.unwrap();
}

#[tokio::test]
async fn no_row_of_a_person_is_added_until_the_erasure_ends_and_a_repeated_run_continues_it() {
    let fixture = ErasureFixture::create(NOTES).await;
    fixture.add_note(fixture.person).await.unwrap();
    let request = fixture.request();
    let erased = erase("till", &fixture.config, &request).await.unwrap();
    let refused = fixture.add_note(fixture.person).await.unwrap_err();
    assert_eq!(db::classify(&refused), DbErrorClass::LockTimeout, "{refused}");
    fixture.add_note(Uuid::now_v7()).await.expect("others go on");
    let repeated = erase("till", &fixture.config, &fixture.request()).await.unwrap();
    assert_eq!(repeated, Erasure { replaced: 0, ..erased });
    for _ in 0..2 {
        end("till", &fixture.config, &request).await.unwrap();
    }
    fixture.add_note(fixture.person).await.expect("a new person");
    let triggers = "select count(*) from pg_trigger where tgname like 'erasure%'";
    assert_eq!(sqlx::query_scalar::<_, i64>(triggers).fetch_one(&fixture.db).await.unwrap(), 0);
}

#[tokio::test]
async fn an_obstacle_of_the_service_refuses_the_erasure() {
    const OBSTACLE: &str = "
        create table notes (id bigserial, person uuid primary key, label varchar, detail json, extra jsonb, bytes bytea);
        comment on table notes is 'deletable';
        create function erasure_obstacle(person uuid) returns text language sql stable as
        $$ select 'a note is open' from notes where notes.person = $1 $$";
    let fixture = ErasureFixture::create(OBSTACLE).await;
    fixture.add_note(fixture.person).await.unwrap();
    let refused = fixture.erase(&fixture.request()).await.unwrap_err().to_string();
    assert_eq!(refused, "nothing was erased: a note is open");
    sqlx::query("delete from notes").execute(&fixture.db).await.unwrap();
    assert_eq!(fixture.erase(&fixture.request()).await.unwrap().replaced, 0);
}

/// The relay deletes a row of the outbox while the erasure has its snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_meets_a_concurrent_change_is_retried() {
    let fixture = ErasureFixture::create(NOTES).await;
    fixture.add_chassis_rows().await;
    let mut relay = fixture.db.begin().await.unwrap();
    sqlx::query("delete from chassis.outbox").execute(&mut *relay).await.unwrap();
    let deleted = async {
        sleep(Duration::from_secs(1)).await;
        relay.commit().await.unwrap();
    };
    let request = fixture.request();
    let (erased, ()) = tokio::join!(fixture.erase(&request), deleted);
    assert!(erased.unwrap().replaced > 0);
    assert!(!fixture.dump().await.contains(&fixture.person.to_string()));
}
