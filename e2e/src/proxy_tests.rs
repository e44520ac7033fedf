//! Each thing that the way can do, seen by a client and a server that echoes.

use tokio::task::yield_now;

use super::*;

const SOON: Duration = Duration::from_secs(5);

/// A server that says back what it hears, and a proxy to it.
async fn echo() -> (Proxy, JoinHandle<()>) {
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let echoing = tokio::spawn(async move {
        while let Ok((mut heard, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = heard.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    (Proxy::to(server).await.unwrap(), echoing)
}

async fn connected(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.unwrap()
}

async fn say(client: &mut TcpStream, text: &str) -> std::io::Result<Duration> {
    let began = Instant::now();
    client.write_all(text.as_bytes()).await?;
    let mut answer = vec![0; text.len()];
    client.read_exact(&mut answer).await?;
    assert_eq!(answer, text.as_bytes());
    Ok(began.elapsed())
}

/// Whether nothing comes back for a while.
async fn is_silent(client: &mut TcpStream) -> bool {
    timeout(Duration::from_millis(300), client.read(&mut [0; 1])).await.is_err()
}

#[tokio::test]
async fn latency_is_felt_both_ways_and_ends_while_connections_live() {
    let (proxy, _echoing) = echo().await;
    let mut client = connected(&proxy).await;
    let (latency, jitter) = (Duration::from_millis(150), Duration::from_millis(50));
    let quick = 2 * (latency - jitter);
    assert!(say(&mut client, "quick").await.unwrap() < quick);
    proxy.set(Way { latency, jitter, ..Way::default() });
    let took = say(&mut client, "slow").await.unwrap();
    assert!((quick..Duration::from_secs(3)).contains(&took), "{took:?}");
    proxy.heal();
    assert!(say(&mut client, "quick").await.unwrap() < quick);
    assert_eq!(proxy.carried(), 2 * 14);
    assert_eq!(proxy.struck(), 2, "what was slow, once in each direction");
}

#[tokio::test]
async fn what_is_held_arrives_when_the_way_is_open_again() {
    let (proxy, _echoing) = echo().await;
    let half_open = [(true, false), (false, true), (true, true)];
    for (holds_requests, holds_answers) in half_open {
        let mut client = connected(&proxy).await;
        say(&mut client, "there").await.unwrap();
        proxy.set(Way { holds_requests, holds_answers, ..Way::default() });
        client.write_all(b"held").await.unwrap();
        assert!(is_silent(&mut client).await);
        proxy.heal();
        let mut answer = [0; 4];
        timeout(SOON, client.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"held");
    }
}

#[tokio::test]
async fn a_reset_ends_every_connection_and_the_next_one_is_taken() {
    let (proxy, _echoing) = echo().await;
    let mut clients = [connected(&proxy).await, connected(&proxy).await];
    for client in &mut clients {
        say(client, "there").await.unwrap();
    }
    proxy.reset();
    for client in &mut clients {
        let ended = timeout(SOON, client.read(&mut [0; 1])).await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    say(&mut connected(&proxy).await, "again").await.unwrap();
}

#[tokio::test]
async fn whoever_comes_while_it_refuses_is_refused_and_who_is_there_goes_on() {
    let (proxy, _echoing) = echo().await;
    let mut client = connected(&proxy).await;
    say(&mut client, "there").await.unwrap();
    proxy.set(Way { refuses: true, ..Way::default() });
    let deadline = Instant::now() + SOON;
    while TcpStream::connect(proxy.address()).await.is_ok() {
        assert!(Instant::now() < deadline, "it goes on listening");
    }
    say(&mut client, "still").await.unwrap();
    proxy.heal();
    while TcpStream::connect(proxy.address()).await.is_err() {
        assert!(Instant::now() < deadline, "it does not listen again");
    }
}

/// Services connect again at once, so there is always somebody on the way in.
#[tokio::test]
async fn whoever_is_on_the_way_in_when_it_comes_to_refuse_does_not_get_through() {
    let (proxy, _echoing) = echo().await;
    let deadline = Instant::now() + SOON;
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
        proxy.set(Way { refuses: true, ..Way::default() });
        proxy.reset();
        let said = timeout(SOON, say(&mut client, "through")).await.expect("it ends");
        assert!(said.is_err(), "it got through, {steps} steps after it connected");
        proxy.heal();
    }
}

#[tokio::test]
async fn a_narrow_way_takes_its_time() {
    let (proxy, _echoing) = echo().await;
    let mut client = connected(&proxy).await;
    proxy.set(Way { bytes_per_second: Some(10_000), ..Way::default() });
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
async fn a_commit_reaches_the_server_and_its_answer_does_not_come() {
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let proxy = Proxy::to(server).await.unwrap();
    let mut client = connected(&proxy).await;
    let (mut server, _) = listener.accept().await.unwrap();
    proxy.set(Way { commits_cut_percent: 100, ..Way::default() });
    client.write_all(b"Q\0\0\0\x0bbegin\0").await.unwrap();
    // Spread over two pieces.
    client.write_all(b"Q\0\0\0\x0bCOM").await.unwrap();
    let mut heard = vec![0; 11 + 8];
    server.read_exact(&mut heard).await.unwrap();
    client.write_all(b"MIT\0").await.unwrap();
    let mut rest = Vec::new();
    server.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"MIT\0");
    let _ = server.write_all(b"done").await;
    let ended = client.read(&mut [0; 4]).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!((proxy.commits_cut(), proxy.struck()), (1, 1));
}

#[tokio::test]
async fn a_fault_of_a_way_over_which_nothing_passes_strikes_nothing() {
    let (proxy, _echoing) = echo().await;
    proxy.reset();
    proxy.set(Way::black_hole());
    proxy.heal();
    assert_eq!(proxy.struck(), 0);
    let mut client = connected(&proxy).await;
    say(&mut client, "there").await.unwrap();
    proxy.set(Way { holds_answers: true, ..Way::default() });
    assert_eq!(proxy.struck(), 0, "nobody said anything yet");
    client.write_all(b"held").await.unwrap();
    assert!(is_silent(&mut client).await);
    assert_eq!(proxy.struck(), 1, "the answer, and not the request");
    proxy.reset();
    assert_eq!(proxy.struck(), 2, "the connection");
}
