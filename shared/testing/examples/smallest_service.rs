//! The smallest service in one file: it hears one event, keeps one table and answers one request.
//!
//! `doors.opened` states that a visitor came through a door. The service counts the visitors of each door, and
//! `GET /doors/{door}` answers with the count. Its test needs a Postgres cluster and no Kafka.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use chassis::{
    Event, HandlerContext, HandlerResult, Handlers, Loader, Loads, Path, Problem, Record, Service,
    Table, UnitOfWork, WriteBatch,
};
use serde::{Deserialize, Serialize};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{PgPool, SqlSafeStr};
use utoipa_axum::{router::OpenApiRouter, routes};

/// A visitor came through a door. The service `door` publishes it. Each record is kept for 14 days, so this service may
/// be down for 13. Without `schema`, the schema is the file `schemas/doors.opened.avsc`.
#[derive(Event, Serialize, Deserialize)]
#[event(topic = "doors.opened", publisher = "door", key = "door", schema = DOOR_OPENED)]
struct DoorOpened {
    door: String,
}

const DOOR_OPENED: &str =
    r#"{"type": "record", "name": "DoorOpened", "fields": [{"name": "door", "type": "string"}]}"#;

/// The visitors of a door.
#[derive(Clone, PartialEq, Serialize, sqlx::FromRow, Record, utoipa::ToSchema)]
#[record(table = "doors", key = "door")]
struct Door {
    door: String,
    visitors: i64,
}

const TABLES: &str = "create table doors (door text primary key, visitors bigint not null)";

/// The rows of one batch.
struct Doors(Table<Door>);

impl Loads<DoorOpened> for Doors {
    fn keys(event: &DoorOpened, keys: &mut BTreeSet<String>) {
        keys.insert(event.door.clone());
    }
}

impl UnitOfWork for Doors {
    type Keys = BTreeSet<String>;

    async fn load(loader: &mut Loader<'_>, keys: BTreeSet<String>) -> sqlx::Result<Doors> {
        Ok(Doors(loader.lock(keys).await?))
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.0);
    }
}

/// `doors.opened` → nothing
fn count_visitor(
    event: &DoorOpened,
    Doors(doors): &mut Doors,
    _: HandlerContext,
) -> HandlerResult<()> {
    let visitors = doors.get(&event.door).map_or(0, |door| door.visitors);
    doors.put(Door { door: event.door.clone(), visitors: visitors + 1 });
    Ok(None)
}

/// Shows how many visitors came through a door.
#[utoipa::path(get, path = "/doors/{door}", security(()), responses((status = 200, body = Door)))]
async fn show_door(
    State(db): State<PgPool>,
    Path(door): Path<String>,
) -> Result<Json<Door>, Problem> {
    let door = Door::find(&db, door).await?;
    door.map(Json).ok_or_else(|| Problem::not_found("this door was never opened"))
}

fn api(db: PgPool) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(show_door)).with_state(db)
}

fn migrator() -> Migrator {
    let (simple, sql) = (MigrationType::Simple, TABLES.into_sql_str());
    Migrator::with_migrations(vec![Migration::new(1, "tables".into(), simple, sql, false)])
}

fn main() -> std::process::ExitCode {
    chassis::main("visit", env!("CARGO_PKG_VERSION"), migrator(), serve)
}

fn handlers() -> Handlers<Doors> {
    Handlers::new().on(count_visitor)
}

async fn serve(service: Service, (): ()) -> anyhow::Result<()> {
    let relay = service.relay();
    let consumer = service.consumer(handlers());
    let (api, admin) = (api(service.db.clone()), consumer.admin());
    service.run(api, "select true as balanced", admin, [relay.into(), consumer.into()]).await
}

#[tokio::test]
async fn each_visitor_counts_once() {
    let visit = testing::TestService::<Doors>::new("visit", migrator()).await;
    let (first, second) = (uuid::Uuid::now_v7(), uuid::Uuid::now_v7());
    let event = DoorOpened { door: "north".into() };
    for event_id in [first, second, first] {
        visit.deliver(&[(event_id, &event)], count_visitor).await.unwrap();
    }
    let shown = testing::TestClient::of_api(api(visit.db.clone())).get("/doors/north").await;
    assert_eq!((shown.status, &shown.body["visitors"]), (200, &2.into()));
}
