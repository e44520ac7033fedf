//! Each toxic, as a client of an echo server observes it.

use tokio::task::yield_now;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

/// An echo server, and a proxy to it.
async fn start_echo() -> (Proxy, JoinHandle<()>) {
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let echoing = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    (Proxy::start(server).await.unwrap(), echoing)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.unwrap()
}

async fn send_and_receive(client: &mut TcpStream, text: &str) -> std::io::Result<Duration> {
    let began = Instant::now();
    client.write_all(text.as_bytes()).await?;
    let mut answer = vec![0; text.len()];
    client.read_exact(&mut answer).await?;
    assert_eq!(answer, text.as_bytes());
    Ok(began.elapsed())
}

/// Whether no byte comes back for a while.
async fn is_silent(client: &mut TcpStream) -> bool {
    timeout(Duration::from_millis(300), client.read(&mut [0; 1])).await.is_err()
}

#[tokio::test]
async fn latency_applies_both_ways_and_ends_without_a_reconnect() {
    let (proxy, _echoing) = start_echo().await;
    let mut client = connect(&proxy).await;
    let (latency, jitter) = (Duration::from_millis(150), Duration::from_millis(50));
    let quick = 2 * (latency - jitter);
    assert!(send_and_receive(&mut client, "quick").await.unwrap() < quick);
    proxy.set_toxics(Toxics { latency, jitter, ..Toxics::default() });
    let took = send_and_receive(&mut client, "slow").await.unwrap();
    assert!((quick..Duration::from_secs(3)).contains(&took), "{took:?}");
    proxy.heal();
    assert!(send_and_receive(&mut client, "quick").await.unwrap() < quick);
    assert_eq!(proxy.bytes_forwarded(), 2 * 14);
    assert_eq!(proxy.affected(), 2, "one delayed chunk in each direction");
}

#[tokio::test]
async fn held_data_arrives_when_the_proxy_is_healed() {
    let (proxy, _echoing) = start_echo().await;
    let half_open = [(true, false), (false, true), (true, true)];
    for (holds_requests, holds_responses) in half_open {
        let mut client = connect(&proxy).await;
        send_and_receive(&mut client, "there").await.unwrap();
        proxy.set_toxics(Toxics { holds_requests, holds_responses, ..Toxics::default() });
        client.write_all(b"held").await.unwrap();
        assert!(is_silent(&mut client).await);
        proxy.heal();
        let mut answer = [0; 4];
        timeout(TIMEOUT, client.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"held");
    }
}

#[tokio::test]
async fn a_reset_ends_every_connection_and_the_next_one_is_accepted() {
    let (proxy, _echoing) = start_echo().await;
    let mut clients = [connect(&proxy).await, connect(&proxy).await];
    for client in &mut clients {
        send_and_receive(client, "there").await.unwrap();
    }
    proxy.reset_connections();
    for client in &mut clients {
        let ended = timeout(TIMEOUT, client.read(&mut [0; 1])).await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    send_and_receive(&mut connect(&proxy).await, "again").await.unwrap();
}

#[tokio::test]
async fn while_it_refuses_new_connections_fail_and_open_ones_continue() {
    let (proxy, _echoing) = start_echo().await;
    let mut client = connect(&proxy).await;
    send_and_receive(&mut client, "there").await.unwrap();
    proxy.set_toxics(Toxics { refuses_connections: true, ..Toxics::default() });
    let deadline = Instant::now() + TIMEOUT;
    while TcpStream::connect(proxy.address()).await.is_ok() {
        assert!(Instant::now() < deadline, "it still listens");
    }
    send_and_receive(&mut client, "still").await.unwrap();
    proxy.heal();
    while TcpStream::connect(proxy.address()).await.is_err() {
        assert!(Instant::now() < deadline, "it does not listen again");
    }
}

/// Services connect again at once, so there is always a connection that is being accepted.
#[tokio::test]
async fn a_connection_being_accepted_when_it_begins_to_refuse_is_not_forwarded() {
    let (proxy, _echoing) = start_echo().await;
    let deadline = Instant::now() + TIMEOUT;
    for steps in 0..30 {
        let mut client = loop {
            assert!(Instant::now() < deadline, "it does not listen again");
            if let Ok(client) = TcpStream::connect(proxy.address()).await {
                break client;
            }
        };
        for _ in 0..steps {
            yield_now().await;
        }
        proxy.set_toxics(Toxics { refuses_connections: true, ..Toxics::default() });
        proxy.reset_connections();
        let sent =
            timeout(TIMEOUT, send_and_receive(&mut client, "through")).await.expect("it ends");
        assert!(sent.is_err(), "the connection was forwarded, {steps} steps after it connected");
        proxy.heal();
    }
}

#[tokio::test]
async fn limited_bandwidth_delays_data() {
    let (proxy, _echoing) = start_echo().await;
    let mut client = connect(&proxy).await;
    proxy.set_toxics(Toxics { bytes_per_second: Some(10_000), ..Toxics::default() });
    client.write_all(&[7; 4_000]).await.unwrap();
    let began = Instant::now();
    // The second message waits behind the first in both directions.
    sleep(Duration::from_millis(50)).await;
    client.write_all(&[7; 10]).await.unwrap();
    let mut answer = [0; 4_010];
    client.read_exact(&mut answer).await.unwrap();
    assert!(began.elapsed() > Duration::from_millis(350), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_commit_reaches_the_server_and_its_response_is_cut_off() {
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let proxy = Proxy::start(server).await.unwrap();
    let mut client = connect(&proxy).await;
    let (mut server, _) = listener.accept().await.unwrap();
    proxy.set_toxics(Toxics { commit_cut_percent: 100, ..Toxics::default() });
    client.write_all(b"Q\0\0\0\x0bbegin\0").await.unwrap();
    // The message is split into two chunks.
    client.write_all(b"Q\0\0\0\x0bCOM").await.unwrap();
    let mut received = vec![0; 11 + 8];
    server.read_exact(&mut received).await.unwrap();
    client.write_all(b"MIT\0").await.unwrap();
    let mut rest = Vec::new();
    server.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"MIT\0");
    let _ = server.write_all(b"done").await;
    let ended = client.read(&mut [0; 4]).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!((proxy.commits_cut(), proxy.affected()), (1, 1));
}

#[tokio::test]
async fn toxics_on_an_idle_proxy_affect_nothing() {
    let (proxy, _echoing) = start_echo().await;
    proxy.reset_connections();
    proxy.set_toxics(Toxics::black_hole());
    proxy.heal();
    assert_eq!(proxy.affected(), 0);
    let mut client = connect(&proxy).await;
    send_and_receive(&mut client, "there").await.unwrap();
    proxy.set_toxics(Toxics { holds_responses: true, ..Toxics::default() });
    assert_eq!(proxy.affected(), 0, "nothing was sent yet");
    client.write_all(b"held").await.unwrap();
    assert!(is_silent(&mut client).await);
    assert_eq!(proxy.affected(), 1, "the response, and not the request");
    proxy.reset_connections();
    assert_eq!(proxy.affected(), 2, "the connection");
}
