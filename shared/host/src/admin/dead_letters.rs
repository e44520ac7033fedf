//! Dead letters on the admin port: list, read, replay, discard.

use std::sync::Arc;

use axum::extract::State;
use chrono::{DateTime, Utc};
use messaging::dead_letter::discard_impact::DiscardImpact;
use messaging::dead_letter::query::{DeadLetterFilter, DeadLetterSummary};
use messaging::dead_letter::{self, DeadLetter, DeadLetterState, ReasonKind};
use messaging::unit_of_work::UnitOfWork;
use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::admin::reason::check_reason;
use crate::admin::replay::{DeadLetters, DecodedRecord, STILL_UNPROCESSABLE, SettleOutcome};
use crate::http::callers::caller::Caller;
use crate::http::extractors::{Json, JsonOrDefault, Path, Query};
use crate::http::pagination::PageLimit;
use crate::http::problem::Problem;

/// Dead letters that one request replays, at most, and the time after which it begins no further one.
const REPLAY_BATCH_MAX: i64 = 200;
const REPLAY_DURATION_MAX: Duration = Duration::from_secs(4);

pub(crate) fn router<R: UnitOfWork>(dead_letters: DeadLetters<R>) -> OpenApiRouter {
    // `routes!` takes a handler by its name, without its type parameter.
    let (list_dead_letters, show_dead_letter) = (list_dead_letters::<R>, show_dead_letter::<R>);
    let (replay_all, replay, discard) = (replay_all::<R>, replay::<R>, discard::<R>);
    OpenApiRouter::new()
        .routes(routes!(list_dead_letters))
        .routes(routes!(replay_all))
        .routes(routes!(show_dead_letter))
        .routes(routes!(replay))
        .routes(routes!(discard))
        .with_state(Arc::new(dead_letters))
}

type AdminState<R> = State<Arc<DeadLetters<R>>>;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// `waiting`, `replayed`, `discarded` or `all`.
    #[serde(default)]
    #[param(value_type = String, pattern = "^(waiting|replayed|discarded|all)$", default = "waiting")]
    state: ListedState,
    /// Only dead letters of this topic.
    topic: Option<String>,
    /// Only dead letters of this kind: `undecodable`, `unprocessable` or `handler_failed`.
    #[param(value_type = Option<String>)]
    kind: Option<ReasonKind>,
    /// Only dead letters whose record has this key.
    key: Option<String>,
    /// Only dead letters whose reason contains this text, in upper or lower case.
    reason: Option<String>,
    /// Only dead letters that were stored at this time or later.
    since: Option<DateTime<Utc>>,
    /// Only dead letters that were stored before this time.
    until: Option<DateTime<Utc>>,
    /// Only dead letters after this id: `next` of the page before.
    #[serde(default)]
    after: i64,
    #[serde(default)]
    #[param(inline)]
    limit: PageLimit<1_000>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ListedState {
    #[default]
    Waiting,
    Replayed,
    Discarded,
    All,
}

#[derive(Serialize, ToSchema)]
struct DeadLetterPage {
    /// The number of those that wait and that the other parameters match, on any page.
    waiting: i64,
    dead_letters: Vec<DeadLetterSummary>,
    /// The value of `after` for the next page, if there is one.
    #[schema(required)]
    next: Option<i64>,
}

/// Lists dead letters: those that wait, unless the request names another state.
///
/// Ordered by `dead_letter_id`: the oldest come first.
#[utoipa::path(get, path = "/dead-letters", params(ListQuery), responses(
    (status = 200, description = "A page of dead letters.", body = DeadLetterPage),
))]
async fn list_dead_letters<R: UnitOfWork>(
    State(dead_letters): AdminState<R>,
    Query(listing): Query<ListQuery>,
) -> Result<Json<DeadLetterPage>, Problem> {
    let ListQuery { state, topic, kind, key, reason, since, until, after, limit } = listing;
    let state = match state {
        ListedState::Waiting => Some(DeadLetterState::Waiting),
        ListedState::Replayed => Some(DeadLetterState::Replayed),
        ListedState::Discarded => Some(DeadLetterState::Discarded),
        ListedState::All => None,
    };
    let filter = DeadLetterFilter { topic, kind, key, reason, since, until, after };
    let on_any_page = DeadLetterFilter { after: 0, ..filter.clone() };
    let db = &dead_letters.db;
    let waiting = dead_letter::count_waiting(db, &on_any_page).await?;
    let mut page = dead_letter::list(db, state, &filter, limit.query_limit()).await?;
    let next = limit.split_page_by_rows(&mut page, |last| last.dead_letter_id);
    Ok(Json(DeadLetterPage { waiting, dead_letters: page, next }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct DeadLetterPath {
    #[param(minimum = 1)]
    dead_letter_id: i64,
}

/// Everything that is known of a dead letter.
#[derive(Serialize, ToSchema)]
struct DeadLetterDetail {
    #[serde(flatten)]
    dead_letter: DeadLetter,
    #[schema(required)]
    traceparent: Option<String>,
    #[serde(flatten)]
    decoded: DecodedRecord,
    /// The impact of discarding it, while it waits.
    #[schema(required)]
    discard_impact: Option<DiscardImpact>,
}

/// Shows a dead letter: its place, its content, why it failed, and what a discard of it gives up.
#[utoipa::path(get, path = "/dead-letters/{dead_letter_id}", params(DeadLetterPath), responses(
    (status = 200, description = "The dead letter.", body = DeadLetterDetail),
    (status = 404, description = "There is no such dead letter."),
))]
async fn show_dead_letter<R: UnitOfWork>(
    State(dead_letters): AdminState<R>,
    Path(DeadLetterPath { dead_letter_id }): Path<DeadLetterPath>,
) -> Result<Json<DeadLetterDetail>, Problem> {
    dead_letters.registry.evict_unresolved();
    let dead_letter = dead_letters.find(dead_letter_id).await?;
    let decoded = dead_letters.decode(&dead_letter).await;
    let discard_impact = match dead_letter.state {
        DeadLetterState::Waiting => {
            let impact = dead_letters.discard_impact(&dead_letter).await;
            Some(impact.unwrap_or_else(|problem| {
                DiscardImpact::new(format!("The impact is unknown: {}", problem.detail))
            }))
        }
        DeadLetterState::Replayed | DeadLetterState::Discarded => None,
    };
    let traceparent = dead_letter.headers["traceparent"].as_str().map(str::to_string);
    Ok(Json(DeadLetterDetail { dead_letter, traceparent, decoded, discard_impact }))
}

#[derive(Serialize, ToSchema)]
struct SettleResponse {
    dead_letter_id: i64,
    outcome: SettleOutcome,
    /// The impact of this discard.
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<DiscardImpact>,
}

/// Replays a dead letter: its event has its effect now.
#[utoipa::path(post, path = "/dead-letters/{dead_letter_id}/replay", params(DeadLetterPath), responses(
    (status = 200, description = "It is settled.", body = SettleResponse),
    (status = 404, description = "There is no such dead letter."),
    (status = 409, description = "Of type `/problems/still-unprocessable`: it would be a dead letter again. Of type \
        `/problems/discarded`: it was discarded, which is final."),
))]
async fn replay<R: UnitOfWork>(
    State(dead_letters): AdminState<R>,
    actor: Caller,
    Path(DeadLetterPath { dead_letter_id }): Path<DeadLetterPath>,
) -> Result<Json<SettleResponse>, Problem> {
    dead_letters.registry.evict_unresolved();
    let outcome = dead_letters.replay(dead_letter_id, &actor).await?;
    Ok(Json(SettleResponse { dead_letter_id, outcome, loss: None }))
}

#[derive(Serialize, ToSchema)]
struct ReplayAllResponse {
    replayed: u64,
    still_unprocessable: u64,
    /// The number of those that wait and that this request did not reach.
    left: i64,
    /// The value of `after` with which a request reaches them.
    #[schema(required)]
    next: Option<i64>,
}

/// Replays all dead letters that wait, the oldest first, each in a transaction of its own, up to a bound.
#[utoipa::path(post, path = "/dead-letters/replay",
    request_body(content = Option<DeadLetterFilter>, description = "Which of them: all, if there is no body."),
    responses((status = 200, description = "What this request did.", body = ReplayAllResponse)))]
async fn replay_all<R: UnitOfWork>(
    State(dead_letters): AdminState<R>,
    actor: Caller,
    JsonOrDefault(mut filter): JsonOrDefault<DeadLetterFilter>,
) -> Result<Json<ReplayAllResponse>, Problem> {
    // Once for all of them: it takes seconds until an unknown schema is known to be unknown again.
    dead_letters.registry.evict_unresolved();
    let db = &dead_letters.db;
    let waiting = Some(DeadLetterState::Waiting);
    let began = Instant::now();
    let (mut replayed, mut still_unprocessable) = (0, 0);
    for dead_letter in dead_letter::list(db, waiting, &filter, REPLAY_BATCH_MAX).await? {
        if began.elapsed() > REPLAY_DURATION_MAX {
            break;
        }
        match dead_letters.replay(dead_letter.dead_letter_id, &actor).await {
            Ok(_) => replayed += 1,
            // Another operator may have discarded it meanwhile.
            Err(problem) if problem.kind == STILL_UNPROCESSABLE || problem.kind == "discarded" => {
                still_unprocessable += 1;
            }
            Err(mut problem) => {
                problem.detail = format!(
                    "{replayed} dead letters were replayed and {still_unprocessable} are still unprocessable; then: {}",
                    problem.detail
                );
                return Err(problem);
            }
        }
        filter.after = dead_letter.dead_letter_id;
    }
    // The replayed ones stay replayed, even if the number of those left is unknown now.
    let left = dead_letter::count_waiting(db, &filter).await;
    let left = left.map_err(Problem::admin_outcome_unknown)?;
    let next = Some(filter.after).filter(|_| left > 0);
    Ok(Json(ReplayAllResponse { replayed, still_unprocessable, left, next }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DiscardRequest {
    /// The operator's reason.
    #[schema(min_length = 1, max_length = 1_000)]
    reason: String,
    /// Confirms that its write-offs are accepted.
    #[serde(default)]
    write_off: bool,
}

/// Discards a dead letter: its event never has its effect.
#[utoipa::path(post, path = "/dead-letters/{dead_letter_id}/discard", params(DeadLetterPath), responses(
    (status = 200, description = "It is settled.", body = SettleResponse),
    (status = 404, description = "There is no such dead letter."),
    (status = 409, description = "Of type `/problems/write-off-needed`: the request does not accept what the discard \
        writes off. Of type `/problems/replayed`: its event has had its effect."),
))]
async fn discard<R: UnitOfWork>(
    State(dead_letters): AdminState<R>,
    actor: Caller,
    Path(DeadLetterPath { dead_letter_id }): Path<DeadLetterPath>,
    Json(request): Json<DiscardRequest>,
) -> Result<Json<SettleResponse>, Problem> {
    let discard_reason = check_reason(&request.reason)?;
    dead_letters.registry.evict_unresolved();
    let (outcome, loss) =
        dead_letters.discard(dead_letter_id, discard_reason, request.write_off, &actor).await?;
    Ok(Json(SettleResponse { dead_letter_id, outcome, loss }))
}
