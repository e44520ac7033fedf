//! The orders that were placed on the page of the demo, and how far each is.

use std::collections::VecDeque;
use std::time::Duration;

use chassis::{CachedAnswer, Problem};
use futures::future::join_all;
use ops_client::{Port, Services};
use parking_lot::Mutex;

use crate::operators::Operator;
use crate::order::{DECIDER, Order};

const ORDERS_MAX: usize = 12;

/// How often those that have not ended are read again.
pub const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The newest orders, the newest first.
#[derive(Default)]
pub struct RecentOrders {
    orders: Mutex<VecDeque<Order>>,
    /// When they were last read again, for all viewers.
    refreshed: CachedAnswer<()>,
}

impl RecentOrders {
    /// Adds an order as its service answered.
    pub fn add(&self, order: Order) {
        let mut orders = self.orders.lock();
        orders.push_front(order);
        orders.truncate(ORDERS_MAX);
    }

    pub fn orders(&self) -> Vec<Order> {
        self.orders.lock().iter().cloned().collect()
    }

    fn replace(&self, order: Order) {
        let mut orders = self.orders.lock();
        if let Some(known) = orders.iter_mut().find(|it| it.order_id == order.order_id) {
            *known = order;
        }
    }

    /// Reads those that have not ended again, however many viewers ask for it.
    pub async fn refresh(&self, services: &Services, operator: &Operator) {
        let read = async {
            self.read_open(services, operator).await;
            Ok::<_, Problem>(())
        };
        let _ = self.refreshed.get(POLL_INTERVAL, read).await;
    }

    async fn read_open(&self, services: &Services, operator: &Operator) {
        let is_open =
            |order: &Order| order.status == "pending" || !order.missing_answers().is_empty();
        let open = self.orders().into_iter().filter(is_open);
        let read = open.map(async |order| {
            let path = format!("/orders/{}", order.order_id);
            operator.ask(services).get((DECIDER, Port::Api), &path).await
        });
        join_all(read).await.into_iter().flatten().for_each(|order| self.replace(order));
    }
}
