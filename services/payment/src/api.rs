//! The API of the payment service.

use axum::Json;
use axum::extract::State;
use chassis::{
    Caller, Commands, Idempotent, Path, Problem, Record, Reply, deserialize_integer, label_request,
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::payment::{Account, Deposit, Ledger, Payment};
use crate::saga::{DEPOSITED_MAX_CENTS, Refusal};

#[derive(Clone)]
pub struct Api {
    db: PgPool,
    commands: Commands<Ledger>,
    currency: String,
}

/// The API.
pub fn router(db: PgPool, commands: Commands<Ledger>, currency: String) -> OpenApiRouter {
    routes().with_state(Api { db, commands, currency })
}

/// The routes of the API, each with its description.
pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(show_account))
        .routes(routes!(deposit))
        .routes(routes!(show_payment))
}

/// Shows a customer's account.
#[utoipa::path(get, path = "/accounts/{customer_id}",
    security(("token" = ["accounts:read"]), ("token" = ["support:read"])), responses(
    (status = 200, description = "The account.", body = Account),
    (status = 404, description = "This customer has no account."),
))]
async fn show_account(
    State(api): State<Api>,
    caller: Caller,
    Path(customer_id): Path<Uuid>,
) -> Result<Json<Account>, Problem> {
    let account = Account::find(&api.db, customer_id).await?;
    let account = account.filter(|account| caller.may_read(account.customer_id));
    account.map(Json).ok_or_else(|| Problem::not_found("this customer has no account"))
}

/// A deposit as a client requests it.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DepositRequest {
    #[schema(minimum = 1, maximum = 1_000_000_000_000_000_i64, examples(10_000))]
    #[serde(deserialize_with = "deserialize_integer")]
    amount_cents: i64,
}

/// Takes a deposit into an account.
///
/// The first deposit opens the account, in the currency of this service. A payment provider makes deposits, into the
/// account of any customer, and the answer tells nothing else of that account.
#[utoipa::path(post, path = "/accounts/{customer_id}/deposits", params(Idempotent<()>),
    request_body = DepositRequest, security(("token" = ["accounts:deposit"])), responses(
    (status = 201, description = "The deposit. `Location` has the account.", body = Deposit),
    (status = 409, description = "The account is in another currency than deposits are now."),
    (status = 422, description = "`field` breaks a rule, or all deposits together would be too large. \
        Or the key was used with another request."),
))]
async fn deposit(
    State(api): State<Api>,
    Path(customer_id): Path<Uuid>,
    request: Idempotent<DepositRequest>,
) -> Result<Reply, Problem> {
    let deposit = request.try_map(|request| request.deposit(customer_id, &api.currency))?;
    api.commands.execute(deposit).await
}

impl DepositRequest {
    /// The command that takes it into this account. A refusal names the field.
    fn deposit(self, customer_id: Uuid, currency: &str) -> Result<Deposit, Problem> {
        let amount_cents = self.amount_cents;
        if !(1..=DEPOSITED_MAX_CENTS).contains(&amount_cents) {
            let detail = format!("must be 1 to {DEPOSITED_MAX_CENTS}");
            return Err(Problem::invalid("amount_cents", detail));
        }
        let (deposit_id, currency) = (Uuid::now_v7(), currency.to_owned());
        Ok(Deposit { deposit_id, customer_id, amount_cents, currency })
    }
}

/// Shows what payment did for an order, and why.
#[utoipa::path(get, path = "/payments/{order_id}",
    security(("token" = ["accounts:read"]), ("token" = ["support:read"])), responses(
    (status = 200, description = "The payment. It is void if the cancellation of the order arrived \
        before the order.", body = Payment),
    (status = 404, description = "There is no payment for this order, or not yet."),
))]
async fn show_payment(
    State(api): State<Api>,
    caller: Caller,
    Path(order_id): Path<Uuid>,
) -> Result<Json<Payment>, Problem> {
    label_request("order_id", order_id);
    let payment = Payment::find(&api.db, order_id).await?;
    // A void payment has no customer: its order never arrived.
    let payment = payment.filter(|payment| match payment.customer_id {
        Some(customer_id) => caller.may_read(customer_id),
        None => caller.reads_all_owners(),
    });
    let missing = || Problem::not_found("there is no payment for this order");
    payment.map(Json).ok_or_else(missing)
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        match refusal {
            Refusal::LimitExceeded => {
                let detail =
                    format!("all deposits of an account are {DEPOSITED_MAX_CENTS} at most");
                Problem::invalid("amount_cents", detail)
            }
            Refusal::CurrencyMismatch => Problem::conflict(
                "currency-mismatch",
                "the account is in another currency than deposits are now",
            ),
        }
    }
}

/// Balanced if, for each account, the deposited cents are there or taken, its deposits add up to the deposited ones,
/// and its verified payments to the taken ones.
pub const BOOKS: &str = "
    select coalesce(sum(deposited_cents), 0) as deposited_cents,
           coalesce(sum(balance_cents), 0) as balance_cents,
           coalesce(sum(taken_cents), 0) as taken_cents,
           count(*) filter (where not (
               coalesce(deposited_cents = balance_cents + taken_cents, true)
               and coalesce(deposited_cents, 0) = coalesce(deposits_cents, 0)
               and coalesce(taken_cents, 0) = coalesce(payments_cents, 0))) = 0 as balanced
    from accounts
    full join (select customer_id, sum(amount_cents) as deposits_cents
               from deposits group by customer_id) as deposits using (customer_id)
    full join (select customer_id, sum(amount_cents) as payments_cents
               from payments where state = 'verified'
               group by customer_id) as payments using (customer_id)";
