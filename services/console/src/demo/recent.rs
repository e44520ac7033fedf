//! The orders that were placed on the page of the demo, and how far each is.

use std::collections::VecDeque;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use chassis::{CachedAnswer, Problem};
use futures::future::join_all;
use futures::stream;
use maud::{Markup, html};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::sleep;

use crate::app::App;
use crate::operators::Operator;
use crate::services::Port;
use crate::streams;

const ORDERS_MAX: usize = 12;
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The newest orders, the newest first.
#[derive(Default)]
pub struct RecentOrders {
    orders: Mutex<VecDeque<Value>>,
    /// When they were last read again, for all viewers.
    refreshed: CachedAnswer<()>,
}

impl RecentOrders {
    /// Adds an order as its service answered.
    pub fn add(&self, order: Value) {
        let mut orders = self.orders.lock();
        orders.push_front(order);
        orders.truncate(ORDERS_MAX);
    }

    pub fn orders(&self) -> Vec<Value> {
        self.orders.lock().iter().cloned().collect()
    }

    fn replace(&self, order: Value) {
        let mut orders = self.orders.lock();
        if let Some(known) = orders.iter_mut().find(|it| it["order_id"] == order["order_id"]) {
            *known = order;
        }
    }

    /// Reads those that have not ended again, however many viewers ask for it.
    async fn refresh(&self, app: &App, operator: &Operator) {
        let read = async {
            self.read_open(app, operator).await;
            Ok::<_, Problem>(())
        };
        let _ = self.refreshed.get(POLL_INTERVAL, read).await;
    }

    async fn read_open(&self, app: &App, operator: &Operator) {
        let is_open = |order: &Value| {
            let is_undone = [("payment", "verified"), ("stock", "reserved")]
                .iter()
                .all(|(leg, done)| order[*leg] != "waiting" && order[*leg] != *done);
            match order["status"].as_str() {
                Some("confirmed") => false,
                Some("cancelled") => !is_undone,
                _ => true,
            }
        };
        let open = self.orders().into_iter().filter(is_open);
        let paths =
            open.filter_map(|order| Some(format!("/orders/{}", order["order_id"].as_str()?)));
        let read = paths.map(|path| async move {
            app.services.get::<Value>(operator, ("order", Port::Api), &path).await
        });
        join_all(read).await.into_iter().flatten().for_each(|order| self.replace(order));
    }
}

pub fn render(orders: &[Value]) -> Markup {
    let field = |order: &Value, name: &str| order[name].as_str().unwrap_or("–").to_string();
    html! {
        h2 { "Orders placed here" }
        @if orders.is_empty() { p.quiet { "None yet." } }
        @else { div.scroll { table {
            thead { tr { th { "Order" } th { "Status" } th { "Payment" } th { "Stock" } th { "Reason" } th.number { "Total" } } }
            tbody { @for order in orders {
                @let status = field(order, "status");
                tr {
                    th scope="row" { code { (field(order, "order_id")) } }
                    td { span.state.is-good[status == "confirmed"].is-warning[status == "pending"] { (status) } }
                    td { (field(order, "payment")) }
                    td { (field(order, "stock")) }
                    td.quiet { (field(order, "reason").replace('_', " ")) }
                    td.number { (format!("{:.2}", order["total_cents"].as_f64().unwrap_or_default() / 100.0)) }
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
            app.recent.refresh(&app, &operator).await;
            let markup = render(&app.recent.orders()).into_string();
            if sent.as_ref() != Some(&markup) {
                let message = streams::replace_region("recent", &markup);
                return Some((message, (app, operator, Some(markup))));
            }
            sleep(POLL_INTERVAL).await;
        }
    });
    streams::respond(&app, messages)
}
