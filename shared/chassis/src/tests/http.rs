//! Every connection to a server of ours ends in bounded time, and a stop lets what is under way finish.

use std::future::pending;
use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::http::{LAST_WORDS, listen, serve_within};
use crate::limits::Limits;

const QUICK: Duration = Duration::from_millis(300);
/// Far beyond every bound in these tests: a stream still open by then is open for ever.
const LONG: Duration = Duration::from_secs(5);

/// What a connection's two buffers don't take, so that much of it stays with the server.
const LARGE: usize = 200_000;
static SHARED: [u8; LARGE] = [0; LARGE];

struct Server {
    addr: SocketAddr,
    stop: CancellationToken,
    ended: JoinHandle<anyhow::Result<()>>,
}

fn limits() -> Limits {
    let quick = Limits { header: QUICK, idle: QUICK, request: QUICK, ..Limits::default() };
    Limits { unread: QUICK, connections: 4, ..quick }
}

async fn start(limits: Limits, drain: Duration) -> Server {
    let router = Router::new()
        .route("/", get(async || "here"))
        .route("/echo", post(async |body: String| body))
        .route("/panic", get(async || -> String { panic!("on purpose") }))
        .route("/huge", get(async || "x".repeat(50_000_000)))
        .route("/large", get(async || "x".repeat(LARGE)))
        .route("/shared", get(async || SHARED.as_slice()))
        .route("/slow", get(slow))
        .route("/never", get(pending::<&str>).post(pending::<&str>));
    // All buffers are small, so that whoever sends much waits for the other to read it.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.set_send_buffer_size(16 * 1024).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1024).unwrap();
    let (addr, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let ended = tokio::spawn(serve_within(limits, listener, router, stop.clone(), drain));
    Server { addr, stop, ended }
}

async fn slow() -> &'static str {
    sleep(Duration::from_millis(600)).await;
    "at last"
}

impl Server {
    async fn send(&self, text: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(16 * 1024).unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let mut stream = socket.connect(self.addr).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// Everything until the server closes.
    async fn ask(&self, text: &str) -> String {
        read(self.send(text).await).await
    }

    async fn stopped(self) -> Duration {
        let began = Instant::now();
        self.stop.cancel();
        timeout(LONG, self.ended).await.unwrap().unwrap().unwrap();
        began.elapsed()
    }
}

async fn read(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    timeout(LONG, stream.read_to_string(&mut answer)).await.expect("the server closes").unwrap();
    answer
}

/// One answer, on a connection that may be kept.
async fn answered(mut stream: TcpStream) -> String {
    let mut answer = [0; 512];
    let read = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

fn assert_problem(answer: &str, status: &str, kind: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(answer.contains("content-type: application/problem+json"), "{answer}");
    assert!(answer.contains(&format!("\"/problems/{kind}\"")), "{answer}");
}

#[tokio::test]
async fn a_header_that_never_ends_is_closed_within_its_timeout() {
    let server = start(limits(), LONG).await;
    assert_eq!(server.ask("").await, "", "nothing sent");
    assert_eq!(server.ask("GET / HTTP/1.1\r\nhost: a\r\n").await, "", "half sent");
    let kept = server.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /").await;
    assert!(kept.ends_with("here"), "half of a second one: {kept}");
}

#[tokio::test]
async fn a_body_that_never_ends_is_a_408_within_the_request_timeout() {
    let server = start(limits(), LONG).await;
    let half = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf";
    assert_problem(&server.ask(half).await, "408", "request-timeout");
    let chunked =
        "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    assert_problem(&server.ask(chunked).await, "408", "request-timeout");
    let expecting =
        "POST /echo HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n";
    let answer = server.ask(expecting).await;
    let answer = answer.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").expect("asked to go on");
    assert_problem(answer, "408", "request-timeout");
    let unread = "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf";
    assert_problem(&server.ask(unread).await, "408", "request-timeout");
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413_and_is_told_to_a_client_that_sends_it_all_first() {
    let server = start(limits(), LONG).await;
    let size = 900_000;
    let declared = format!("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n");
    let whole = declared + &"x".repeat(size);
    assert_problem(&server.ask(&whole).await, "413", "body-too-large");
    let chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", size, "x".repeat(size));
    let chunked = "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut stream = server.send(chunked).await;
    stream.write_all(chunk.as_bytes()).await.unwrap();
    assert_problem(&read(stream).await, "413", "body-too-large");
    let asking = "POST /echo HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n\
         content-length: 99999\r\n\r\n";
    assert_problem(&server.ask(asking).await, "413", "body-too-large");
    let fits = format!("{}{}", "POST /echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\n", {
        let body = "x".repeat(limits().body_bytes);
        format!("content-length: {}\r\n\r\n{body}", body.len())
    });
    assert!(server.ask(&fits).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_header_over_the_limit_is_a_431() {
    let server = start(limits(), LONG).await;
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(17_000));
    assert!(server.ask(&long).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(200));
    assert!(server.ask(&many).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn who_has_connected_when_it_is_stopped_is_answered() {
    let server = start(limits(), LONG).await;
    // By the system: the server itself does not run before this waits.
    let mut waiting = std::net::TcpStream::connect(server.addr).unwrap();
    io::Write::write_all(&mut waiting, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    server.stop.cancel();
    waiting.set_nonblocking(true).unwrap();
    let answer = read(TcpStream::from_std(waiting).unwrap()).await;
    assert!(answer.ends_with("here"), "{answer}");
}

#[tokio::test]
async fn an_unknown_address_or_method_is_a_problem() {
    let server = start(limits(), LONG).await;
    let nowhere = server.ask("GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_problem(&nowhere, "404", "not-found");
    let deleted = server.ask("DELETE /echo HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_problem(&deleted, "405", "method-not-allowed");
    assert!(deleted.contains("allow: POST"), "{deleted}");
}

#[tokio::test]
async fn a_panic_is_an_opaque_500_and_the_server_goes_on() {
    let server = start(limits(), LONG).await;
    let answer = server.ask("GET /panic HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_problem(&answer, "500", "internal");
    assert!(!answer.contains("on purpose"), "{answer}");
    assert!(server.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.ends_with("here"));
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_unavailable_to_a_reader_and_unknown_to_a_writer() {
    let server = start(limits(), LONG).await;
    let read = server.ask("GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_problem(&read, "503", "unavailable");
    let written = server.ask("POST /never HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
    assert_problem(&written, "503", "outcome-unknown");
    assert!(written.contains("retry-after: 1"), "{written}");
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_a_free_slot() {
    let server = start(limits(), LONG).await;
    let mut idle = Vec::new();
    let began = Instant::now();
    for _ in 0..limits().connections {
        idle.push(server.send("GET / HTTP/1.1\r\nhost: a\r\n").await);
    }
    assert!(server.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.ends_with("here"));
    assert!(began.elapsed() > QUICK / 2, "served beside {} others", idle.len());
}

#[tokio::test]
async fn who_goes_on_asking_makes_room_for_whoever_waits() {
    let server = start(Limits { header: LONG, idle: LONG, ..limits() }, LONG).await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut asking = JoinSet::new();
    for _ in 0..limits().connections {
        let mut kept = server.send(request).await;
        let mut answer = [0; 512];
        assert!(kept.read(&mut answer).await.unwrap() > 0);
        asking.spawn(async move {
            while kept.write_all(request.as_bytes()).await.is_ok()
                && kept.read(&mut answer).await.is_ok_and(|read| read > 0)
            {
                sleep(QUICK / 10).await;
            }
        });
    }
    let next = server.send(request).await;
    // Whoever asks at this moment is told to leave, and the others once they ask again.
    assert!(timeout(LONG / 2, answered(next)).await.expect("a slot").ends_with("here"));
}

#[tokio::test]
async fn a_connection_of_age_is_told_to_end_and_does_end_though_its_answer_is_read_slowly() {
    let server = start(Limits { age: QUICK, connections: 2, ..limits() }, LONG).await;
    let mut slow = server.send("GET /huge HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let reading = tokio::spawn(async move {
        let mut some = [0; 16 * 1024];
        while slow.read(&mut some).await.is_ok_and(|read| read > 0) {
            sleep(QUICK / 30).await;
        }
    });
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut kept = server.send(request).await;
    let told = async {
        let (mut told, mut answer) = (String::new(), [0; 512]);
        while !told.contains("connection: close\r\n") {
            let read = kept.read(&mut answer).await.unwrap();
            assert!(read > 0, "closed without a word, after: {told}");
            told = String::from_utf8_lossy(&answer[..read]).into_owned();
            let _ = kept.write_all(request.as_bytes()).await;
        }
    };
    timeout(LONG, told).await.expect("it is told");
    timeout(LONG, reading).await.expect("it was closed").unwrap();
}

const REQUEST: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// Asks once more on a connection: the answer, or nothing if it was closed.
async fn ask_again(kept: &mut TcpStream) -> String {
    let mut answer = [0; 512];
    let _ = kept.write_all(REQUEST.as_bytes()).await;
    let read = timeout(LONG, kept.read(&mut answer)).await.expect("an answer or an end");
    String::from_utf8_lossy(&answer[..read.unwrap_or(0)]).into_owned()
}

#[tokio::test]
async fn a_kept_connection_may_be_idle_for_longer_than_a_header_may_take() {
    let server = start(Limits { idle: LONG, ..limits() }, LONG).await;
    let mut kept = server.send("").await;
    for _ in 0..2 {
        assert!(ask_again(&mut kept).await.ends_with("here"));
        sleep(3 * QUICK).await;
    }
    kept.write_all(b"GET / HTTP/1.1\r\nhost").await.unwrap();
    let began = Instant::now();
    assert_eq!(read(kept).await, "", "half a header");
    assert!((QUICK / 2..LONG / 2).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time_and_no_sooner() {
    let server = start(Limits { idle: 4 * QUICK, ..limits() }, LONG).await;
    let mut kept = server.send("").await;
    assert!(ask_again(&mut kept).await.ends_with("here"));
    let began = Instant::now();
    assert_eq!(read(kept).await, "");
    assert!((3 * QUICK..LONG / 2).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_connection_that_was_idle_for_longest_makes_room_for_a_client_that_waits() {
    let server = start(Limits { idle: 2 * LONG, connections: 3, ..limits() }, LONG).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut next = server.send("").await;
        assert!(ask_again(&mut next).await.ends_with("here"));
        kept.push(next);
        sleep(QUICK / 3).await;
    }
    sleep(QUICK).await;
    let next = server.send(REQUEST).await;
    assert!(timeout(LONG / 2, answered(next)).await.expect("a slot").ends_with("here"));
    assert_eq!(read(kept.remove(0)).await, "");
    for other in &mut kept {
        assert!(ask_again(other).await.ends_with("here"), "it was idle for less");
    }
}

#[tokio::test]
async fn as_long_as_slots_are_free_no_idle_connection_makes_room() {
    const MANY: usize = 400;
    let server = start(Limits { idle: 2 * LONG, connections: 2 * MANY, ..limits() }, LONG).await;
    let mut kept = server.send("").await;
    assert!(ask_again(&mut kept).await.ends_with("here"));
    sleep(2 * QUICK).await;
    // By the system: the server finds them all at once.
    let _many: Vec<_> =
        (0..MANY).map(|_| std::net::TcpStream::connect(server.addr).unwrap()).collect();
    sleep(QUICK).await;
    assert!(ask_again(&mut kept).await.ends_with("here"));
}

#[tokio::test]
async fn a_connection_that_comes_of_age_while_it_is_idle_is_told_with_its_next_answer() {
    let server = start(Limits { age: QUICK, idle: LONG, ..limits() }, LONG).await;
    let mut kept = server.send("").await;
    assert!(ask_again(&mut kept).await.ends_with("here"));
    sleep(QUICK + LAST_WORDS + QUICK).await;
    let last = ask_again(&mut kept).await;
    assert!(last.contains("connection: close\r\n") && last.ends_with("here"), "{last}");
    assert_eq!(read(kept).await, "");
}

#[tokio::test]
async fn a_client_that_closes_its_sending_half_is_answered() {
    let server = start(Limits { request: LONG, ..limits() }, LONG).await;
    for (request, end) in [
        (REQUEST, "here"),
        ("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n", "at last"),
        ("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nword", "word"),
        ("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf", "complete.\"}"),
    ] {
        let mut stream = server.send(request).await;
        stream.shutdown().await.unwrap();
        let answer = read(stream).await;
        assert!(answer.ends_with(end), "{request}: {answer}");
    }
}

#[tokio::test]
async fn a_request_whose_client_resets_its_connection_is_given_up_at_once() {
    let server = start(Limits { request: 2 * LONG, connections: 1, ..limits() }, LONG).await;
    let gone = server.send("GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await;
    sleep(QUICK).await;
    // Closed so, a connection is reset.
    socket2::SockRef::from(&gone).set_linger(Some(Duration::ZERO)).unwrap();
    drop(gone);
    let next = server.ask(REQUEST).await;
    assert!(next.ends_with("here"), "{next}");
}

#[tokio::test]
async fn a_body_with_a_content_coding_is_a_415_that_says_what_is_accepted() {
    let server = start(limits(), LONG).await;
    let ask = async |codings: &str, body: &str| {
        let length = format!("content-length: {}\r\nconnection: close\r\n", body.len());
        let request = format!("POST /echo HTTP/1.1\r\nhost: a\r\n{codings}{length}\r\n{body}");
        server.ask(&request).await
    };
    for codings in [
        "content-encoding: gzip\r\n",
        "Content-Encoding: GZIP\r\n",
        "content-encoding: br\r\n",
        "content-encoding: rot13\r\n",
        "content-encoding: identity, deflate\r\n",
        "content-encoding: identity\r\ncontent-encoding: zstd\r\n",
        "content-encoding: \u{e9}\r\n",
    ] {
        let answer = ask(codings, "word").await;
        assert_problem(&answer, "415", "unsupported-content-coding");
        assert!(answer.contains("accept-encoding: identity\r\n"), "{codings}: {answer}");
    }
    for codings in ["", "content-encoding: identity\r\n", "content-encoding: Identity,\r\n"] {
        assert!(ask(codings, "word").await.ends_with("word"), "{codings}");
    }
    let empty = ask("content-encoding: gzip\r\n", "").await;
    assert!(empty.starts_with("HTTP/1.1 200 "), "there is nothing to decode: {empty}");
}

#[tokio::test]
async fn a_stop_of_a_second_does_not_wait_for_an_idle_connection_until_its_end() {
    let server = start(Limits { header: LONG, idle: LONG, ..limits() }, LAST_WORDS).await;
    let mut kept = server.send("").await;
    assert!(ask_again(&mut kept).await.ends_with("here"));
    let took = server.stopped().await;
    assert!(took < LAST_WORDS, "closed amid a request, after {took:?}");
}

#[tokio::test]
async fn as_many_as_are_served_at_a_time_may_wait() {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    for nth in 0..Limits::default().connections {
        let came = timeout(LONG, TcpStream::connect(addr)).await;
        waiting.push(came.unwrap_or_else(|_| panic!("no room for {nth}")).unwrap());
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_gives_its_slot_back() {
    let server = start(Limits { connections: 1, ..limits() }, LONG).await;
    let _deaf = server.send("GET /huge HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let next = server.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(next.ends_with("here"), "{next}");
}

#[tokio::test]
async fn large_answers_that_nobody_reads_take_up_so_many_bytes_at_most() {
    let limits = Limits { unread: LONG, large_bytes: 2 * LARGE, ..limits() };
    let server = start(limits, LONG).await;
    let get = |path| format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
    let ask = async |path| answered(server.send(&get(path)).await).await;
    let deaf = [server.send(&get("/large")).await, server.send(&get("/large")).await];
    for stream in &deaf {
        stream.peek(&mut [0]).await.expect("its answer has begun");
    }
    let refused = ask("/large").await;
    assert_problem(&refused, "503", "unavailable");
    assert!(refused.contains("retry-after: "), "{refused}");
    for path in ["/", "/shared"] {
        let others = ask(path).await;
        assert!(others.starts_with("HTTP/1.1 200 "), "takes up nothing: {others}");
    }
    drop(deaf);
    eventually("there is room again", async || ask("/large").await.starts_with("HTTP/1.1 200 "))
        .await;
}

#[tokio::test]
async fn large_bodies_that_never_end_take_up_so_many_bytes_at_most() {
    let large = limits().body_bytes / 2;
    let limits = Limits { request: LONG, large_bytes: 2 * large, ..limits() };
    let server = start(limits, LONG).await;
    let post = |announced, sent| {
        let header = format!("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: {announced}");
        format!("{header}\r\nconnection: close\r\n\r\n{}", "x".repeat(sent))
    };
    let ask = async || answered(server.send(&post(large, large)).await).await;
    let stall = post(large, large - 1);
    let stalled = [server.send(&stall).await, server.send(&stall).await];
    eventually("what is large is refused", async || ask().await.starts_with("HTTP/1.1 503 ")).await;
    let refused = ask().await;
    assert_problem(&refused, "503", "unavailable");
    assert!(refused.contains("retry-after: "), "{refused}");
    let small = server.ask(&post(5, 5)).await;
    assert!(small.ends_with("xxxxx"), "{small}");
    drop(stalled);
    eventually("there is room again", async || ask().await.starts_with("HTTP/1.1 200 ")).await;
}

#[tokio::test]
async fn a_stop_closes_idle_connections_after_a_moment() {
    let server = start(Limits { header: LONG, idle: LONG, ..limits() }, LONG).await;
    let never_used = server.send("").await;
    let mut kept = server.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut answer = [0; 512];
    assert!(kept.read(&mut answer).await.unwrap() > 0);
    assert!(server.stopped().await < LAST_WORDS + LONG / 2);
    assert_eq!(read(kept).await + &read(never_used).await, "");
}

#[tokio::test]
async fn whoever_asks_on_a_kept_connection_after_a_stop_is_answered_and_told_to_leave() {
    let server = start(Limits { header: LONG, idle: LONG, ..limits() }, LONG).await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut kept = server.send(request).await;
    let mut answer = [0; 512];
    assert!(kept.read(&mut answer).await.unwrap() > 0);
    server.stop.cancel();
    sleep(LAST_WORDS / 10).await;
    kept.write_all(request.as_bytes()).await.unwrap();
    let last = read(kept).await;
    assert!(last.contains("connection: close\r\n") && last.ends_with("here"), "{last}");
}

#[tokio::test]
async fn a_stop_lets_a_request_under_way_finish() {
    let server = start(Limits { request: LONG, ..limits() }, LONG).await;
    let under_way = server.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    sleep(Duration::from_millis(100)).await;
    let addr = server.addr;
    server.stopped().await;
    assert!(read(under_way).await.ends_with("at last"));
    assert!(TcpStream::connect(addr).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_stalled_request_does_not_hold_a_stop_beyond_its_bound() {
    let server = start(Limits { header: LONG, request: LONG, ..limits() }, QUICK).await;
    let _header = server.send("GET / HTTP/1.1\r\nhost").await;
    let _body = server.send("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nx").await;
    sleep(Duration::from_millis(100)).await;
    let took = server.stopped().await;
    assert!((QUICK..LONG).contains(&took), "{took:?}");
}
