//! A connection to the HTTP server has a slot of a bounded number, and loses it in bounded time to a client that waits.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::test_server::*;
use super::*;
use crate::http::limits::Limits;
use crate::http::listeners::listen;
use crate::http::pagination::PAGE_BYTES_MAX;
use crate::http::server::KEEPALIVE_GRACE;

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_a_free_slot() {
    let server = start_server(limits()).await;
    let mut idle = Vec::new();
    let began = Instant::now();
    for _ in 0..limits().connections_max {
        idle.push(server.send("GET / HTTP/1.1\r\nhost: a\r\n").await);
    }
    assert!(server.get("/").await.ends_with("here"));
    assert!(began.elapsed() > SHORT_TIMEOUT / 2, "served beside {} others", idle.len());
}

/// Takes every slot with connections whose clients have something to send and do not, more of them than slots, and
/// renews each that the server closes. Returns how long another client then waits.
async fn wait_beside_half_open(server: &TestServer, half: &'static str) -> Duration {
    const WAVES: usize = 2;
    let mut stalled = JoinSet::new();
    for _ in 0..WAVES * limits().connections_max {
        let addr = server.addr;
        stalled.spawn(async move {
            loop {
                let mut stream = TcpStream::connect(addr).await.unwrap();
                let _ = stream.write_all(half.as_bytes()).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
    }
    sleep(SHORT_TIMEOUT / 2).await;
    let began = Instant::now();
    let answer =
        timeout(LONG_TIMEOUT, async { read_one_response(server.send(REQUEST).await).await });
    assert!(answer.await.expect("a slot").ends_with("here"), "{half}");
    began.elapsed()
}

#[tokio::test]
async fn half_open_connections_cannot_keep_every_slot() {
    let patient = Limits {
        header_timeout: LONG_TIMEOUT,
        idle_timeout: LONG_TIMEOUT,
        request_timeout: LONG_TIMEOUT,
        ..limits()
    };
    for half in [
        "",
        "GET / HTTP/1.1\r\nhost: a\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\n",
        "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf",
        REQUEST,
    ] {
        let server = start_server(patient).await;
        let waited = wait_beside_half_open(&server, half).await;
        assert!(waited < LONG_TIMEOUT / 2, "{half:?}: {waited:?}");
    }
}

#[tokio::test]
async fn a_slow_client_keeps_its_connection_while_slots_are_free() {
    let limits = Limits { header_timeout: LONG_TIMEOUT, request_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server(limits).await;
    let mut slow = server.send("POST /echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\n").await;
    for part in ["content-length: 9\r\n\r\n", "half", "whole"] {
        sleep(2 * SHORT_TIMEOUT).await;
        slow.write_all(part.as_bytes()).await.unwrap();
    }
    assert!(read_to_end(slow).await.ends_with("halfwhole"));
}

#[tokio::test]
async fn busy_connections_are_closed_for_queued_clients() {
    let limits = Limits { header_timeout: LONG_TIMEOUT, idle_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server(limits).await;
    let mut asking = JoinSet::new();
    for _ in 0..limits.connections_max {
        let mut kept = server.send(REQUEST).await;
        let mut answer = [0; 512];
        assert!(kept.read(&mut answer).await.unwrap() > 0);
        asking.spawn(async move {
            while kept.write_all(REQUEST.as_bytes()).await.is_ok()
                && kept.read(&mut answer).await.is_ok_and(|read| read > 0)
            {
                sleep(SHORT_TIMEOUT / 10).await;
            }
        });
    }
    let next = server.send(REQUEST).await;
    // A connection with a request in progress is closed after it, the others after their next request.
    assert!(
        timeout(LONG_TIMEOUT / 2, read_one_response(next)).await.expect("a slot").ends_with("here")
    );
}

#[tokio::test]
async fn a_connection_past_its_maximum_age_is_closed_even_if_its_response_is_read_slowly() {
    let limits = Limits { connection_age_max: SHORT_TIMEOUT, connections_max: 2, ..limits() };
    let server = start_server(limits).await;
    let mut slow = server.send("GET /huge HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let reading = tokio::spawn(async move {
        let mut some = [0; 16 * 1024];
        while slow.read(&mut some).await.is_ok_and(|read| read > 0) {
            sleep(SHORT_TIMEOUT / 30).await;
        }
    });
    let mut kept = server.send(REQUEST).await;
    let answer_so_far = async {
        let (mut answer_so_far, mut answer) = (String::new(), [0; 512]);
        while !answer_so_far.contains("connection: close\r\n") {
            let read = kept.read(&mut answer).await.unwrap();
            assert!(read > 0, "closed without `connection: close`, after: {answer_so_far}");
            answer_so_far = String::from_utf8_lossy(&answer[..read]).into_owned();
            let _ = kept.write_all(REQUEST.as_bytes()).await;
        }
    };
    timeout(LONG_TIMEOUT, answer_so_far).await.expect("the header is sent");
    timeout(LONG_TIMEOUT, reading).await.expect("it was closed").unwrap();
}

#[tokio::test]
async fn a_keep_alive_connection_may_be_idle_for_longer_than_the_header_timeout() {
    let limits = Limits { idle_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server(limits).await;
    let mut kept = server.send("").await;
    for _ in 0..2 {
        assert!(request_again(&mut kept).await.ends_with("here"));
        sleep(3 * SHORT_TIMEOUT).await;
    }
    kept.write_all(b"GET / HTTP/1.1\r\nhost").await.unwrap();
    let began = Instant::now();
    assert_eq!(read_to_end(kept).await, "", "half a header");
    assert!(
        (SHORT_TIMEOUT / 2..LONG_TIMEOUT / 2).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_the_idle_timeout_and_no_sooner() {
    let limits = Limits { idle_timeout: 4 * SHORT_TIMEOUT, ..limits() };
    let server = start_server(limits).await;
    let mut kept = server.send("").await;
    assert!(request_again(&mut kept).await.ends_with("here"));
    let began = Instant::now();
    assert_eq!(read_to_end(kept).await, "");
    assert!(
        (3 * SHORT_TIMEOUT..LONG_TIMEOUT / 2).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn the_longest_idle_connection_is_closed_for_a_queued_client() {
    let limits = Limits { idle_timeout: 2 * LONG_TIMEOUT, connections_max: 3, ..limits() };
    let server = start_server(limits).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut next = server.send("").await;
        assert!(request_again(&mut next).await.ends_with("here"));
        kept.push(next);
        sleep(SHORT_TIMEOUT / 3).await;
    }
    sleep(SHORT_TIMEOUT).await;
    let next = server.send(REQUEST).await;
    assert!(
        timeout(LONG_TIMEOUT / 2, read_one_response(next)).await.expect("a slot").ends_with("here")
    );
    assert_eq!(read_to_end(kept.remove(0)).await, "");
    for other in &mut kept {
        assert!(request_again(other).await.ends_with("here"), "it was idle for less");
    }
}

#[tokio::test]
async fn no_idle_connection_is_closed_while_slots_are_free() {
    const MANY: usize = 400;
    let limits = Limits { idle_timeout: 2 * LONG_TIMEOUT, connections_max: 2 * MANY, ..limits() };
    let server = start_server(limits).await;
    let mut kept = server.send("").await;
    assert!(request_again(&mut kept).await.ends_with("here"));
    sleep(2 * SHORT_TIMEOUT).await;
    // The system accepts these: the server finds them all at once.
    let _many: Vec<_> =
        (0..MANY).map(|_| std::net::TcpStream::connect(server.addr).unwrap()).collect();
    sleep(SHORT_TIMEOUT).await;
    assert!(request_again(&mut kept).await.ends_with("here"));
}

#[tokio::test]
async fn a_connection_past_its_maximum_age_while_idle_is_closed_with_its_next_response() {
    let limits =
        Limits { connection_age_max: SHORT_TIMEOUT, idle_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server(limits).await;
    let mut kept = server.send("").await;
    assert!(request_again(&mut kept).await.ends_with("here"));
    sleep(SHORT_TIMEOUT + KEEPALIVE_GRACE + SHORT_TIMEOUT).await;
    let last = request_again(&mut kept).await;
    assert!(last.contains("connection: close\r\n") && last.ends_with("here"), "{last}");
    assert_eq!(read_to_end(kept).await, "");
}

#[tokio::test]
async fn the_accept_backlog_is_as_large_as_the_connection_limit() {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    for nth in 0..Limits::default().connections_max {
        let came = timeout(LONG_TIMEOUT, TcpStream::connect(addr)).await;
        waiting.push(came.unwrap_or_else(|_| panic!("no room for {nth}")).unwrap());
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_response_loses_its_slot() {
    let limits = Limits { connections_max: 1, ..limits() };
    let server = start_server(limits).await;
    let _unread = server.send("GET /huge HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let next = server.get("/").await;
    assert!(next.ends_with("here"), "{next}");
}

#[test]
fn what_all_clients_of_a_service_may_take_together_fits_into_its_memory() {
    let limits = Limits::default();
    let answer_or_body = limits.body_bytes_max.max(PAGE_BYTES_MAX + 1024);
    let bytes = limits.connections_max * (limits.header_bytes_max + answer_or_body);
    assert!(bytes <= 48 * 1024 * 1024, "docker-compose.yml gives a service 128 MiB: {bytes}");
}

#[tokio::test]
async fn large_bodies_that_never_end_keep_no_other_client_waiting() {
    let limits = Limits { request_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server(limits).await;
    let large = limits.body_bytes_max;
    let post = |sent| {
        let header = format!("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: {large}");
        format!("{header}\r\nconnection: close\r\n\r\n{}", "x".repeat(sent))
    };
    let mut stalled = Vec::new();
    for _ in 1..limits.connections_max {
        stalled.push(server.send(&post(large - 1)).await);
    }
    let answer = read_one_response(server.send(&post(large)).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "beside {}: {answer}", stalled.len());
}
