//! Every connection to the HTTP server ends in bounded time, and takes bounded memory.

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
async fn a_header_that_never_ends_is_closed_within_its_timeout() {
    let server = start_server(limits(), LONG_TIMEOUT).await;
    assert_eq!(server.send_and_read("").await, "", "nothing sent");
    assert_eq!(server.send_and_read("GET / HTTP/1.1\r\nhost: a\r\n").await, "", "half sent");
    let kept = server.send_and_read("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /").await;
    assert!(kept.ends_with("here"), "half of a second one: {kept}");
}

#[tokio::test]
async fn a_body_that_never_ends_is_a_408_within_the_request_timeout() {
    let server = start_server(limits(), LONG_TIMEOUT).await;
    let half = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf";
    assert_problem(&server.send_and_read(half).await, "408", "request-timeout");
    let chunked =
        "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    assert_problem(&server.send_and_read(chunked).await, "408", "request-timeout");
    let expecting =
        "POST /echo HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n";
    let answer = server.send_and_read(expecting).await;
    let answer = answer.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").expect("asked to go on");
    assert_problem(answer, "408", "request-timeout");
    let unread = "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf";
    assert_problem(&server.send_and_read(unread).await, "408", "request-timeout");
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413_even_for_a_client_that_sends_it_all_first() {
    let server = start_server(limits(), LONG_TIMEOUT).await;
    let size = 900_000;
    let declared = format!("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n");
    let whole = declared + &"x".repeat(size);
    assert_problem(&server.send_and_read(&whole).await, "413", "body-too-large");
    let chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", size, "x".repeat(size));
    let chunked = "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut stream = server.send(chunked).await;
    stream.write_all(chunk.as_bytes()).await.unwrap();
    assert_problem(&read_to_end(stream).await, "413", "body-too-large");
    let asking = "POST /echo HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n\
         content-length: 99999\r\n\r\n";
    assert_problem(&server.send_and_read(asking).await, "413", "body-too-large");
    let fits = format!("{}{}", "POST /echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\n", {
        let body = "x".repeat(limits().body_bytes_max);
        format!("content-length: {}\r\n\r\n{body}", body.len())
    });
    assert!(server.send_and_read(&fits).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_request_that_names_two_hosts_is_a_400() {
    let server = start_server(limits(), LONG_TIMEOUT).await;
    let send = async |target, hosts| {
        let request = format!("GET {target} HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
        server.send_and_read(&request).await
    };
    for (target, hosts) in [
        ("/", "host: a\r\nhost: b\r\n"),
        ("/", "host: a\r\nhost: a\r\n"),
        ("http://b/", "host: a\r\n"),
        ("http://a:80/", "host: a\r\n"),
        ("http://b@a/", "host: a\r\n"),
    ] {
        assert_problem(&send(target, hosts).await, "400", "malformed-request");
    }
    for (target, hosts) in [("/", "host: a\r\n"), ("http://A/", "host: a\r\n")] {
        assert!(send(target, hosts).await.ends_with("here"), "{target}");
    }
}

#[tokio::test]
async fn a_header_over_the_limit_is_a_431() {
    let server = start_server(limits(), LONG_TIMEOUT).await;
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(17_000));
    assert!(server.send_and_read(&long).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(200));
    assert!(server.send_and_read(&many).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn an_unknown_path_or_method_is_a_problem() {
    let server = start_server(limits(), LONG_TIMEOUT).await;
    let nowhere = server.send_and_read("GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_problem(&nowhere, "404", "not-found");
    let deleted = server.send_and_read("DELETE /echo HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_problem(&deleted, "405", "method-not-allowed");
    assert!(deleted.contains("allow: POST"), "{deleted}");
}

#[tokio::test]
async fn no_cache_keeps_an_answer_and_no_browser_guesses_its_type() {
    let server = start_server(limits(), LONG_TIMEOUT).await;
    for (path, cache) in [
        ("/", "no-store"),
        ("/panic", "no-store"),
        ("/nowhere", "no-store"),
        ("/never", "no-store"),
        ("/stream", "no-cache"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        let answer = server.send_and_read(&request).await;
        let rules: Vec<&str> =
            answer.lines().filter(|line| line.starts_with("cache-control")).collect();
        assert_eq!(rules, [format!("cache-control: {cache}")], "{path}: {answer}");
        assert!(answer.contains("x-content-type-options: nosniff"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_panic_is_an_opaque_500_and_the_server_keeps_running() {
    let server = start_server(limits(), LONG_TIMEOUT).await;
    let answer = server.send_and_read("GET /panic HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_problem(&answer, "500", "internal");
    assert!(!answer.contains("on purpose"), "{answer}");
    assert!(server.send_and_read("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.ends_with("here"));
}

#[tokio::test]
async fn a_slow_response_is_unavailable_for_a_read_and_an_unknown_outcome_for_a_write() {
    let server = start_server(limits(), LONG_TIMEOUT).await;
    let read = server.send_and_read("GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_problem(&read, "503", "unavailable");
    let written =
        server.send_and_read("POST /never HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
    assert_problem(&written, "503", "outcome-unknown");
    assert!(written.contains("retry-after: 1"), "{written}");
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_a_free_slot() {
    let server = start_server(limits(), LONG_TIMEOUT).await;
    let mut idle = Vec::new();
    let began = Instant::now();
    for _ in 0..limits().connections_max {
        idle.push(server.send("GET / HTTP/1.1\r\nhost: a\r\n").await);
    }
    assert!(server.send_and_read("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.ends_with("here"));
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
        let server = start_server(patient, LONG_TIMEOUT).await;
        let waited = wait_beside_half_open(&server, half).await;
        assert!(waited < LONG_TIMEOUT / 2, "{half:?}: {waited:?}");
    }
}

#[tokio::test]
async fn a_slow_client_keeps_its_connection_while_slots_are_free() {
    let limits = Limits { header_timeout: LONG_TIMEOUT, request_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server(limits, LONG_TIMEOUT).await;
    let mut slow = server.send("POST /echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\n").await;
    for part in ["content-length: 9\r\n\r\n", "half", "whole"] {
        sleep(2 * SHORT_TIMEOUT).await;
        slow.write_all(part.as_bytes()).await.unwrap();
    }
    assert!(read_to_end(slow).await.ends_with("halfwhole"));
}

#[tokio::test]
async fn busy_connections_are_closed_for_queued_clients() {
    let server = start_server(
        Limits { header_timeout: LONG_TIMEOUT, idle_timeout: LONG_TIMEOUT, ..limits() },
        LONG_TIMEOUT,
    )
    .await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut asking = JoinSet::new();
    for _ in 0..limits().connections_max {
        let mut kept = server.send(request).await;
        let mut answer = [0; 512];
        assert!(kept.read(&mut answer).await.unwrap() > 0);
        asking.spawn(async move {
            while kept.write_all(request.as_bytes()).await.is_ok()
                && kept.read(&mut answer).await.is_ok_and(|read| read > 0)
            {
                sleep(SHORT_TIMEOUT / 10).await;
            }
        });
    }
    let next = server.send(request).await;
    // A connection with a request in progress is closed after it, the others after their next request.
    assert!(
        timeout(LONG_TIMEOUT / 2, read_one_response(next)).await.expect("a slot").ends_with("here")
    );
}

#[tokio::test]
async fn a_connection_past_its_maximum_age_is_closed_even_if_its_response_is_read_slowly() {
    let server = start_server(
        Limits { connection_age_max: SHORT_TIMEOUT, connections_max: 2, ..limits() },
        LONG_TIMEOUT,
    )
    .await;
    let mut slow = server.send("GET /huge HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let reading = tokio::spawn(async move {
        let mut some = [0; 16 * 1024];
        while slow.read(&mut some).await.is_ok_and(|read| read > 0) {
            sleep(SHORT_TIMEOUT / 30).await;
        }
    });
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut kept = server.send(request).await;
    let answer_so_far = async {
        let (mut answer_so_far, mut answer) = (String::new(), [0; 512]);
        while !answer_so_far.contains("connection: close\r\n") {
            let read = kept.read(&mut answer).await.unwrap();
            assert!(read > 0, "closed without `connection: close`, after: {answer_so_far}");
            answer_so_far = String::from_utf8_lossy(&answer[..read]).into_owned();
            let _ = kept.write_all(request.as_bytes()).await;
        }
    };
    timeout(LONG_TIMEOUT, answer_so_far).await.expect("the header is sent");
    timeout(LONG_TIMEOUT, reading).await.expect("it was closed").unwrap();
}

#[tokio::test]
async fn a_keep_alive_connection_may_be_idle_for_longer_than_the_header_timeout() {
    let server =
        start_server(Limits { idle_timeout: LONG_TIMEOUT, ..limits() }, LONG_TIMEOUT).await;
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
    let server =
        start_server(Limits { idle_timeout: 4 * SHORT_TIMEOUT, ..limits() }, LONG_TIMEOUT).await;
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
    let server = start_server(
        Limits { idle_timeout: 2 * LONG_TIMEOUT, connections_max: 3, ..limits() },
        LONG_TIMEOUT,
    )
    .await;
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
    let server = start_server(
        Limits { idle_timeout: 2 * LONG_TIMEOUT, connections_max: 2 * MANY, ..limits() },
        LONG_TIMEOUT,
    )
    .await;
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
    let server = start_server(
        Limits { connection_age_max: SHORT_TIMEOUT, idle_timeout: LONG_TIMEOUT, ..limits() },
        LONG_TIMEOUT,
    )
    .await;
    let mut kept = server.send("").await;
    assert!(request_again(&mut kept).await.ends_with("here"));
    sleep(SHORT_TIMEOUT + KEEPALIVE_GRACE + SHORT_TIMEOUT).await;
    let last = request_again(&mut kept).await;
    assert!(last.contains("connection: close\r\n") && last.ends_with("here"), "{last}");
    assert_eq!(read_to_end(kept).await, "");
}

#[tokio::test]
async fn a_client_that_closes_its_sending_half_is_answered() {
    let server =
        start_server(Limits { request_timeout: LONG_TIMEOUT, ..limits() }, LONG_TIMEOUT).await;
    for (request, end) in [
        (REQUEST, "here"),
        ("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n", "at last"),
        ("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nword", "word"),
        ("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf", "complete.\"}"),
    ] {
        let mut stream = server.send(request).await;
        stream.shutdown().await.unwrap();
        let answer = read_to_end(stream).await;
        assert!(answer.ends_with(end), "{request}: {answer}");
    }
}

#[tokio::test]
async fn a_request_whose_client_resets_the_connection_is_cancelled_at_once() {
    let server = start_server(
        Limits { request_timeout: 2 * LONG_TIMEOUT, connections_max: 1, ..limits() },
        LONG_TIMEOUT,
    )
    .await;
    let gone = server.send("GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await;
    sleep(SHORT_TIMEOUT).await;
    // Without lingering, closing resets the connection.
    socket2::SockRef::from(&gone).set_linger(Some(Duration::ZERO)).unwrap();
    drop(gone);
    let next = server.send_and_read(REQUEST).await;
    assert!(next.ends_with("here"), "{next}");
}

#[tokio::test]
async fn a_body_with_a_content_coding_is_a_415_that_lists_what_is_accepted() {
    let server = start_server(limits(), LONG_TIMEOUT).await;
    let ask = async |codings: &str, body: &str| {
        let length = format!("content-length: {}\r\nconnection: close\r\n", body.len());
        let request = format!("POST /echo HTTP/1.1\r\nhost: a\r\n{codings}{length}\r\n{body}");
        server.send_and_read(&request).await
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
    let server = start_server(Limits { connections_max: 1, ..limits() }, LONG_TIMEOUT).await;
    let _unread = server.send("GET /huge HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let next = server.send_and_read("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
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
    let server = start_server(limits, LONG_TIMEOUT).await;
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
