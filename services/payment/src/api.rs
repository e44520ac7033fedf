//! What clients ask of the payment service.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use chassis::commands::{Commands, Reply};
use chassis::extract::{IdempotencyKey, Json, Path};
use chassis::idempotency::Once;
use chassis::loss::{self, WrittenOff};
use chassis::problem::Problem;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use uuid::Uuid;

use crate::payment::{Account, Deposit, Ledger, Payment};
use crate::saga::{self, DEPOSITED_MAX_CENTS, Refusal};

#[derive(Clone)]
struct Api {
    db: PgPool,
    commands: Commands<Ledger>,
    currency: String,
}

/// The API.
pub fn router(db: PgPool, commands: Commands<Ledger>, currency: String) -> Router {
    Router::new()
        .route("/accounts/{customer_id}", get(show_account))
        .route("/accounts/{customer_id}/deposits", post(take_in))
        .route("/payments/{order_id}", get(show_payment))
        .with_state(Api { db, commands, currency })
}

async fn show_account(
    State(api): State<Api>,
    Path(customer_id): Path<Uuid>,
) -> Result<Answer<Account>, Problem> {
    let account = sqlx::query_as("select * from accounts where customer_id = $1")
        .bind(customer_id)
        .fetch_optional(&api.db)
        .await?;
    account.map(Answer).ok_or_else(|| Problem::not_found("this customer has no account"))
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct DepositWish {
    amount_cents: i64,
}

/// Money comes in; the first deposit opens the account.
async fn take_in(
    State(api): State<Api>,
    IdempotencyKey(key): IdempotencyKey,
    Path(customer_id): Path<Uuid>,
    Json(wish): Json<DepositWish>,
) -> Result<Reply, Problem> {
    let amount_cents = wish.amount_cents;
    if !(1..=DEPOSITED_MAX_CENTS).contains(&amount_cents) {
        let detail = format!("must be 1 to {DEPOSITED_MAX_CENTS}");
        return Err(Problem::invalid("amount_cents", detail));
    }
    let place = format!("/accounts/{customer_id}/deposits");
    let once = Once::new(place, &key, &wish);
    let (deposit_id, currency) = (Uuid::now_v7(), api.currency.clone());
    let deposit = Deposit { deposit_id, customer_id, amount_cents, currency };
    let decide = |deposit: &Deposit, ledger: &mut Ledger, at| {
        saga::take_in(deposit, ledger, at)?;
        let account = ledger.account(deposit.customer_id).ok_or_else(Problem::internal)?;
        Ok(Reply::created(format!("/accounts/{}", deposit.customer_id), account))
    };
    api.commands.run(deposit, Some(once), decide).await
}

async fn show_payment(
    State(api): State<Api>,
    Path(order_id): Path<Uuid>,
) -> Result<Answer<Payment>, Problem> {
    let payment = sqlx::query_as("select * from payments where order_id = $1")
        .bind(order_id)
        .fetch_optional(&api.db)
        .await?;
    payment.map(Answer).ok_or_else(|| Problem::not_found("payment has not heard of this order"))
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        match refusal {
            Refusal::TooMuch => {
                let detail = format!("an account takes in {DEPOSITED_MAX_CENTS} at most, ever");
                Problem::invalid("amount_cents", detail)
            }
            Refusal::OtherCurrency => Problem::conflict(
                "other-currency",
                "the account is in another currency than deposits are now",
            ),
        }
    }
}

#[derive(Serialize, sqlx::FromRow)]
struct Books {
    deposited_cents: i64,
    balance_cents: i64,
    taken_cents: i64,
    balanced: bool,
    /// With dead letters that were discarded.
    #[sqlx(skip)]
    written_off: Vec<WrittenOff>,
}

/// What came in is there or taken.
pub fn books(db: PgPool) -> Router {
    let books = async |State(db): State<PgPool>| -> Result<Answer<Books>, Problem> {
        let mut books: Books = sqlx::query_as(
            "select *, deposited_cents = balance_cents + taken_cents as balanced
             from (select coalesce(sum(deposited_cents), 0)::bigint as deposited_cents,
                          coalesce(sum(balance_cents), 0)::bigint as balance_cents,
                          coalesce(sum(taken_cents), 0)::bigint as taken_cents
                   from accounts) as sums",
        )
        .fetch_one(&db)
        .await?;
        books.written_off = loss::written_off(&db).await?;
        Ok(Answer(books))
    };
    Router::new().route("/books", get(books)).with_state(db)
}
