//! Whoever waits learns of it, whoever committed it, and many cost what one costs.

use axum::Router;
use axum::extract::Path;
use axum::response::Response;
use axum::routing::get;
use futures::future::join_all;
use http_body_util::BodyExt;
use sqlx::postgres::PgPoolOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::http;
use crate::limits::Limits;
use crate::watch::{Entry, Watch};

const SOON: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, sqlx::FromRow)]
struct Note {
    #[serde(skip)]
    topic: Uuid,
    #[serde(skip)]
    position: i64,
    id: Uuid,
    text: String,
}

impl Entry for Note {
    const READ: &str =
        "select notes.* from unnest($1::uuid[], $2::bigint[]) as seen (topic, position)
        join notes on notes.topic = seen.topic and notes.position > seen.position
        order by notes.position";

    fn subject(&self) -> Uuid {
        self.topic
    }
    fn position(&self) -> i64 {
        self.position
    }
    fn id(&self) -> Uuid {
        self.id
    }
    fn event(&self) -> &str {
        &self.text
    }
    fn is_last(&self) -> bool {
        self.text == "end"
    }
}

/// A database with a log, and a process that watches it.
struct Log {
    db: PgPool,
    wake: Arc<Wake>,
    stop: CancellationToken,
    watch: Watch<Note>,
}

impl Log {
    async fn open() -> Log {
        Log::open_looking_every(Duration::from_millis(50)).await
    }

    async fn open_looking_every(every: Duration) -> Log {
        let (owner, _) = testing::fresh_database().await;
        let options: PgConnectOptions = owner.expose().parse().unwrap();
        let db = PgPoolOptions::new().connect_lazy_with(options.clone());
        sqlx::query(
            "create table notes (position bigint generated always as identity, topic uuid not null,
                 id uuid not null, text text not null)",
        )
        .execute(&db)
        .await
        .unwrap();
        let (wake, stop) = (Arc::<Wake>::default(), CancellationToken::new());
        // It rests for as many times as long as a look took, and the first one would connect.
        let own = PgPoolOptions::new().connect_with(options).await.unwrap();
        let watch = Watch::looking_every(every, own, wake.clone(), stop.clone());
        Log { db, wake, stop, watch }
    }

    async fn write(&self, topic: Uuid, text: &str) -> Uuid {
        let id = Uuid::now_v7();
        sqlx::query("insert into notes (topic, id, text) values ($1, $2, $3)")
            .bind(topic)
            .bind(id)
            .bind(text)
            .execute(&self.db)
            .await
            .unwrap();
        id
    }

    async fn read(&self, topic: Uuid) -> Vec<Note> {
        sqlx::query_as("select * from notes where topic = $1 order by position")
            .bind(topic)
            .fetch_all(&self.db)
            .await
            .unwrap()
    }

    async fn stream(&self, topic: Uuid, seen: Option<Uuid>) -> Response {
        self.watch.stream(self.read(topic).await, seen).unwrap()
    }

    /// Waits until so many are looked for.
    async fn waited_for_by(&self, number: usize) {
        let there = async {
            while self.watch.waiting() != number {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(SOON, there).await.expect("they wait");
    }
}

/// The names of the events of a whole stream.
async fn told(response: Response) -> Vec<String> {
    let body = timeout(SOON, response.into_body().collect()).await.expect("an end").unwrap();
    let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    body.lines().filter_map(|line| Some(line.strip_prefix("event: ")?.to_owned())).collect()
}

#[tokio::test]
async fn whoever_waits_learns_what_another_replica_committed_and_then_nobody_looks() {
    let log = Log::open().await;
    let topic = Uuid::now_v7();
    log.write(topic, "begin").await;
    let write = async {
        log.waited_for_by(1).await;
        log.write(Uuid::now_v7(), "end").await;
        sleep(Duration::from_millis(200)).await;
        log.write(topic, "end").await;
        Instant::now()
    };
    let settled = async {
        log.watch.settled(topic, SOON).await.unwrap();
        Instant::now()
    };
    let (written, settled) = tokio::join!(write, settled);
    assert!(settled.duration_since(written) < SOON / 2);

    // The look that finds nobody is the last one.
    sleep(Duration::from_millis(300)).await;
    let looks = log.watch.looks();
    assert!(looks > 0);
    sleep(Duration::from_millis(300)).await;
    assert_eq!((log.watch.looks(), log.watch.waiting()), (looks, 0));
}

#[tokio::test]
async fn a_wait_is_over_in_time_though_nothing_happened() {
    let log = Log::open().await;
    let began = Instant::now();
    log.watch.settled(Uuid::now_v7(), Duration::from_millis(300)).await.unwrap();
    assert!((300..3_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!(log.watch.waiting(), 0);
}

#[tokio::test]
async fn many_who_wait_cost_one_statement_a_look() {
    let log = Log::open().await;
    let transactions = async || -> i64 {
        let counted = "select xact_commit from pg_stat_database where datname = current_database()";
        sqlx::query_scalar(counted).fetch_one(&log.db).await.unwrap()
    };
    let before = transactions().await;
    let began = Instant::now();
    let wait = (0..300).map(|_| log.watch.settled(Uuid::now_v7(), Duration::from_secs(1)));
    assert!(join_all(wait).await.iter().all(Result::is_ok));
    let (took, looks) = (began.elapsed().as_millis() as u64, log.watch.looks());
    assert!((1..=took / 50 + 2).contains(&looks), "{looks} looks in {took} ms");
    // A session tells its numbers when it ends.
    log.watch.close().await;
    sleep(Duration::from_millis(200)).await;
    let statements = transactions().await - before;
    // To the statistics a look is three: the connection is tried, the statement planned, and run. A
    // few more are this test's own.
    assert!(statements <= 3 * looks as i64 + 10, "{statements} statements in {looks} looks");
}

#[tokio::test]
async fn commits_of_this_process_are_looked_for_at_once_and_many_of_them_together() {
    let log = Log::open_looking_every(Duration::from_secs(3600)).await;
    let topic = Uuid::now_v7();
    let write = async {
        log.waited_for_by(1).await;
        sleep(MEANWHILE).await;
        assert_eq!(log.watch.looks(), 1, "nothing was committed here, and an hour has not passed");
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(300) {
            log.wake.watchers.send_replace(());
            sleep(Duration::from_micros(100)).await;
        }
        let (took, looks) = (began.elapsed().as_millis() as u64, log.watch.looks() - 1);
        assert!((1..=took / 5 + 1).contains(&looks), "{looks} looks in {took} ms");
        log.write(topic, "end").await;
        log.wake.watchers.send_replace(());
    };
    let began = Instant::now();
    let (settled, ()) = tokio::join!(log.watch.settled(topic, SOON), write);
    settled.unwrap();
    assert!(began.elapsed() < SOON, "found, and not given up");
}

#[tokio::test]
async fn a_command_that_is_committed_is_told_to_whoever_watches() {
    let till = Till::<210>::open().await;
    let committed = till.wake.watchers.subscribe();
    let (commands, writing) = till.commands();
    commands.run(counted::<210>("watched", 1), None, count).await.unwrap();
    assert!(committed.has_changed().unwrap());
    writing.stop().await;
}

#[tokio::test]
async fn an_event_that_took_effect_is_told_to_whoever_watches_and_its_answer_to_the_relay() {
    let till = Till::<211>::open().await;
    let committed = till.wake.watchers.subscribe();
    till.handle(till.delivered(&[counted("watched", 1)]).await).await;
    assert!(committed.has_changed().unwrap());
    timeout(SOON, till.wake.relay.notified()).await.expect("what it says is in the outbox");
}

#[tokio::test]
async fn who_finds_no_place_is_told_to_come_back_and_nothing_waits() {
    let log = Log::open().await;
    let topic = Uuid::now_v7();
    log.write(topic, "begin").await;
    let mut streams = Vec::new();
    for _ in 0..512 {
        streams.push(log.watch.stream(log.read(topic).await, None).unwrap());
    }
    let refused = log.watch.settled(topic, SOON).await.unwrap_err();
    assert_eq!((refused.status.as_u16(), refused.kind), (503, "unavailable"));
    assert!(refused.retry_after.is_some());
    let refused = log.watch.stream(log.read(topic).await, None).unwrap_err();
    assert_eq!(refused.status.as_u16(), 503);
    // Whoever has gone leaves a place.
    streams.pop();
    streams.push(log.watch.stream(log.read(topic).await, None).unwrap());
    assert!(log.watch.stream(log.read(topic).await, None).is_err());
    // What is settled needs none.
    log.write(topic, "end").await;
    assert_eq!(told(log.stream(topic, None).await).await, ["begin", "end"]);
}

#[tokio::test]
async fn a_stream_tells_what_is_there_then_what_comes_and_ends_with_the_last() {
    let log = Log::open().await;
    let topic = Uuid::now_v7();
    let begin = log.write(topic, "begin").await;
    let response = log.stream(topic, None).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (middle, end) = (log.write(topic, "middle").await, async {
        log.waited_for_by(1).await;
        let end = log.write(topic, "end").await;
        log.write(topic, "after the end").await;
        end
    });
    let (body, end) = tokio::join!(response.into_body().collect(), end);
    let body = String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap();
    let event = |id: Uuid, text| {
        format!("id: {id}\nevent: {text}\ndata: {{\"id\":\"{id}\",\"text\":\"{text}\"}}\n")
    };
    let expected =
        [event(begin, "begin") + "retry: 1000\n", event(middle, "middle"), event(end, "end")];
    assert_eq!(body, expected.map(|event| event + "\n").concat());

    assert_eq!(told(log.stream(topic, None).await).await, ["begin", "middle", "end"]);
    assert_eq!(told(log.stream(topic, Some(begin)).await).await, ["middle", "end"]);
    assert_eq!(told(log.stream(topic, Some(middle)).await).await, ["end"]);
    for seen in [end, log.read(topic).await.last().unwrap().id] {
        let response = log.stream(topic, Some(seen)).await;
        assert_eq!(response.status(), 204, "nothing to come back for");
    }
    let unknown = log.stream(topic, Some(Uuid::now_v7())).await;
    assert_eq!(told(unknown).await, ["begin", "middle", "end"]);
}

#[tokio::test]
async fn a_client_that_has_seen_all_so_far_is_told_only_what_is_new() {
    let log = Log::open().await;
    let topic = Uuid::now_v7();
    let begin = log.write(topic, "begin").await;
    let response = log.stream(topic, Some(begin)).await;
    let write = async {
        log.waited_for_by(1).await;
        log.write(topic, "middle").await;
        sleep(Duration::from_millis(300)).await;
        log.write(topic, "end").await;
    };
    assert_eq!(tokio::join!(told(response), write).0, ["middle", "end"]);
}

#[tokio::test]
async fn a_look_that_fails_is_tried_again_and_nobody_is_forgotten() {
    let log = Log::open().await;
    let topic = Uuid::now_v7();
    sqlx::query("alter table notes rename to away").execute(&log.db).await.unwrap();
    let back = async {
        log.waited_for_by(1).await;
        sleep(Duration::from_millis(100)).await;
        sqlx::query("alter table away rename to notes").execute(&log.db).await.unwrap();
        log.write(topic, "end").await;
    };
    let began = Instant::now();
    let (settled, ()) = tokio::join!(log.watch.settled(topic, SOON), back);
    settled.unwrap();
    assert!(began.elapsed() < SOON / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_stream_asks_proxies_to_hold_nothing_back() {
    let log = Log::open().await;
    let topic = Uuid::now_v7();
    log.write(topic, "begin").await;
    let answer = log.stream(topic, None).await;
    assert_eq!(answer.headers()["x-accel-buffering"], "no");
    assert_eq!(answer.headers()["cache-control"], "no-cache, no-transform");
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
}

#[tokio::test]
async fn a_stop_releases_everybody_and_does_not_wait_for_streams() {
    let log = Log::open().await;
    let topic = Uuid::now_v7();
    log.write(topic, "begin").await;
    let log = Arc::new(log);
    let (streamed, waited) = (log.clone(), log.clone());
    let router = Router::new()
        .route(
            "/stream/{topic}",
            get(async move |Path(topic): Path<Uuid>| streamed.stream(topic, None).await),
        )
        .route(
            "/wait/{topic}",
            get(async move |Path(topic): Path<Uuid>| {
                waited.watch.settled(topic, SOON).await.map(|()| "as it is")
            }),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let limits = Limits { request: SOON, ..Limits::default() };
    let serving =
        tokio::spawn(http::serve_within(limits, listener, router, log.stop.clone(), SOON));
    let ask = async |path: &str| {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET /{path}/{topic} HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    };
    let (mut streaming, mut waiting) = (ask("stream").await, ask("wait").await);
    let gone = ask("stream").await;
    log.waited_for_by(3).await;
    // A client that goes away gives its place back, without a word from us in between.
    drop(gone);
    log.waited_for_by(2).await;

    let began = Instant::now();
    log.stop.cancel();
    timeout(SOON, serving).await.unwrap().unwrap().unwrap();
    let bound = http::LAST_WORDS + Duration::from_secs(1);
    assert!(began.elapsed() < bound, "{:?}", began.elapsed());
    let (mut told, mut answered) = (String::new(), String::new());
    streaming.read_to_string(&mut told).await.unwrap();
    assert!(told.contains("event: begin") && told.ends_with("0\r\n\r\n"), "a whole answer: {told}");
    waiting.read_to_string(&mut answered).await.unwrap();
    assert!(answered.ends_with("as it is"), "{answered}");
}
