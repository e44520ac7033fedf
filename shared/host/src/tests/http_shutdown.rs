//! A server that is stopped finishes what is under way, and takes a bounded time for it.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::test_server::*;
use super::*;
use crate::http::limits::Limits;
use crate::http::server::KEEPALIVE_GRACE;

#[tokio::test]
async fn a_stop_closes_idle_connections_after_the_keepalive_grace() {
    let limits = Limits { header_timeout: LONG_TIMEOUT, idle_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server(limits).await;
    let never_used = server.send("").await;
    let mut kept = server.send("").await;
    assert!(request_again(&mut kept).await.ends_with("here"));
    assert!(server.shut_down().await < KEEPALIVE_GRACE + LONG_TIMEOUT / 2);
    assert_eq!(read_to_end(kept).await + &read_to_end(never_used).await, "");
}

#[tokio::test]
async fn a_keep_alive_request_after_a_stop_is_answered_and_the_connection_closed() {
    let limits = Limits { header_timeout: LONG_TIMEOUT, idle_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server(limits).await;
    let mut kept = server.send("").await;
    assert!(request_again(&mut kept).await.ends_with("here"));
    server.stop.cancel();
    sleep(KEEPALIVE_GRACE / 10).await;
    kept.write_all(REQUEST.as_bytes()).await.unwrap();
    let last = read_to_end(kept).await;
    assert!(last.contains("connection: close\r\n") && last.ends_with("here"), "{last}");
}

#[tokio::test]
async fn a_stop_lets_a_running_request_finish() {
    let limits = Limits { request_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server(limits).await;
    let under_way = server.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    sleep(Duration::from_millis(100)).await;
    let addr = server.addr;
    server.shut_down().await;
    assert!(read_to_end(under_way).await.ends_with("at last"));
    assert!(TcpStream::connect(addr).await.is_err(), "the listener is closed");
}

#[tokio::test]
async fn a_stalled_request_does_not_delay_a_stop_beyond_its_timeout() {
    let limits = Limits { header_timeout: LONG_TIMEOUT, request_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server_with(None, limits, SHORT_TIMEOUT).await;
    let _header = server.send("GET / HTTP/1.1\r\nhost").await;
    let _body = server.send("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nx").await;
    sleep(Duration::from_millis(100)).await;
    let took = server.shut_down().await;
    assert!((SHORT_TIMEOUT..LONG_TIMEOUT).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_client_connected_before_the_stop_is_answered() {
    let server = start_server(limits()).await;
    // The system accepts this connection: the server does not run until this test waits.
    let mut waiting = std::net::TcpStream::connect(server.addr).unwrap();
    io::Write::write_all(&mut waiting, REQUEST.as_bytes()).unwrap();
    server.stop.cancel();
    waiting.set_nonblocking(true).unwrap();
    let answer = read_to_end(TcpStream::from_std(waiting).unwrap()).await;
    assert!(answer.ends_with("here"), "{answer}");
}

#[tokio::test]
async fn a_stop_with_a_short_drain_does_not_wait_for_an_idle_connection() {
    let limits = Limits { header_timeout: LONG_TIMEOUT, idle_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server_with(None, limits, KEEPALIVE_GRACE).await;
    let mut kept = server.send("").await;
    assert!(request_again(&mut kept).await.ends_with("here"));
    let took = server.shut_down().await;
    assert!(took < KEEPALIVE_GRACE, "closed amid a request, after {took:?}");
}
