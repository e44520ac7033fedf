//! Every request to the HTTP server is answered in bounded time and takes bounded memory, or is refused with a problem.

use tokio::io::AsyncWriteExt;

use super::test_server::*;
use super::*;
use crate::http::limits::Limits;

#[tokio::test]
async fn a_header_that_never_ends_is_closed_within_its_timeout() {
    let server = start_server(limits()).await;
    assert_eq!(server.send_and_read("").await, "", "nothing sent");
    assert_eq!(server.send_and_read("GET / HTTP/1.1\r\nhost: a\r\n").await, "", "half sent");
    let kept = server.send_and_read("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /").await;
    assert!(kept.ends_with("here"), "half of a second one: {kept}");
}

#[tokio::test]
async fn a_body_that_never_ends_is_a_408_within_the_request_timeout() {
    let server = start_server(limits()).await;
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
    let server = start_server(limits()).await;
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
    let server = start_server(limits()).await;
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
    let server = start_server(limits()).await;
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(17_000));
    assert!(server.send_and_read(&long).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(200));
    assert!(server.send_and_read(&many).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn an_unknown_path_or_method_is_a_problem() {
    let server = start_server(limits()).await;
    let nowhere = server.get("/nowhere").await;
    assert_problem(&nowhere, "404", "not-found");
    let deleted = server.send_and_read("DELETE /echo HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_problem(&deleted, "405", "method-not-allowed");
    assert!(deleted.contains("allow: POST"), "{deleted}");
}

#[tokio::test]
async fn no_cache_keeps_an_answer_and_no_browser_guesses_its_type() {
    let server = start_server(limits()).await;
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
    let server = start_server(limits()).await;
    let answer = server.get("/panic").await;
    assert_problem(&answer, "500", "internal");
    assert!(!answer.contains("on purpose"), "{answer}");
    assert!(server.get("/").await.ends_with("here"));
}

#[tokio::test]
async fn a_slow_response_is_unavailable_for_a_read_and_an_unknown_outcome_for_a_write() {
    let server = start_server(limits()).await;
    let read = server.get("/never").await;
    assert_problem(&read, "503", "unavailable");
    let written =
        server.send_and_read("POST /never HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
    assert_problem(&written, "503", "outcome-unknown");
    assert!(written.contains("retry-after: 1"), "{written}");
}

#[tokio::test]
async fn a_client_that_closes_its_sending_half_is_answered() {
    let limits = Limits { request_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server(limits).await;
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
    let limits = Limits { request_timeout: 2 * LONG_TIMEOUT, connections_max: 1, ..limits() };
    let server = start_server(limits).await;
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
    let server = start_server(limits()).await;
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
