//! The first page of the section: a field that takes the id of an order or of a customer, and what is stuck.

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use ops_client::Port;
use serde::Deserialize;

use super::stuck;
use crate::app::App;
use crate::format;
use crate::operators::Operator;
use crate::order::{DECIDER, Order, leg_headings};
use crate::pages::{self, PageError, Section};

/// Orders of a customer on a page.
const ORDERS_MAX: usize = 50;

#[derive(Deserialize)]
pub struct Search {
    #[serde(default)]
    id: String,
    /// The last order of the page before.
    #[serde(default)]
    after: String,
}

/// The orders of a customer, the newest first.
#[derive(Deserialize)]
struct OrderPage {
    orders: Vec<Order>,
    next: Option<String>,
}

/// An order is shown at once. A customer's orders are listed.
pub async fn show(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
    Query(search): Query<Search>,
) -> Result<Response, PageError> {
    let wanted = search.id.trim();
    if wanted.is_empty() {
        let body = html! {
            h1 { "Orders" }
            (form(""))
            (stuck::region(&app, &operator).await)
        };
        return Ok(pages::page(&headers, Section::Orders, "Orders", body));
    }
    let Some(id) = parse_id(wanted) else {
        return Ok(not_found(
            &headers,
            wanted,
            "An id is a UUID, such as 01900000-0000-7000-8000-000000000001.",
        ));
    };
    let (ops, place) = (operator.ask(&app.services), (DECIDER, Port::Api));
    if search.after.is_empty() {
        let path = format!("/orders/{id}");
        match ops.get::<Order>(place, &path).await {
            Ok(_) => return Ok(Redirect::to(&path).into_response()),
            Err(error) => match error.status() {
                // The token reads no order. The page of the order still has its timeline.
                Some(StatusCode::FORBIDDEN) => return Ok(Redirect::to(&path).into_response()),
                Some(StatusCode::NOT_FOUND) => {}
                _ => return Err(error.into()),
            },
        }
    }
    let mut path = format!("/orders?customer_id={id}&limit={ORDERS_MAX}");
    if let Some(after) = parse_id(&search.after) {
        path += &format!("&after={after}");
    }
    let page: OrderPage = ops.get(place, &path).await?;
    if page.orders.is_empty() && search.after.is_empty() {
        return Ok(not_found(
            &headers,
            &id,
            "No order has this id, and no customer with this id has an order.",
        ));
    }
    let body = html! {
        p.crumbs { a href="/orders" { "Orders" } }
        h1 { "Orders of a customer" }
        (form(&id))
        (list(&page.orders))
        @if let Some(next) = &page.next { p { a href={ "/orders?id=" (id) "&after=" (next) } { "Older orders" } } }
    };
    Ok(pages::page(&headers, Section::Orders, "Orders of a customer", body))
}

fn not_found(headers: &HeaderMap, wanted: &str, why: &str) -> Response {
    let body = html! {
        h1 { "Orders" }
        (form(wanted))
        p.notice.is-bad role="alert" { (why) }
    };
    (StatusCode::NOT_FOUND, pages::page(headers, Section::Orders, "Orders", body)).into_response()
}

fn form(wanted: &str) -> Markup {
    html! {
        form.filters role="search" method="get" action="/orders" {
            label for="id" { "Order or customer" }
            input.id #id name="id" value=(wanted) required autocomplete="off" spellcheck="false"
                placeholder="the id of an order or of a customer";
            button.primary type="submit" { "Find" }
        }
    }
}

fn list(orders: &[Order]) -> Markup {
    html! {
        section.panel { div.scroll { table.hover {
            thead { tr {
                th { "Order" } th { "Placed, UTC" } th { "Status" } (leg_headings()) th.number { "Total" }
            } }
            tbody { @for order in orders {
                @let (id, status) = (&order.order_id, &order.status);
                tr {
                    th scope="row" { a href={ "/orders/" (id) } { code { (id) } } }
                    td.when { (format::time(order.created_at)) }
                    td { span.state.is-good[status == "confirmed"].is-warning[status == "pending"] { (status) } }
                    @for (_, state) in order.legs.states() { td { (state) } }
                    td.number { (order.amount()) }
                }
            } }
        } } }
    }
}

/// A UUID in its usual form; in this form it is safe in an address.
pub fn parse_id(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    let is_id = text.len() == 36
        && text.bytes().enumerate().all(|(nth, byte)| match nth {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    is_id.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_uuid_enters_an_address() {
        let id = "01900000-0000-7000-8000-000000000001";
        assert_eq!(parse_id(&format!(" {} ", id.to_uppercase())).as_deref(), Some(id));
        for other in [
            "",
            "7",
            "01900000-0000-7000-8000-00000000000g",
            "../../../books-0000-0000-000000000000",
        ] {
            assert_eq!(parse_id(other), None, "{other}");
        }
    }
}
