//! The list of dead letters, with its filters.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use futures::future::join_all;
use maud::{Markup, html};
use ops_client::{DeadLetterFilter, DeadLetterPage, DeadLetterSummary, ServiceError, WAITING};
use serde::Deserialize;
use url::form_urlencoded;

use super::live::Loaded;
use super::{KINDS, STATES};
use crate::app::App;
use crate::feeds::attention;
use crate::metrics::snapshot::KnownSum;
use crate::operators::Operator;
use crate::pages::{self, PageError, Section};
use crate::{format, streams};

/// Rows of one service on a page.
const ROWS_MAX: usize = 200;

/// Reasons above the rows.
const CAUSES_MAX: usize = 5;

/// The dead letters that a page shows, and that its button replays. The admin port has the same parameters.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Filter {
    pub service: String,
    state: String,
    topic: String,
    kind: String,
    key: String,
    reason: String,
    since: String,
    until: String,
    after: Option<i64>,
}

impl Filter {
    /// The filter of a form, among its other pairs.
    pub fn from_pairs(pairs: &[(String, String)]) -> Filter {
        serde_json::from_value(pairs.iter().cloned().collect()).unwrap_or_default()
    }

    /// Whether it leaves out some of those that wait.
    fn is_partial(&self) -> bool {
        let mut fields = self.fields().into_iter().filter(|(name, _)| *name != "state");
        !self.service.is_empty() || fields.any(|(_, value)| !value.is_empty())
    }

    /// Whether it shows those that wait.
    fn shows_waiting(&self) -> bool {
        [WAITING, "all"].contains(&&*self.state)
    }

    /// The parameters of the page and of the admin port, beside the service and the page.
    fn fields(&self) -> [(&'static str, &str); 7] {
        [
            ("state", &self.state),
            ("topic", &self.topic),
            ("kind", &self.kind),
            ("key", &self.key),
            ("reason", &self.reason),
            ("since", &self.since),
            ("until", &self.until),
        ]
    }

    /// The filter, as the admin ports take it.
    ///
    /// # Errors
    /// If a time is none.
    pub fn parse(&self) -> Result<DeadLetterFilter, String> {
        let time = |text: &str| match text {
            "" => Ok(None),
            _ => format::parse_time(text).map(Some).ok_or_else(|| format!("`{text}` is no time.")),
        };
        Ok(DeadLetterFilter {
            state: self.state.clone(),
            topic: self.topic.clone(),
            kind: self.kind.clone(),
            key: self.key.clone(),
            reason: self.reason.clone(),
            since: time(&self.since)?,
            until: time(&self.until)?,
            after: self.after,
        })
    }

    /// The address of the next page of a service, here.
    fn next_page(&self, service: &str, after: i64) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("service", service).extend_pairs(self.fields());
        format!("/dead-letters?{}", query.append_pair("after", &after.to_string()).finish())
    }
}

/// What a service answered.
struct Listing {
    service: String,
    page: Result<DeadLetterPage, ServiceError>,
}

impl Listing {
    /// The dead letters that wait and match, on any page.
    fn waiting(&self) -> (&str, Option<f64>) {
        (&self.service, self.page.as_ref().ok().map(|page| page.waiting as f64))
    }
}

pub async fn show(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
    Query(mut filter): Query<Filter>,
) -> Result<Response, PageError> {
    if !STATES.iter().any(|(state, _)| *state == filter.state) {
        filter.state = WAITING.to_string();
    }
    let parsed = filter.parse();
    let parsed = parsed.map_err(|reason| PageError::new(StatusCode::BAD_REQUEST, reason))?;
    let names =
        app.services.names.iter().filter(|it| filter.service.is_empty() || **it == filter.service);
    let listings = join_all(names.map(async |service| {
        let page = operator.ask(&app.services).dead_letters(service, &parsed, ROWS_MAX).await;
        Listing { service: service.to_string(), page }
    }));
    let (listings, needed) =
        tokio::join!(listings, attention::read(&app.attention, &app.services, &operator));
    let waiting = KnownSum::new(listings.iter().map(Listing::waiting));
    let loaded = Loaded {
        service: filter.service.clone(),
        waiting: needed.waiting(&filter.service).to_string(),
    };
    let body = html! {
        div.title { h1 { "Dead letters" } (streams::state()) }
        (loaded.region(&app, &needed))
        (filters(&app, &filter))
        @for Listing { page, .. } in &listings {
            @if let Err(error) = page { p.notice.is-bad role="alert" { (error) } }
        }
        (table(&filter, &listings, &waiting))
    };
    Ok(pages::page(&headers, Section::DeadLetters, "Dead letters", body))
}

fn filters(app: &App, filter: &Filter) -> Markup {
    let select = |id: &str, name: &str, options: Vec<(String, String)>, chosen: &str| {
        html! {
            span {
                label for=(id) { (name) }
                select id=(id) name=(id) {
                    @for (value, text) in options {
                        option value=(value) selected[value == chosen] { (text) }
                    }
                }
            }
        }
    };
    let with_all = |all: &str, names: &mut dyn Iterator<Item = &str>| {
        let first = (String::new(), all.to_string());
        std::iter::once(first)
            .chain(names.map(|it| (it.to_string(), it.replace('_', " "))))
            .collect()
    };
    let services = with_all("every service", &mut app.services.names.iter().map(String::as_str));
    let kinds = with_all("every cause", &mut KINDS.into_iter());
    let states = STATES.iter().map(|(value, text)| (value.to_string(), text.to_string())).collect();
    html! {
        form.filters method="get" action="/dead-letters" {
            (select("service", "Service", services, &filter.service))
            (select("state", "State", states, &filter.state))
            (select("kind", "Cause", kinds, &filter.kind))
            @for (id, name, all, kind, value) in [
                ("topic", "Topic", "every topic", "text", &filter.topic),
                ("key", "Key", "every key", "text", &filter.key),
                ("reason", "Reason contains", "every reason", "text", &filter.reason),
                ("since", "Since, UTC", "", "datetime-local", &filter.since),
                ("until", "Before, UTC", "", "datetime-local", &filter.until),
            ] {
                span {
                    label for=(id) { (name) }
                    input id=(id) name=(id) type=(kind) value=(value) placeholder=(all) autocomplete="off";
                }
            }
            button type="submit" { "Filter" }
        }
    }
}

fn table(filter: &Filter, listings: &[Listing], waiting: &KnownSum) -> Markup {
    let (mut rows, mut next) = (Vec::new(), Vec::new());
    for Listing { service, page } in listings {
        let Ok(page) = page else { continue };
        next.extend(page.next.map(|next| (service, next)));
        rows.extend(page.dead_letters.iter().map(|letter| (&**service, letter)));
    }
    rows.sort_by_key(|(_, letter)| letter.received_at);
    html! {
        form.letters method="post" action="/dead-letters/replay" {
            input type="hidden" name="service" value=(filter.service);
            @for (name, value) in filter.fields() { input type="hidden" name=(name) value=(value); }
            (actions(filter, waiting, rows.len()))
            (common_causes(&rows))
            @if rows.is_empty() {
                p.empty { "No dead letter matches." }
            } @else {
                div.scroll { table.hover {
                    thead { tr {
                        th { input type="checkbox" data-selects="letter" aria-label="Select all rows"; }
                        th { "Dead letter" } th { "Why" } th { "Record" } th { "Since" } th { "State" }
                    } }
                    tbody { @for (service, letter) in &rows { (row(service, letter)) } }
                } }
            }
            @for (service, next) in next {
                p { a href=(filter.next_page(service, next)) { "Newer ones of " (service) } }
            }
        }
    }
}

fn actions(filter: &Filter, waiting: &KnownSum, shown: usize) -> Markup {
    let (sum, is_partial) = (waiting.sum.unwrap_or_default(), filter.is_partial());
    let number = format::count(sum);
    html! {
        div.actions {
            p { strong { (waiting) } " wait for an operator" @if is_partial { " and match" } ", " (shown) " shown" }
            @if filter.shows_waiting() { span {
                label for="rate" { "At most" }
                input #rate name="rate" type="number" min="1" max="200" value="20" required;
                span { "a second" }
                button type="submit" name="which" value="selected" { "Replay the selected" }
                button.primary type="submit" name="which" value="all" disabled[sum < 1.0] {
                    @if is_partial { "Replay the " (number) " that match" } @else { "Replay all " (number) " that wait" }
                }
            } }
        }
    }
}

/// The reasons that several rows have, the most frequent first: a bad deployment makes one reason many times.
fn common_causes(rows: &[(&str, &DeadLetterSummary)]) -> Markup {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (service, letter) in rows {
        *counts.entry((service, &letter.reason)).or_default() += 1;
    }
    let mut causes: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 1).collect();
    causes.sort_by_key(|(_, count)| Reverse(*count));
    html! {
        @if !causes.is_empty() {
            ul.causes aria-label="Common causes" {
                @for ((service, reason), count) in causes.into_iter().take(CAUSES_MAX) {
                    li { strong { (count) " of " (service) } " " span.why { (reason) } }
                }
            }
        }
    }
}

fn row(service: &str, letter: &DeadLetterSummary) -> Markup {
    let id = letter.dead_letter_id;
    let name = format!("{service} {id}");
    html! {
        tr {
            td { @if letter.is_waiting() {
                input type="checkbox" name="letter" value={ (service) "/" (id) } aria-label={ "Select " (name) };
            } }
            th scope="row" { a href={ "/dead-letters/" (service) "/" (id) } { (name) } }
            td.why { span.tag { (letter.kind.replace('_', " ")) } " " (letter.reason) }
            td.quiet { (letter.position()) }
            td { time datetime=(letter.received_at.to_rfc3339()) { (format::time(letter.received_at)) } }
            td { span.state.is-warning[letter.is_waiting()] { (letter.state) } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_the_filter_of_its_list_and_a_time_must_be_one() {
        let pairs = [
            ("service", "stock"),
            ("state", "all"),
            ("reason", "a & b"),
            ("since", "2026-11-29T14:13"),
            ("letter", "stock/7"),
        ];
        let filter = Filter::from_pairs(&pairs.map(|(a, b)| (a.to_string(), b.to_string())));
        assert_eq!(filter.service, "stock");
        let since = filter.parse().unwrap().since.unwrap();
        assert_eq!(since.to_rfc3339(), "2026-11-29T14:13:00+00:00");
        let next = "/dead-letters?service=stock&state=all&topic=&kind=&key=&reason=a+%26+b\
                    &since=2026-11-29T14%3A13&until=&after=9";
        assert_eq!(filter.next_page("stock", 9), next);
        let wrong = Filter { until: "noon".to_string(), ..filter };
        assert_eq!(wrong.parse().unwrap_err(), "`noon` is no time.");
    }
}
