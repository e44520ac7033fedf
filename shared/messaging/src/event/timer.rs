//! Timers: what a decision wants done later. A decision sets, moves or cancels one; when it is due, its handler decides.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Serialize, de::DeserializeOwned};

use crate::event::{Effects, Outcome};

/// Every name of a timer begins with this. A Kafka topic cannot have such a name.
pub const TIMER_PREFIX: &str = "timer/";

/// The longest body of a timer, in bytes of its JSON.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// What is due later. The struct is what its handler gets, and is stored as JSON: a version that adds a field gives it a
/// default, since timers of the version before are pending.
pub trait Timer: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// `timer/` and what is due: `timer/deadline`. One of the service's own; it stays as long as a timer is pending.
    const NAME: &'static str;

    /// Whether processes of the service must have measured the time since it was set, less a minute. Time in which no
    /// process ran does not count.
    const MEASURED: bool = false;

    /// Whether the service must have handled every event that arrived before the timer was due: then no answer that came
    /// in time is unread.
    const CAUGHT_UP: bool = false;

    /// What it is about. There is one timer of this name and key at most: setting it again moves it.
    fn key(&self) -> String;

    /// Sets the timer, or moves it to this time by the clock of the service's database.
    ///
    /// # Panics
    /// If its JSON is longer than 16 KiB.
    fn at(&self, due_at: DateTime<Utc>) -> SetTimer {
        let body = serde_json::to_value(self).expect("timers are plain JSON");
        let bytes = body.to_string().len();
        assert!(bytes <= BODY_BYTES_MAX, "{} has {bytes} bytes of {BODY_BYTES_MAX}", Self::NAME);
        let timer = Self::named(self.key());
        SetTimer(TimerChange { timer, set: Some(Setting { body, due_at }) })
    }

    /// Cancels the timer of a key. Without one, it does nothing.
    fn cancel(key: impl ToString) -> CancelTimer {
        CancelTimer(TimerChange { timer: Self::named(key), set: None })
    }

    /// The timer of a key, for [`Webhook::awaited_by`](crate::event::Webhook::awaited_by).
    fn named(key: impl ToString) -> TimerKey {
        TimerKey { source: Self::NAME, key: key.to_string() }
    }
}

/// What holds up what is scheduled beside the database's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Guard {
    /// A jump ahead while the service runs is not believed for an hour.
    pub trusted: bool,
    pub measured: bool,
    pub caught_up: bool,
    /// For how long what its handler finds unprocessable is tried again.
    pub patience: Duration,
}

impl Guard {
    /// Nothing. What came back of a call is due when it comes.
    pub const NONE: Guard =
        Guard { trusted: false, measured: false, caught_up: false, patience: Duration::ZERO };

    /// That of the timers of a type. A timer that became due during an outage of the service fires after it.
    pub const fn of<T: Timer>() -> Guard {
        Guard { trusted: true, measured: T::MEASURED, caught_up: T::CAUGHT_UP, ..Guard::NONE }
    }
}

/// The outcome that sets or moves a timer.
#[must_use]
#[derive(Clone, Debug, PartialEq)]
pub struct SetTimer(pub(crate) TimerChange);

/// The outcome that cancels a timer.
#[must_use]
#[derive(Clone, Debug, PartialEq)]
pub struct CancelTimer(pub(crate) TimerChange);

/// The name and the key of a timer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerKey {
    /// Its name.
    pub source: &'static str,
    /// What it is about.
    pub key: String,
}

/// A timer that is set, or cancelled.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TimerChange {
    pub timer: TimerKey,
    pub set: Option<Setting>,
}

/// To what a timer is set.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Setting {
    pub body: serde_json::Value,
    pub due_at: DateTime<Utc>,
}

impl SetTimer {
    /// When it is due, for tests.
    pub fn due_at(&self) -> DateTime<Utc> {
        self.0.set.as_ref().expect("it is set").due_at
    }
}

impl Outcome for SetTimer {
    const EVENTS_MAX: usize = 0;

    fn collect(self, effects: &mut Effects) {
        effects.change_timer(self.0);
    }
}

impl Outcome for CancelTimer {
    const EVENTS_MAX: usize = 0;

    fn collect(self, effects: &mut Effects) {
        effects.change_timer(self.0);
    }
}
