//! The orders that were placed on the page of the demo, live.

use axum::extract::State;
use axum::response::Response;
use futures::stream;
use maud::{Markup, html};
use tokio::time::sleep;

use crate::app::App;
use crate::feeds::recent_orders::POLL_INTERVAL;
use crate::operators::Operator;
use crate::order::{Order, leg_headings, money};
use crate::streams;

pub fn render(orders: &[Order]) -> Markup {
    html! {
        h2 { "Orders placed here" }
        @if orders.is_empty() { p.quiet { "None yet." } }
        @else { div.scroll { table {
            thead { tr { th { "Order" } th { "Status" } (leg_headings()) th { "Reason" } th.number { "Total" } } }
            tbody { @for order in orders {
                @let status = &order.status;
                tr {
                    th scope="row" { code { (order.order_id) } }
                    td { span.state.is-good[status == "confirmed"].is-warning[status == "pending"] { (status) } }
                    @for (_, state) in order.legs.states() { td { (state) } }
                    td.quiet { (order.reason().unwrap_or("–".to_string())) }
                    td.number { (money(order.total_cents)) }
                }
            } }
        } } }
    }
}

/// Streams the table, whenever it changes.
pub async fn follow(State(app): State<App>, operator: Operator) -> Response {
    let first = (app.clone(), operator, None);
    let messages = stream::unfold(first, |(app, operator, sent)| async move {
        loop {
            app.recent.refresh(&app.services, &operator).await;
            let markup = render(&app.recent.orders()).into_string();
            if sent.as_ref() != Some(&markup) {
                let message = streams::replace_region("recent", &markup);
                return Some((message, (app, operator, Some(markup))));
            }
            sleep(POLL_INTERVAL).await;
        }
    });
    streams::respond(&app.stopping, messages)
}
