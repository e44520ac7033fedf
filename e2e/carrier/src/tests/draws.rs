//! How lies are drawn.

use super::*;

/// The lies about twelve references that are asked for at the same time, each by two requests.
async fn lies_told(seed: u64) -> Vec<(Uuid, Vec<(u64, Lie)>, Vec<Vec<Lie>>)> {
    let directory = directory();
    let late_max = Duration::from_millis(20);
    let lies = Lies { webhook_old_secret: 0.0, ..Lies::all(0.4) };
    let mut settings = Settings { seed, lies, late_max, ..quick(directory.path()) };
    settings.webhook_delay_max = Duration::ZERO;
    let _receiver = Receiver::start(204, &mut settings).await;
    let carrier = &*Carrier::start(settings).await.unwrap();
    let booked = (1..=12).map(Uuid::from_u128).map(|order| async move {
        for nth in 0..2 {
            let _ = try_book(carrier, order, &format!("{order} {nth}")).await;
        }
    });
    join_all(booked).await;
    let ledger = || Ledger::read(directory.path()).unwrap().references;
    let is_end = |it: &Parcel| it.state == State::Delivered;
    eventually(|| ledger().values().all(|entry| entry.parcels.iter().all(is_end))).await;
    let told = ledger().into_iter().map(|(order, entry)| {
        let webhooks = entry.parcels.into_iter().flat_map(|it| it.webhooks);
        (order, entry.lies, webhooks.map(|it| it.lies).collect())
    });
    told.collect()
}

#[tokio::test]
async fn equal_seeds_tell_equal_lies_and_others_tell_others() {
    let (first, again, other) = tokio::join!(lies_told(1), lies_told(1), lies_told(2));
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[test]
fn draws_are_even_and_independent() {
    let drawn = |seed, kind| (0..1000).map(move |number| draw(seed, kind, ORDER, number));
    let mean = |seed, kind| drawn(seed, kind).map(|[first, _]| first).sum::<f64>() / 1000.0;
    for (seed, kind) in [(1, "Late"), (2, "Late"), (1, "Dropped")] {
        assert!((mean(seed, kind) - 0.5).abs() < 0.05);
    }
    let both = drawn(1, "Late").zip(drawn(1, "Dropped"));
    let both = both.filter(|([late, _], [dropped, _])| *late < 0.5 && *dropped < 0.5).count();
    assert!((200..300).contains(&both), "{both}");
}
