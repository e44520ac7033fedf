//! The demo: place orders, kill a component, and watch what happens. It exists only with `DEMO=1`, because it does not
//! belong in production.

pub mod components;
pub mod recent;

use axum::Form;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use futures::future::join_all;
use maud::{Markup, html};
use ops_client::{Port, ServiceError};
use serde::Deserialize;
use serde_json::json;

use crate::app::App;
use crate::operators::Operator;
use crate::order::{DECIDER, money};
use crate::pages::{self, Notice, PageError, Section};
use crate::streams;

/// The customers of the demo, and what is particular about each: `make up` gives them money.
const CUSTOMERS: [(&str, &str); 3] = [
    ("01900000-0000-7000-8000-000000000001", "a rich customer"),
    ("01900000-0000-7000-8000-000000000002", "another rich customer"),
    ("01900000-0000-7000-8000-00000000000d", "a customer who cannot pay"),
];

/// Orders that one click places, at most.
const ORDERS_MAX: u32 = 50;

const QUANTITY_MAX: u32 = 1_000;

pub async fn show(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
) -> Result<Response, PageError> {
    let items = operator.ask(&app.services).get((DECIDER, Port::Api), "/items?limit=100").await;
    let components = components::panel(&app).await;
    let body = html! {
        div.title { h1 { "Demo" } (streams::state()) }
        p.lead.quiet { "Place orders, kill a component while they are under way, and start it again: every order ends, and nothing is lost." }
        div.columns.even {
            (order_panel(&items))
            (components)
        }
        div data-stream="/demo/events" {
            section #recent.panel aria-label="Orders placed here" aria-live="polite" {
                (recent::render(&app.recent.orders()))
            }
        }
    };
    Ok(pages::page(&headers, Section::Demo, "Demo", body))
}

#[derive(Deserialize)]
struct ItemPage {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    sku: String,
    name: String,
    price_cents: i64,
    currency: String,
}

fn order_panel(items: &Result<ItemPage, ServiceError>) -> Markup {
    let items = match items {
        Ok(page) => &page.items,
        Err(error) => return html! { p.notice.is-bad role="alert" { (error) } },
    };
    html! {
        section.panel aria-label="Place orders" {
            h2 { "Place orders" }
            form.stacked method="post" action="/demo/orders" {
                label for="customer" { "Customer" }
                select #customer name="customer" {
                    @for (id, name) in CUSTOMERS { option value=(id) { (name) } }
                }
                label for="sku" { "Item" }
                select #sku name="sku" {
                    @for item in items {
                        option value=(item.sku) { (item.name) " · " (money(item.price_cents)) " " (item.currency) }
                    }
                }
                label for="quantity" { "Quantity" }
                input #quantity name="quantity" type="number" min="1" max=(QUANTITY_MAX) value="2" required;
                label for="orders" { "Orders at once" }
                input #orders name="orders" type="number" min="1" max=(ORDERS_MAX) value="1" required;
                button.primary type="submit" { "Place" }
            }
        }
    }
}

#[derive(Deserialize)]
pub struct OrderForm {
    customer: String,
    sku: String,
    quantity: u32,
    orders: u32,
}

pub async fn place(
    State(app): State<App>,
    operator: Operator,
    Form(form): Form<OrderForm>,
) -> Response {
    let body = json!({
        "customer_id": form.customer,
        "lines": [{"sku": form.sku, "quantity": form.quantity.min(QUANTITY_MAX)}],
    });
    let ops = operator.ask(&app.services);
    let place = || ops.post((DECIDER, Port::Api), "/orders", Some(&body));
    let placed = join_all((0..form.orders.clamp(1, ORDERS_MAX)).map(|_| place())).await;
    let mut refusal = None;
    let mut accepted = 0;
    for order in placed {
        match order {
            Ok(order) => {
                accepted += 1;
                app.recent.add(order);
            }
            Err(error) => refusal = Some(error),
        }
    }
    let notice = match refusal {
        None => Notice::done(format!("{accepted} accepted.")),
        Some(error) => Notice::failed(format!("{accepted} accepted. {error}")),
    };
    pages::redirect("/demo", notice)
}
