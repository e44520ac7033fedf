//! Work that takes longer than a request: a replay at a bounded rate, a republication. One job runs at a time, and the
//! pages show how far it is. The services keep what was done; a job that is lost with this process is begun again.

use std::sync::Arc;

use axum::response::sse::Event;
use chrono::{DateTime, Utc};
use futures::{Stream, stream};
use maud::{Markup, html};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::pages::Notice;
use crate::streams;

/// The region that shows the job.
const REGION: &str = "job";

/// The present job, or the last one.
#[derive(Clone, Debug, Default)]
pub struct JobState {
    /// What it does; empty if there was none.
    title: String,
    /// How far it is.
    progress: String,
    ended_at: Option<DateTime<Utc>>,
    is_bad: bool,
    is_stopping: bool,
}

/// The jobs of this process.
#[derive(Default)]
pub struct Jobs {
    state: Arc<watch::Sender<JobState>>,
    begin: Mutex<()>,
}

/// How a job tells its progress, and learns that it is to stop.
#[derive(Clone)]
pub struct JobReport(Arc<watch::Sender<JobState>>);

impl JobReport {
    /// Shows how far the job is.
    pub fn update(&self, text: String) {
        self.0.send_modify(|state| state.progress = text);
    }

    /// Whether an operator wants it to stop.
    pub fn is_stopping(&self) -> bool {
        self.0.borrow().is_stopping
    }
}

impl Jobs {
    /// Starts a job in the background. Its result is the last line of its progress.
    ///
    /// # Errors
    /// If another one runs.
    pub fn start<R>(&self, title: String, job: impl FnOnce(JobReport) -> R) -> Result<(), Notice>
    where
        R: Future<Output = Result<String, String>> + Send + 'static,
    {
        let _guard = self.begin.lock();
        if self.is_running() {
            return Err(Notice::failed("Another job is running: wait until it ends, or stop it."));
        }
        self.state.send_replace(JobState { title, ..JobState::default() });
        let (state, job) = (self.state.clone(), job(JobReport(self.state.clone())));
        tokio::spawn(async move {
            let ended = job.await;
            state.send_modify(|state| {
                state.ended_at = Some(Utc::now());
                state.is_bad = ended.is_err();
                state.progress = ended.unwrap_or_else(|reason| reason);
            });
        });
        Ok(())
    }

    /// Has the job stop after its current step.
    pub fn stop(&self) {
        self.state.send_modify(|state| state.is_stopping = true);
    }

    pub fn is_running(&self) -> bool {
        let state = self.state.borrow();
        !state.title.is_empty() && state.ended_at.is_none()
    }

    /// The region that shows the job, with the stream that keeps it current.
    pub fn live_region(&self) -> Markup {
        html! { div data-stream="/jobs/events" { (self.region()) } }
    }

    /// The region that shows the job, for a page with a stream of its own.
    pub fn region(&self) -> Markup {
        html! {
            section id=(REGION) aria-label="Job" aria-live="polite" { (render(&self.state.borrow())) }
        }
    }

    /// The region, whenever it changes.
    pub fn updates(&self) -> impl Stream<Item = Event> + Send + use<> {
        let mut receiver = self.state.subscribe();
        receiver.mark_changed();
        stream::unfold(receiver, |mut receiver| async move {
            receiver.changed().await.ok()?;
            let markup = render(&receiver.borrow_and_update()).into_string();
            Some((streams::replace_region(REGION, &markup), receiver))
        })
    }
}

fn render(state: &JobState) -> Markup {
    if state.title.is_empty() {
        return html! {};
    }
    let is_running = state.ended_at.is_none();
    html! {
        div.notice.job.is-bad[state.is_bad] data-runs=[is_running.then_some("")] {
            strong { (state.title) }
            span {
                @match state.ended_at {
                    None if state.is_stopping => "stops … ",
                    None => "runs … ",
                    Some(at) => { "ended " (at.format("%H:%M:%S")) " UTC: " }
                }
                (state.progress)
            }
            @if is_running { form method="post" action="/jobs/stop" { button type="submit" { "Stop" } } }
        }
    }
}
