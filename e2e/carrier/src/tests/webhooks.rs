//! Each lie of a webhook, told always, and its attempts.

use super::*;

/// A carrier that delivered one parcel and tells these lies about webhooks, and what its receiver got.
async fn delivered(lies: Lies, status: u16, webhooks: usize) -> (Vec<Parcel>, Vec<Received>) {
    let directory = directory();
    let mut settings = Settings { lies, ..quick(directory.path()) };
    settings.old_secret = Some(parse_secret(OLD_SECRET).unwrap());
    settings.webhook_delay_max = Duration::from_secs(1);
    let receiver = Receiver::start(status, &mut settings).await;
    let carrier = Carrier::start(settings).await.unwrap();
    book(&carrier, ORDER, "key").await;
    reported(&directory, webhooks).await;
    (parcels(&directory), receiver.received())
}

#[tokio::test]
async fn a_lost_webhook_is_never_sent() {
    let lies = Lies { webhook_lost: 1.0, ..Lies::all(0.0) };
    let (parcels, received) = delivered(lies, 204, 2).await;
    assert!(received.is_empty());
    assert!(parcels[0].webhooks.iter().all(|it| it.state == WebhookState::Lost));
}

#[tokio::test]
async fn a_doubled_webhook_arrives_twice_with_one_id() {
    let lies = Lies { webhook_doubled: 1.0, ..Lies::all(0.0) };
    let (_, received) = delivered(lies, 204, 2).await;
    let ids: Vec<&str> = received.iter().map(|it| &*it.id).collect();
    assert!(ids.len() == 4 && ids[0] == ids[1] && ids[2] == ids[3] && ids[1] != ids[2], "{ids:?}");
}

#[tokio::test]
async fn a_delayed_webhook_is_sent_after_its_delay() {
    let lies = Lies { webhook_delayed: 1.0, ..Lies::all(0.0) };
    let (parcels, _) = delivered(lies, 204, 2).await;
    for (number, webhook) in parcels[0].webhooks.iter().enumerate() {
        let fraction = lies.draw(0, Lie::WebhookDelayed, ORDER, number as u64).unwrap();
        let delay = (webhook.send_at - webhook.occurred_at).to_std().unwrap();
        assert_eq!(delay, Duration::from_secs(1).mul_f64(fraction));
        assert!(Utc::now() >= webhook.send_at);
    }
}

#[tokio::test]
async fn a_reordered_webhook_arrives_after_that_of_the_end() {
    let lies = Lies { webhook_reordered: 1.0, ..Lies::all(0.0) };
    let (_, received) = delivered(lies, 204, 2).await;
    let kinds: Vec<String> = received.iter().map(Received::kind).collect();
    assert_eq!(kinds, ["parcel.delivered", "parcel.collected"]);
}

#[tokio::test]
async fn an_old_secret_signs_webhooks() {
    let lies = Lies { webhook_old_secret: 1.0, ..Lies::all(0.0) };
    let (_, received) = delivered(lies, 204, 2).await;
    assert_eq!(received.len(), 2);
    assert!(received.iter().all(|it| it.is_signed_with(OLD_SECRET) && !it.is_signed_with(SECRET)));
    let directory = directory();
    let mut settings = Settings { lies, ..quick(directory.path()) };
    let _receiver = Receiver::start(204, &mut settings).await;
    settings.secret = None;
    assert!(Carrier::start(settings).await.is_err(), "it has no secret");
}

#[tokio::test]
async fn a_forged_webhook_says_lost_and_is_sent_until_anything_answers() {
    let lies = Lies { webhook_forged: 1.0, ..Lies::all(0.0) };
    for (status, state) in [(204, WebhookState::Acknowledged), (401, WebhookState::GivenUp)] {
        let (parcels, received) = delivered(lies, status, 4).await;
        let (forged, true_ones): (Vec<_>, Vec<_>) =
            received.iter().partition(|it| !it.is_signed_with(SECRET));
        assert_eq!(forged.len(), 2);
        assert!(forged.iter().all(|it| it.kind() == "parcel.lost"));
        assert!(true_ones.iter().all(|it| it.kind() != "parcel.lost"));
        assert_eq!(parcels[0].state, State::Delivered);
        for webhook in &parcels[0].webhooks {
            let is_forged = forged.iter().any(|it| it.id == webhook.webhook_id.to_string());
            assert_eq!(webhook.lies == [Lie::WebhookForged], is_forged);
            assert_eq!(webhook.state, state);
        }
    }
}

#[tokio::test]
async fn a_webhook_is_sent_again_until_it_is_acknowledged_and_15_times_at_most() {
    let (parcels, received) = delivered(Lies::all(0.0), 503, 2).await;
    assert!(parcels[0].webhooks.iter().all(|it| it.state == WebhookState::GivenUp));
    for webhook in &parcels[0].webhooks {
        let attempts = received.iter().filter(|it| it.id == webhook.webhook_id.to_string());
        assert_eq!(attempts.filter(|it| it.is_signed_with(SECRET)).count(), 15);
    }
}
