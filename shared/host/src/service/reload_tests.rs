//! A service whose password changes while it works.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::middleware::from_fn;
use axum::routing::get;
use messaging::db::connection::DedicatedConnection;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::time::{Instant, timeout};
use tower::ServiceExt;

use super::*;
use crate::config::env::read_from;
use crate::db::migrate;
use crate::http::login_retry::retry_refused_login;
use crate::http::problem::Problem;

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A database whose role has its URL in a file, and the task that reads the file.
struct Rotation {
    owner: PgConnection,
    url: String,
    role: String,
    file: PathBuf,
    db: PgPool,
    stop: CancellationToken,
}

impl Rotation {
    async fn start(name: &str) -> Rotation {
        let (owner, server) = migrate::tests::fresh_database().await;
        let owner = PgConnection::connect(owner.expose()).await.unwrap();
        let options = crate::config::address::postgres_options(server.expose()).unwrap();
        let role = options.get_username().to_owned();
        let url = server.expose().to_owned();
        let file = std::env::temp_dir().join(format!("{}-{name}", std::process::id()));
        let mut rotation = Rotation {
            owner,
            url,
            role,
            file,
            db: PgPool::connect_lazy(server.expose()).unwrap(),
            stop: CancellationToken::new(),
        };
        rotation.set_password("first").await;
        rotation.write_file("first");
        let (database_url_file, path) = ("DATABASE_URL_FILE", rotation.file.clone());
        let read_config: ReadConfig = Arc::new(move || {
            read_from(|variable| match variable {
                "KAFKA_BOOTSTRAP_SERVERS" => Some("127.0.0.1:1".to_owned()),
                "SCHEMA_REGISTRY_URL" => Some("http://127.0.0.1:1".to_owned()),
                "DATABASE_POOL_SIZE" => Some("4".to_owned()),
                _ => (variable == database_url_file).then(|| path.display().to_string()),
            })
        });
        let config = read_config().unwrap();
        let pool = RenewablePool::new("till", &config).unwrap();
        rotation.db = pool.pool.clone();
        let registry = Arc::new(config.schema_registry.client().unwrap());
        let kafka = watch::Sender::new(config.kafka.connection());
        let users = Users { pool, kafka, registry, tls: None };
        let reloader = Reloader::new(read_config, &config, users);
        tokio::spawn(reloader.run(rotation.stop.clone()));
        rotation
    }

    fn url_with(&self, password: &str) -> String {
        let mut url = url::Url::parse(&self.url).unwrap();
        url.set_password(Some(password)).unwrap();
        url.into()
    }

    fn write_file(&self, password: &str) {
        // As a whole: a reader finds the old content or the new one.
        let next = self.file.with_extension("next");
        std::fs::write(&next, self.url_with(password)).unwrap();
        std::fs::rename(next, &self.file).unwrap();
    }

    async fn set_password(&mut self, password: &str) {
        let alter = format!("alter role \"{}\" password '{password}'", self.role);
        self.owner.execute_as_superuser(&alter).await;
    }

    /// The number of open connections of the role.
    async fn pids(&mut self) -> Vec<i32> {
        let pids = "select pid from pg_stat_activity where usename = $1";
        sqlx::query_scalar(pids).bind(&self.role).fetch_all(&mut self.owner).await.unwrap()
    }
}

trait AsSuperuser {
    async fn execute_as_superuser(&mut self, statement: &str);
}

impl AsSuperuser for PgConnection {
    async fn execute_as_superuser(&mut self, statement: &str) {
        let cluster = std::env::var("TEST_DATABASE_URL").expect("the cluster's URL");
        let mut superuser = PgConnection::connect(&cluster).await.unwrap();
        sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut superuser).await.unwrap();
    }
}

impl Drop for Rotation {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// The API of a service that reads its database.
fn api(db: PgPool) -> Router {
    let read = async |State(db): State<PgPool>| -> Result<String, Problem> {
        let user: String = sqlx::query_scalar("select current_user").fetch_one(&db).await?;
        Ok(user)
    };
    Router::new().route("/", get(read)).with_state(db).layer(from_fn(retry_refused_login))
}

async fn read(api: &Router) -> StatusCode {
    let request = Request::get("/").body(Body::empty()).unwrap();
    api.clone().oneshot(request).await.unwrap().status()
}

/// Reads and commits all the time, on new connections as well, while the password changes: first the file and then
/// the role, and once the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_makes_no_request_fail_and_closes_what_was_opened_with_the_old_one() {
    let mut rotation = Rotation::start("passwords").await;
    let (done, churns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let (api, db) = (api(rotation.db.clone()), rotation.db.clone());
    let (is_done, is_churning) = (done.clone(), churns.clone());
    let reads = tokio::spawn(async move {
        let mut count = 0;
        while !is_done.load(Ordering::Relaxed) {
            // A connection that is held makes the pool open others.
            let held = db.try_acquire();
            assert_eq!(read(&api).await, StatusCode::OK);
            if is_churning.load(Ordering::Relaxed)
                && let Some(held) = held
            {
                held.close().await.unwrap();
            }
            count += 1;
        }
        count
    });
    let (db, is_done) = (rotation.db.clone(), done.clone());
    let commits = tokio::spawn(async move {
        let mut kept = DedicatedConnection::new(&db);
        while !is_done.load(Ordering::Relaxed) {
            kept.begin().await.unwrap().commit().await.unwrap();
            DedicatedConnection::new(&db).begin().await.unwrap().commit().await.unwrap();
        }
    });
    for (number, file_first) in [true, true, false].into_iter().enumerate() {
        sleep(Duration::from_millis(300)).await;
        let password = format!("password-{number}");
        let mut witness = rotation.db.acquire().await.unwrap();
        let pid = sqlx::query_scalar("select pg_backend_pid()");
        let pid: i32 = pid.fetch_one(&mut *witness).await.unwrap();
        if file_first {
            rotation.write_file(&password);
            sleep(Duration::from_millis(300)).await;
            rotation.set_password(&password).await;
        } else {
            rotation.set_password(&password).await;
            sleep(Duration::from_millis(300)).await;
            rotation.write_file(&password);
        }
        // From here on only the pool itself closes connections.
        churns.store(false, Ordering::Relaxed);
        drop(witness);
        let closed = async {
            while rotation.pids().await.contains(&pid) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(TEST_TIMEOUT, closed).await.expect("old connections are closed");
        churns.store(true, Ordering::Relaxed);
    }
    done.store(true, Ordering::Relaxed);
    assert!(reads.await.unwrap() > 20);
    commits.await.unwrap();
    let old = PgConnection::connect(&rotation.url_with("password-1")).await.unwrap_err();
    assert!(messaging::db::login::is_refused(&old), "{old}");
}

/// A file that is wrong changes nothing, and a refused login is answered in bounded time.
#[tokio::test]
async fn a_password_that_the_server_refuses_is_not_taken_over() {
    let mut rotation = Rotation::start("refused").await;
    let api = api(rotation.db.clone());
    rotation.write_file("wrong");
    messaging::flow::reload::request();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(read(&api).await, StatusCode::OK);
    rotation.set_password("other").await;
    for pid in rotation.pids().await {
        let end = format!("select pg_terminate_backend({pid})");
        rotation.owner.execute_as_superuser(&end).await;
    }
    while !rotation.pids().await.is_empty() {
        sleep(Duration::from_millis(20)).await;
    }
    let began = Instant::now();
    assert_eq!(read(&api).await, StatusCode::SERVICE_UNAVAILABLE);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
