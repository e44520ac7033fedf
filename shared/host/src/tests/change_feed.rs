//! The change feed: subscribers get commits of every replica, and many subscribers cost as much as one.

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
use crate::http::change_feed::{ChangeFeed, FeedEntry};
use crate::http::limits::Limits;
use crate::http::server;

const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, sqlx::FromRow)]
struct Note {
    #[serde(skip)]
    topic: Uuid,
    #[serde(skip)]
    position: i64,
    id: Uuid,
    text: String,
}

impl FeedEntry for Note {
    const QUERY: &str =
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
    fn is_final(&self) -> bool {
        self.text == "end"
    }
}

/// A database with a table of notes, and a process with a change feed of it.
struct FeedFixture {
    db: PgPool,
    wakeups: Arc<Wakeups>,
    stop: CancellationToken,
    feed: ChangeFeed<Note>,
}

impl FeedFixture {
    async fn create() -> FeedFixture {
        FeedFixture::create_polling_every(Duration::from_millis(50)).await
    }

    async fn create_polling_every(every: Duration) -> FeedFixture {
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
        let (wake, stop) = (Arc::<Wakeups>::default(), CancellationToken::new());
        // The connection is opened here: the feed sleeps for a multiple of a poll's duration, and the first poll
        // would otherwise connect.
        let own = PgPoolOptions::new().connect_with(options).await.unwrap();
        let feed = ChangeFeed::with_poll_interval(every, own, wake.clone(), stop.clone());
        FeedFixture { db, wakeups: wake, stop, feed }
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
        self.feed.event_stream(self.read(topic).await, seen).unwrap()
    }

    /// Waits until this many subscriptions are polled for.
    async fn wait_for_subscribers(&self, number: usize) {
        let there = async {
            while self.feed.subscriber_count() != number {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(WAIT_TIMEOUT, there).await.expect("the subscriptions are polled for");
    }
}

/// The names of the events of a whole stream.
async fn event_names(response: Response) -> Vec<String> {
    let body =
        timeout(WAIT_TIMEOUT, response.into_body().collect()).await.expect("an end").unwrap();
    let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    body.lines().filter_map(|line| Some(line.strip_prefix("event: ")?.to_owned())).collect()
}

#[tokio::test]
async fn a_subscriber_gets_what_another_replica_committed_and_then_polling_stops() {
    let fixture = FeedFixture::create().await;
    let topic = Uuid::now_v7();
    fixture.write(topic, "begin").await;
    let write = async {
        fixture.wait_for_subscribers(1).await;
        fixture.write(Uuid::now_v7(), "end").await;
        sleep(Duration::from_millis(200)).await;
        fixture.write(topic, "end").await;
        Instant::now()
    };
    let settled = async {
        fixture.feed.wait_until_final(topic, WAIT_TIMEOUT).await.unwrap();
        Instant::now()
    };
    let (written, settled) = tokio::join!(write, settled);
    assert!(settled.duration_since(written) < WAIT_TIMEOUT / 2);

    // The poll that finds no subscriber is the last one.
    sleep(Duration::from_millis(300)).await;
    let polls = fixture.feed.polls();
    assert!(polls > 0);
    sleep(Duration::from_millis(300)).await;
    assert_eq!((fixture.feed.polls(), fixture.feed.subscriber_count()), (polls, 0));
}

#[tokio::test]
async fn a_wait_ends_at_its_timeout_though_nothing_happened() {
    let fixture = FeedFixture::create().await;
    let began = Instant::now();
    fixture.feed.wait_until_final(Uuid::now_v7(), Duration::from_millis(300)).await.unwrap();
    assert!((300..3_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!(fixture.feed.subscriber_count(), 0);
}

#[tokio::test]
async fn many_subscribers_cost_one_statement_per_poll() {
    let fixture = FeedFixture::create().await;
    let transactions = async || -> i64 {
        let counted = "select xact_commit from pg_stat_database where datname = current_database()";
        sqlx::query_scalar(counted).fetch_one(&fixture.db).await.unwrap()
    };
    let before = transactions().await;
    let began = Instant::now();
    let wait =
        (0..300).map(|_| fixture.feed.wait_until_final(Uuid::now_v7(), Duration::from_secs(1)));
    assert!(join_all(wait).await.iter().all(Result::is_ok));
    let (took, polls) = (began.elapsed().as_millis() as u64, fixture.feed.polls());
    assert!((1..=took / 50 + 2).contains(&polls), "{polls} polls in {took} ms");
    // A session reports its statistics when it ends.
    fixture.feed.close().await;
    sleep(Duration::from_millis(200)).await;
    let statements = transactions().await - before;
    // In the statistics a poll counts as three: a check of the connection, the planning and the execution. A few
    // more belong to this test.
    assert!(statements <= 3 * polls as i64 + 10, "{statements} statements in {polls} polls");
}

#[tokio::test]
async fn commits_of_this_process_are_polled_at_once_and_many_of_them_together() {
    let fixture = FeedFixture::create_polling_every(Duration::from_secs(3600)).await;
    let topic = Uuid::now_v7();
    let write = async {
        fixture.wait_for_subscribers(1).await;
        sleep(QUIET_PERIOD).await;
        assert_eq!(
            fixture.feed.polls(),
            1,
            "nothing was committed here, and an hour has not passed"
        );
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(300) {
            fixture.wakeups.change_feed.send_replace(());
            sleep(Duration::from_micros(100)).await;
        }
        let (took, polls) = (began.elapsed().as_millis() as u64, fixture.feed.polls() - 1);
        assert!((1..=took / 5 + 1).contains(&polls), "{polls} polls in {took} ms");
        fixture.write(topic, "end").await;
        fixture.wakeups.change_feed.send_replace(());
    };
    let began = Instant::now();
    let (settled, ()) = tokio::join!(fixture.feed.wait_until_final(topic, WAIT_TIMEOUT), write);
    settled.unwrap();
    assert!(began.elapsed() < WAIT_TIMEOUT, "the entry was found before the timeout");
}

#[tokio::test]
async fn a_committed_command_notifies_subscribers() {
    let fixture = Fixture::<210>::create().await;
    let committed = fixture.wakeups.change_feed.subscribe();
    let (commands, writing) = fixture.commands();
    commands.execute(once(counted::<210>("watched", 1))).await.unwrap();
    assert!(committed.has_changed().unwrap());
    writing.stop().await;
}

#[tokio::test]
async fn an_applied_event_notifies_subscribers_and_its_answer_notifies_the_relay() {
    let fixture = Fixture::<211>::create().await;
    let committed = fixture.wakeups.change_feed.subscribe();
    fixture.handle(fixture.to_records(&[counted("watched", 1)]).await).await;
    assert!(committed.has_changed().unwrap());
    timeout(WAIT_TIMEOUT, fixture.wakeups.relay.notified())
        .await
        .expect("its answer is in the outbox");
}

#[tokio::test]
async fn a_subscriber_beyond_the_limit_is_a_503_with_retry_after() {
    let fixture = FeedFixture::create().await;
    let topic = Uuid::now_v7();
    fixture.write(topic, "begin").await;
    let mut streams = Vec::new();
    for _ in 0..512 {
        streams.push(fixture.feed.event_stream(fixture.read(topic).await, None).unwrap());
    }
    let refused = fixture.feed.wait_until_final(topic, WAIT_TIMEOUT).await.unwrap_err();
    assert_eq!((refused.status.as_u16(), refused.kind), (503, "unavailable"));
    assert!(refused.retry_after.is_some());
    let refused = fixture.feed.event_stream(fixture.read(topic).await, None).unwrap_err();
    assert_eq!(refused.status.as_u16(), 503);
    // A stream that ended frees its place.
    streams.pop();
    streams.push(fixture.feed.event_stream(fixture.read(topic).await, None).unwrap());
    assert!(fixture.feed.event_stream(fixture.read(topic).await, None).is_err());
    // A settled subject needs no subscription.
    fixture.write(topic, "end").await;
    assert_eq!(event_names(fixture.stream(topic, None).await).await, ["begin", "end"]);
}

#[tokio::test]
async fn a_stream_sends_stored_entries_then_new_ones_and_ends_with_the_last() {
    let fixture = FeedFixture::create().await;
    let topic = Uuid::now_v7();
    let begin = fixture.write(topic, "begin").await;
    let response = fixture.stream(topic, None).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (middle, end) = (fixture.write(topic, "middle").await, async {
        fixture.wait_for_subscribers(1).await;
        let end = fixture.write(topic, "end").await;
        fixture.write(topic, "after the end").await;
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

    assert_eq!(event_names(fixture.stream(topic, None).await).await, ["begin", "middle", "end"]);
    assert_eq!(event_names(fixture.stream(topic, Some(begin)).await).await, ["middle", "end"]);
    assert_eq!(event_names(fixture.stream(topic, Some(middle)).await).await, ["end"]);
    for seen in [end, fixture.read(topic).await.last().unwrap().id] {
        let response = fixture.stream(topic, Some(seen)).await;
        assert_eq!(response.status(), 204, "nothing to come back for");
    }
    let unknown = fixture.stream(topic, Some(Uuid::now_v7())).await;
    assert_eq!(event_names(unknown).await, ["begin", "middle", "end"]);
}

#[tokio::test]
async fn a_client_that_has_all_entries_so_far_gets_only_new_ones() {
    let fixture = FeedFixture::create().await;
    let topic = Uuid::now_v7();
    let begin = fixture.write(topic, "begin").await;
    let response = fixture.stream(topic, Some(begin)).await;
    let write = async {
        fixture.wait_for_subscribers(1).await;
        fixture.write(topic, "middle").await;
        sleep(Duration::from_millis(300)).await;
        fixture.write(topic, "end").await;
    };
    assert_eq!(tokio::join!(event_names(response), write).0, ["middle", "end"]);
}

#[tokio::test]
async fn a_failed_poll_is_retried_and_no_subscriber_is_lost() {
    let fixture = FeedFixture::create().await;
    let topic = Uuid::now_v7();
    sqlx::query("alter table notes rename to away").execute(&fixture.db).await.unwrap();
    let back = async {
        fixture.wait_for_subscribers(1).await;
        sleep(Duration::from_millis(100)).await;
        sqlx::query("alter table away rename to notes").execute(&fixture.db).await.unwrap();
        fixture.write(topic, "end").await;
    };
    let began = Instant::now();
    let (settled, ()) = tokio::join!(fixture.feed.wait_until_final(topic, WAIT_TIMEOUT), back);
    settled.unwrap();
    assert!(began.elapsed() < WAIT_TIMEOUT / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_stream_disables_buffering_in_proxies() {
    let fixture = FeedFixture::create().await;
    let topic = Uuid::now_v7();
    fixture.write(topic, "begin").await;
    let answer = fixture.stream(topic, None).await;
    assert_eq!(answer.headers()["x-accel-buffering"], "no");
    assert_eq!(answer.headers()["cache-control"], "no-cache, no-transform");
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
}

#[tokio::test]
async fn a_stop_releases_all_subscribers_and_does_not_wait_for_streams() {
    let fixture = FeedFixture::create().await;
    let topic = Uuid::now_v7();
    fixture.write(topic, "begin").await;
    let fixture = Arc::new(fixture);
    let (streamed, waited) = (fixture.clone(), fixture.clone());
    let router = Router::new()
        .route(
            "/stream/{topic}",
            get(async move |Path(topic): Path<Uuid>| streamed.stream(topic, None).await),
        )
        .route(
            "/wait/{topic}",
            get(async move |Path(topic): Path<Uuid>| {
                waited.feed.wait_until_final(topic, WAIT_TIMEOUT).await.map(|()| "as it is")
            }),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let limits = Limits { request_timeout: WAIT_TIMEOUT, ..Limits::default() };
    let serving = tokio::spawn(server::serve(
        listener,
        None,
        router,
        limits,
        fixture.stop.clone(),
        WAIT_TIMEOUT,
    ));
    let ask = async |path: &str| {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET /{path}/{topic} HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    };
    let (mut streaming, mut waiting) = (ask("stream").await, ask("wait").await);
    let gone = ask("stream").await;
    fixture.wait_for_subscribers(3).await;
    // A client that disconnects frees its place, without a message being sent in between.
    drop(gone);
    fixture.wait_for_subscribers(2).await;

    let began = Instant::now();
    fixture.stop.cancel();
    timeout(WAIT_TIMEOUT, serving).await.unwrap().unwrap().unwrap();
    let bound = server::KEEPALIVE_GRACE + Duration::from_secs(1);
    assert!(began.elapsed() < bound, "{:?}", began.elapsed());
    let (mut stream_text, mut answered) = (String::new(), String::new());
    streaming.read_to_string(&mut stream_text).await.unwrap();
    assert!(
        stream_text.contains("event: begin") && stream_text.ends_with("0\r\n\r\n"),
        "a whole answer: {stream_text}"
    );
    waiting.read_to_string(&mut answered).await.unwrap();
    assert!(answered.ends_with("as it is"), "{answered}");
}
