//! The operators' port, as far as dead letters go: list, read, replay, discard. No authentication,
//! so it stays on loopback, and answers no web page that a browser there has open.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Duration, Instant};
use uuid::Uuid;

use crate::dead_letter::{self, Letter, Short, Wanted};
use crate::extract::{Json, Path, Query};
use crate::loss::Loss;
use crate::pages::Limit;
use crate::pause;
use crate::problem::Problem;
use crate::replay::{Decoded, Letters, STILL_DEAD, Settled};
use crate::rows::Rows;

/// Letters that one request replays, at most, and how long it goes on beginning another.
const REPLAYED_MAX: i64 = 200;
const REPLAYING_MAX: Duration = Duration::from_secs(4);

/// Characters of the reason for a discard.
const BECAUSE_MAX: usize = 1_000;

pub(crate) fn router<R: Rows>(letters: Letters<R>) -> Router {
    let pause = pause::router(letters.db.clone());
    Router::new()
        .route("/dead-letters", get(list::<R>))
        .route("/dead-letters/replay", post(replay_all::<R>))
        .route("/dead-letters/{letter_id}", get(read::<R>))
        .route("/dead-letters/{letter_id}/replay", post(replay::<R>))
        .route("/dead-letters/{letter_id}/discard", post(discard::<R>))
        .with_state(Arc::new(letters))
        .merge(pause)
}

/// Refuses what a web page has its visitor's browser ask, which reaches loopback as well as the visitor
/// does. Where a page sends anything, its browser names the page's origin; where a name was made to lead
/// here, so that the page may read too, it names that.
pub(crate) async fn by_nobodys_page(request: Request, next: Next) -> Result<Response, Problem> {
    let headers = request.headers();
    let is_local = headers.get(header::HOST).is_none_or(|host| host.to_str().is_ok_and(is_local));
    if headers.contains_key(header::ORIGIN) || !is_local {
        let detail = "no web page may ask here, and nobody by a name other than localhost";
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    Ok(next.run(request).await)
}

/// Whether a `Host` header holds an address, which no name server can have made up, or `localhost`.
fn is_local(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let host = authority.host();
    host.eq_ignore_ascii_case("localhost")
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

type Desk<R> = State<Arc<Letters<R>>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    #[serde(default = "waiting")]
    state: Listed,
    topic: Option<String>,
    #[serde(default)]
    after: i64,
    #[serde(default)]
    limit: Limit<1_000>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Listed {
    Waiting,
    Replayed,
    Discarded,
    All,
}

fn waiting() -> Listed {
    Listed::Waiting
}

#[derive(Serialize)]
struct Page {
    /// How many wait, on whatever page.
    waiting: i64,
    dead_letters: Vec<Short>,
    /// What to ask for as `after` to get the next page, if there is one.
    next: Option<i64>,
}

/// Oldest first; those that wait, unless asked otherwise.
async fn list<R: Rows>(
    State(letters): Desk<R>,
    Query(listing): Query<Listing>,
) -> Result<Json<Page>, Problem> {
    let state = match listing.state {
        Listed::Waiting => Some(dead_letter::State::Waiting),
        Listed::Replayed => Some(dead_letter::State::Replayed),
        Listed::Discarded => Some(dead_letter::State::Discarded),
        Listed::All => None,
    };
    let wanted = Wanted { state, topic: listing.topic, after: listing.after };
    let waiting = Wanted { state: Some(dead_letter::State::Waiting), ..Wanted::default() };
    let waiting = dead_letter::count(&letters.db, &waiting).await?;
    let mut page = dead_letter::page(&letters.db, &wanted, listing.limit.rows()).await?;
    let next = listing.limit.page(&mut page, |last| last.letter_id);
    Ok(Json(Page { waiting, dead_letters: page, next }))
}

/// Everything that is known of a letter.
#[derive(Serialize)]
struct Whole {
    letter_id: i64,
    state: dead_letter::State,
    kind: String,
    reason: String,
    /// How often it was tried.
    attempts: i32,
    received_at: DateTime<Utc>,
    settled_at: Option<DateTime<Utc>>,
    /// Why it was discarded, in the operator's words.
    because: Option<String>,
    cluster: String,
    topic: String,
    partition: i32,
    offset: i64,
    event_id: Option<Uuid>,
    key: Option<String>,
    traceparent: Option<String>,
    headers: Value,
    #[serde(flatten)]
    decoded: Decoded,
    /// The record's bytes, in base64.
    record: Option<String>,
    /// What it would cost to discard it, while it waits.
    if_discarded: Option<Loss>,
}

async fn read<R: Rows>(
    State(letters): Desk<R>,
    Path(letter_id): Path<i64>,
) -> Result<Json<Whole>, Problem> {
    letters.registry.forget_unknown();
    let letter = letters.find(letter_id).await?;
    let decoded = letters.decoded(&letter).await;
    let if_discarded = match letter.state {
        dead_letter::State::Waiting => Some(match letters.if_discarded(&letter).await {
            Ok(loss) => loss,
            Err(problem) => {
                Loss::that(format!("What that costs can't be told: {}", problem.detail))
            }
        }),
        _ => None,
    };
    let Letter { state, kind, reason, attempts, received_at, settled_at, because, .. } = letter;
    let Letter { cluster, topic, partition, offset, event_id, key, headers, .. } = letter;
    let key = key.map(|key| String::from_utf8_lossy(&key).into_owned());
    let traceparent = headers["traceparent"].as_str().map(str::to_string);
    let record = letter.base64;
    Ok(Json(Whole {
        letter_id,
        state,
        kind,
        reason,
        attempts,
        received_at,
        settled_at,
        because,
        cluster,
        topic,
        partition,
        offset,
        event_id,
        key,
        traceparent,
        headers,
        decoded,
        record,
        if_discarded,
    }))
}

#[derive(Serialize)]
struct Settlement {
    letter_id: i64,
    outcome: Settled,
    /// What is given up now.
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<Loss>,
}

async fn replay<R: Rows>(
    State(letters): Desk<R>,
    Path(letter_id): Path<i64>,
) -> Result<Json<Settlement>, Problem> {
    letters.registry.forget_unknown();
    let outcome = letters.replay(letter_id).await?;
    Ok(Json(Settlement { letter_id, outcome, loss: None }))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplayAll {
    /// Only letters of this topic.
    topic: Option<String>,
    /// Only letters after this one: where the request before stopped.
    #[serde(default)]
    after: i64,
}

#[derive(Serialize)]
struct ReplayedAll {
    replayed: u64,
    still_dead: u64,
    /// How many wait that this request did not get to.
    left: i64,
    /// What to ask for as `after` to get to them.
    next: Option<i64>,
}

/// All that wait, oldest first, each in a transaction of its own, up to a bound.
async fn replay_all<R: Rows>(
    State(letters): Desk<R>,
    body: Bytes,
) -> Result<Json<ReplayedAll>, Problem> {
    let wanted: ReplayAll = match body.is_empty() {
        true => ReplayAll::default(),
        false => serde_json::from_slice(&body).map_err(|e| Problem::malformed(e.to_string()))?,
    };
    // Once for all of them: each unknown schema takes seconds to be unknown again.
    letters.registry.forget_unknown();
    let state = Some(dead_letter::State::Waiting);
    let mut wanted = Wanted { state, topic: wanted.topic, after: wanted.after };
    let (began, mut replayed, mut still_dead) = (Instant::now(), 0, 0);
    for letter in dead_letter::page(&letters.db, &wanted, REPLAYED_MAX).await? {
        if began.elapsed() > REPLAYING_MAX {
            break;
        }
        match letters.replay(letter.letter_id).await {
            Ok(_) => replayed += 1,
            // Somebody else may have discarded it meanwhile.
            Err(problem) if problem.kind == STILL_DEAD || problem.kind == "discarded" => {
                still_dead += 1;
            }
            Err(mut problem) => {
                problem.detail = format!(
                    "{replayed} letters were replayed and {still_dead} are still dead; then: {}",
                    problem.detail
                );
                return Err(problem);
            }
        }
        wanted.after = letter.letter_id;
    }
    // What was replayed stays so, whether or not it can be told now how many are left.
    let left = dead_letter::count(&letters.db, &wanted).await.map_err(Problem::cut)?;
    let next = Some(wanted.after).filter(|_| left > 0);
    Ok(Json(ReplayedAll { replayed, still_dead, left, next }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Discard {
    /// Why, in the operator's words.
    because: String,
    /// That what is lost with it may be written off.
    #[serde(default)]
    write_off: bool,
}

async fn discard<R: Rows>(
    State(letters): Desk<R>,
    Path(letter_id): Path<i64>,
    Json(wish): Json<Discard>,
) -> Result<Json<Settlement>, Problem> {
    let because = wish.because.trim();
    if because.is_empty() || because.chars().count() > BECAUSE_MAX {
        let detail = format!("It must say why, in 1 to {BECAUSE_MAX} characters.");
        return Err(Problem::invalid("because", detail));
    }
    letters.registry.forget_unknown();
    let (outcome, loss) = letters.discard(letter_id, because, wish.write_off).await?;
    Ok(Json(Settlement { letter_id, outcome, loss }))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::middleware::from_fn;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn no_page_in_a_browser_is_answered() {
        let port = Router::new().route("/", get(async || "here").post(async || "done"));
        let port = port.layer(from_fn(by_nobodys_page));
        for (name, value, status) in [
            ("host", "localhost:9011", 200),
            ("host", "127.0.0.1:9011", 200),
            ("host", "[::1]:9011", 200),
            ("x-none", "", 200),
            ("host", "rebound.example.com:9011", 403),
            ("host", "localhost.example.com", 403),
            ("host", "", 403),
            ("origin", "https://example.com", 403),
            ("origin", "null", 403),
        ] {
            for method in ["GET", "POST"] {
                let request = Request::builder().method(method).uri("/").header(name, value);
                let request = request.body(Body::empty()).unwrap();
                let answer = port.clone().oneshot(request).await.unwrap();
                assert_eq!(answer.status(), status, "{method} with {name}: {value}");
            }
        }
    }
}
