//! The callers of a secured stack: each is known by a token of the issuer, and sees what is theirs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::http_client::Client;
use e2e::client::identity::Identity;
use e2e::client::order::Order;
use e2e::workload::seed::CUSTOMERS;
use launcher::{Stack, TokenIssuer};
use tokio::time::sleep;

use crate::fixture::*;

const TOKEN_LIFETIME: Duration = Duration::from_secs(600);

/// Longer than it takes every service to read the keys again.
const KEYS_READ_AFTER: Duration = Duration::from_secs(8);

/// A key that was withdrawn is refused by then.
const RETIRED_WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_is_known_by_a_token_of_the_issuer_and_by_no_other() -> Result<()> {
    let _permit = stack_permit().await?;
    let stack = secured_stack()?;
    // Its issuer has the same name and another key.
    let stranger = secured_stack()?;
    let client = start_and_seed(&stack).await?;
    let order = client.place_until_accepted(CUSTOMERS[0].customer_id, &basket()).await?;
    each_caller_sees_what_is_theirs(&stack, &stranger, &order).await?;
    keys_are_replaced_under_load(&stack, &client, &order).await
}

async fn each_caller_sees_what_is_theirs(
    stack: &Stack,
    stranger: &Stack,
    order: &Order,
) -> Result<()> {
    let (issuer, foreign) = (issuer(stack)?, issuer(stranger)?);
    let owner = Identity::Customer(order.customer_id);
    let other = Identity::Customer(CUSTOMERS[1].customer_id);
    let own_order = format!("{}/orders/{}", stack.url("order")?, order.order_id);
    let consumer = format!("{}/consumer", stack.admin_url("order")?);
    let items = format!("{}/items", stack.url("stock")?);
    for (what, url, token, expected) in [
        ("no token", &own_order, None, 401),
        ("a token of another issuer", &own_order, Some(sign(&foreign, owner)?), 401),
        ("the owner", &own_order, Some(sign(&issuer, owner)?), 200),
        ("another customer", &own_order, Some(sign(&issuer, other)?), 404),
        ("support", &own_order, Some(sign(&issuer, Identity::Support)?), 200),
        ("the warehouse", &own_order, Some(sign(&issuer, Identity::Warehouse)?), 403),
        ("no token for the list of items", &items, None, 200),
        ("no token at the admin port", &consumer, None, 401),
        ("a customer at the admin port", &consumer, Some(sign(&issuer, owner)?), 403),
        ("an operator", &consumer, Some(sign(&issuer, Identity::Operator)?), 200),
    ] {
        let status = status(stack, url, token.as_deref()).await?;
        ensure!(status == expected, "{what}: {status} in place of {expected}");
    }
    Ok(())
}

/// No request is refused while one key takes the place of another. Then the old one is.
async fn keys_are_replaced_under_load(stack: &Stack, client: &Client, order: &Order) -> Result<()> {
    let url = format!("{}/orders/{}", stack.url("order")?, order.order_id);
    let owner = Identity::Customer(order.customer_id);
    let before = sign(&issuer(stack)?, owner)?;
    let seconds = 3 * KEYS_READ_AFTER.as_secs();
    let after = under_load_without_errors(client, 20, seconds, async {
        stack.announce_token_key()?;
        sleep(KEYS_READ_AFTER).await;
        stack.switch_token_key()?;
        let after = sign(&issuer(stack)?, owner)?;
        for token in [&before, &after] {
            ensure!(status(stack, &url, Some(token)).await? == 200, "both keys are valid");
        }
        // A client may have signed with the old key at the last moment.
        sleep(Duration::from_secs(1)).await;
        stack.retire_token_key()?;
        Ok(after)
    })
    .await?;
    let retired = async || status(stack, &url, Some(&before)).await;
    wait_for("the retired key to be refused", RETIRED_WITHIN, retired, |it| *it == 401).await?;
    ensure!(status(stack, &url, Some(&after)).await? == 200, "the new key is valid");
    Ok(())
}

fn issuer(stack: &Stack) -> Result<TokenIssuer> {
    stack.token_issuer()?.context("a secured stack has an issuer")
}

fn sign(issuer: &TokenIssuer, identity: Identity) -> Result<String> {
    issuer.sign(&identity.subject(), identity.scopes(), TOKEN_LIFETIME)
}

/// The status of the answer to a request with this token.
pub async fn status(stack: &Stack, url: &str, token: Option<&str>) -> Result<u16> {
    let http = checker::http::client_builder(stack.ca_certificate()?.as_deref())?.build()?;
    let mut request = http.get(url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    Ok(request.send().await?.status().as_u16())
}
