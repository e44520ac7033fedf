//! The lies, their rates, and how they are drawn.
//!
//! A draw is a hash of the seed, the kind of lie, the reference and a number. Neither a restart nor what happens to
//! other references changes it. For a lie of an answer, the number counts the requests for that reference, from 0, in
//! the order in which the carrier takes them. For a lie of a webhook, it is twice the place of the parcel among those of
//! its reference, and one more for the webhook of its end. Ids and the secrets of forgers are not drawn from the seed.

use clap::Args;
use openssl::sha::sha256;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! lies {
    ($($(#[$doc:meta])* $lie:ident, $field:ident, $option:literal;)+) => {
        /// A kind of lie. An answer tells one about its result at most: the first that is drawn, in this order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Lie { $($(#[$doc])* $lie,)+ }

        /// How often each lie is told: 0 is never, 1 is always.
        #[derive(Clone, Copy, Debug, PartialEq, Args)]
        pub struct Lies {
            $($(#[$doc])* #[arg(long = $option, default_value_t = 0.0, value_parser = parse_rate)]
            pub $field: f64,)+
        }

        impl Lies {
            /// All lies at one rate.
            pub fn all(rate: f64) -> Lies {
                Lies { $($field: rate,)+ }
            }

            fn rate(&self, lie: Lie) -> f64 {
                match lie { $(Lie::$lie => self.$field,)+ }
            }
        }
    };
}

lies! {
    /// The answer comes late, after the carrier has done what was asked
    Late, late, "lie-late";
    /// The carrier answers 500, and has done nothing
    ErrorBefore, error_before, "lie-error-before";
    /// The carrier does what was asked, and answers 500
    ErrorAfter, error_after, "lie-error-after";
    /// The carrier answers 202 with a parcel, and has booked none. It does not remember the key
    Phantom, phantom, "lie-phantom";
    /// The carrier does what was asked, and the connection ends before the whole answer arrived
    Dropped, dropped, "lie-dropped";
    /// A webhook is never sent
    WebhookLost, webhook_lost, "lie-webhook-lost";
    /// Each attempt of a webhook sends it twice, at the same time
    WebhookDoubled, webhook_doubled, "lie-webhook-doubled";
    /// A webhook is sent late
    WebhookDelayed, webhook_delayed, "lie-webhook-delayed";
    /// `parcel.collected` is sent when the webhook of the parcel's end was acknowledged, given up or lost
    WebhookReordered, webhook_reordered, "lie-webhook-reordered";
    /// A webhook is signed with the old secret
    WebhookOldSecret, webhook_old_secret, "lie-webhook-old-secret";
    /// One more webhook says that the parcel is lost, signed with a random secret. It is sent until anything answers
    WebhookForged, webhook_forged, "lie-webhook-forged";
}

impl Lies {
    /// Whether a lie is told. If so, a second draw: how much of its longest delay it takes.
    pub(crate) fn draw(&self, seed: u64, lie: Lie, reference: Uuid, number: u64) -> Option<f64> {
        let [drawn, fraction] = draw(seed, &format!("{lie:?}"), reference, number);
        (drawn < self.rate(lie)).then_some(fraction)
    }
}

/// Two numbers from 0 to below 1.
pub(crate) fn draw(seed: u64, kind: &str, reference: Uuid, number: u64) -> [f64; 2] {
    let hash = sha256(format!("{seed} {number} {reference} {kind}").as_bytes());
    [0, 8].map(|from| {
        let bits = hash[from..from + 6].iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
        bits as f64 / (1u64 << 48) as f64
    })
}

/// Reads a rate from the command line.
pub(crate) fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.0..=1.0).contains(rate));
    rate.ok_or_else(|| "a rate lies from 0 to 1".to_string())
}
