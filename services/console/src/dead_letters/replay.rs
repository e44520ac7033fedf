//! The replay of many dead letters, one after the other and at a bounded rate: the backlog does not overload a service
//! that has just recovered.

use std::time::Duration;

use axum::Form;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use ops_client::{DeadLetterFilter, ServiceError, WAITING};
use tokio::time::{MissedTickBehavior, interval};

use super::list::Filter;
use crate::app::App;
use crate::jobs::JobReport;
use crate::operators::Operator;
use crate::pages::{self, Notice};

const RATE_MAX: u32 = 200;

/// Dead letters that are listed at a time.
const PAGE_ROWS: usize = 200;

/// Failures in a row, other than a refusal of the dead letter itself, after which the replay ends.
const FAILURES_MAX: u32 = 5;

/// What was asked for: those that a filter shows, or some of them.
#[derive(Default)]
struct Request {
    filter: Filter,
    rate: u32,
    selected: Vec<(String, i64)>,
    is_all: bool,
}

impl Request {
    /// A form has one pair for each selected row, so it is read as pairs.
    fn from_pairs(pairs: Vec<(String, String)>) -> Request {
        let mut request = Request { filter: Filter::from_pairs(&pairs), ..Request::default() };
        for (name, value) in pairs {
            match &*name {
                "rate" => request.rate = value.parse().unwrap_or(1),
                "which" => request.is_all = value == "all",
                "letter" => request.selected.extend(
                    value
                        .split_once('/')
                        .and_then(|(service, id)| Some((service.to_string(), id.parse().ok()?))),
                ),
                _ => {}
            }
        }
        request.rate = request.rate.clamp(1, RATE_MAX);
        request
    }
}

pub async fn start(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
    Form(pairs): Form<Vec<(String, String)>>,
) -> Response {
    let request = Request::from_pairs(pairs);
    // The list with the operator's filter.
    let list = pages::referer_path(&headers);
    if !request.is_all && request.selected.is_empty() {
        return pages::redirect(list, Notice::failed("No dead letter is selected."));
    }
    let title = match request.is_all {
        true => format!("Replay of what waits and matches, {} a second", request.rate),
        false => {
            format!("Replay of {} selected, {} a second", request.selected.len(), request.rate)
        }
    };
    let (jobs, app) = (app.clone(), app);
    let started = jobs.jobs.start(title, move |report| async move {
        let mut replay = Replay::new(app, operator, request.rate, report);
        match request.is_all {
            true => replay.all(&request.filter).await?,
            false => replay.selected(&request.selected).await?,
        }
        Ok(replay.summary())
    });
    pages::redirect(list, started.map_or_else(|refused| refused, |()| Notice::done("")))
}

/// A replay under way.
struct Replay {
    app: App,
    operator: Operator,
    ticks: tokio::time::Interval,
    report: JobReport,
    replayed: u64,
    still_unprocessable: u64,
    failures: u32,
}

impl Replay {
    fn new(app: App, operator: Operator, rate: u32, report: JobReport) -> Replay {
        let mut ticks = interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Replay { app, operator, ticks, report, replayed: 0, still_unprocessable: 0, failures: 0 }
    }

    fn summary(&self) -> String {
        let stopped = if self.report.is_stopping() { "stopped by an operator; " } else { "" };
        format!(
            "{stopped}{} replayed, {} still unprocessable",
            self.replayed, self.still_unprocessable
        )
    }

    async fn selected(&mut self, selected: &[(String, i64)]) -> Result<(), String> {
        for (service, id) in selected {
            if self.report.is_stopping() {
                break;
            }
            self.replay(service, *id).await?;
        }
        Ok(())
    }

    /// Every dead letter that waits and matches.
    async fn all(&mut self, filter: &Filter) -> Result<(), String> {
        let mut waiting = DeadLetterFilter { state: WAITING.to_string(), ..filter.parse()? };
        let names = self.app.services.names.clone();
        for name in names.iter().filter(|it| filter.service.is_empty() || **it == filter.service) {
            waiting.after = Some(0);
            while waiting.after.is_some() && !self.report.is_stopping() {
                let ops = self.operator.ask(&self.app.services).patient();
                let page = ops.dead_letters(name, &waiting, PAGE_ROWS).await;
                let page = page.map_err(|error| format!("{}; then: {error}", self.summary()))?;
                let ids = page.dead_letters.iter().map(|it| (name.clone(), it.dead_letter_id));
                self.selected(&Vec::from_iter(ids)).await?;
                waiting.after = page.next;
            }
        }
        Ok(())
    }

    async fn replay(&mut self, service: &str, id: i64) -> Result<(), String> {
        self.ticks.tick().await;
        match self.operator.ask(&self.app.services).replay(service, id).await {
            Ok(_) => (self.replayed, self.failures) = (self.replayed + 1, 0),
            Err(ServiceError::Refused { status: StatusCode::CONFLICT, .. }) => {
                (self.still_unprocessable, self.failures) = (self.still_unprocessable + 1, 0);
            }
            Err(error) => {
                self.failures += 1;
                if self.failures >= FAILURES_MAX {
                    return Err(format!("{}; then: {error}", self.summary()));
                }
            }
        }
        self.report.update(self.summary());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_names_each_selected_dead_letter_and_its_rate_is_bounded() {
        let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
        let pairs = [
            ("rate", "9999"),
            ("which", "selected"),
            ("letter", "order/3"),
            ("letter", "stock/x"),
            ("letter", "stock/7"),
        ];
        let request = Request::from_pairs(pairs.map(|(a, b)| pair(a, b)).to_vec());
        assert_eq!((request.rate, request.is_all), (RATE_MAX, false));
        assert_eq!(request.selected, [("order".to_string(), 3), ("stock".to_string(), 7)]);
    }
}
