//! Who makes a request to a service: each kind of client of the shop has rights of its own.

use reqwest::{Method, Url};
use serde_json::Value;
use uuid::Uuid;

/// A client, as a secured stack knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A customer, who sees nothing of other customers.
    Customer(Uuid),
    /// Deposits into any account.
    PaymentProvider,
    /// Has items and deliveries.
    Warehouse,
    /// Reads what all customers have.
    Support,
    /// Acts on the admin port.
    Operator,
}

impl Identity {
    /// The client that makes a request. An order is placed by the customer in its body, and whatever
    /// else is read is read by support.
    pub fn of_request(method: &Method, url: &str, body: Option<&[u8]>) -> Identity {
        let path = Url::parse(url).map(|url| url.path().to_string()).unwrap_or_default();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match (method.as_str(), &segments[..]) {
            (_, ["consumer" | "dead-letters" | "republish" | "books", ..])
            | ("GET", ["published-events" | "handled-events" | "pending-orders"])
            | ("GET", ["sales" | "outcomes"])
            | ("POST", ["items", "rebuild"] | ["orders", _, "rebuild"]) => Identity::Operator,
            ("POST", ["orders"]) => Identity::Customer(customer_in(body).unwrap_or_default()),
            ("POST", ["accounts", _, "deposits"]) => Identity::PaymentProvider,
            ("PUT" | "POST", ["items", ..]) => Identity::Warehouse,
            _ => Identity::Support,
        }
    }

    /// The name in its tokens.
    pub fn subject(&self) -> String {
        match self {
            Identity::Customer(customer_id) => customer_id.to_string(),
            Identity::PaymentProvider => "payment-provider".to_string(),
            Identity::Warehouse => "warehouse".to_string(),
            Identity::Support => "support".to_string(),
            Identity::Operator => "operator".to_string(),
        }
    }

    /// What it may do.
    pub fn scopes(&self) -> &'static str {
        match self {
            Identity::Customer(_) => "orders:read orders:write accounts:read",
            Identity::PaymentProvider => "accounts:deposit",
            Identity::Warehouse => "items:write deliveries:write",
            Identity::Support => "support:read",
            Identity::Operator => "operator",
        }
    }
}

fn customer_in(body: Option<&[u8]>) -> Option<Uuid> {
    let order: Value = serde_json::from_slice(body?).ok()?;
    order["customer_id"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_made_by_the_client_that_may_make_it() {
        let customer = Uuid::from_u128(7);
        let order = format!(r#"{{"customer_id":"{customer}","lines":[]}}"#);
        let of = |method: &Method, path: &str, body: Option<&str>| {
            Identity::of_request(method, &format!("https://host:1{path}"), body.map(str::as_bytes))
        };
        let (get, post) = (Method::GET, Method::POST);
        assert_eq!(of(&post, "/orders", Some(&order)), Identity::Customer(customer));
        assert_eq!(of(&post, "/orders", Some("{")), Identity::Customer(Uuid::nil()));
        for (method, path, identity) in [
            (&get, "/orders?customer_id=7", Identity::Support),
            (&get, "/orders/7/history", Identity::Support),
            (&get, "/reservations/7", Identity::Support),
            (&get, "/accounts/7", Identity::Support),
            (&post, "/accounts/7/deposits", Identity::PaymentProvider),
            (&Method::PUT, "/items/cap", Identity::Warehouse),
            (&post, "/items/cap/deliveries", Identity::Warehouse),
            (&post, "/items/rebuild", Identity::Operator),
            (&post, "/orders/7/rebuild", Identity::Operator),
            (&get, "/dead-letters/7", Identity::Operator),
            (&post, "/dead-letters/replay", Identity::Operator),
            (&post, "/consumer/pause", Identity::Operator),
            (&post, "/consumer/resume", Identity::Operator),
            (&post, "/republish", Identity::Operator),
            (&get, "/published-events?key=7", Identity::Operator),
            (&get, "/handled-events?event_id=7", Identity::Operator),
            (&get, "/pending-orders", Identity::Operator),
            (&get, "/sales?minutes=7", Identity::Operator),
        ] {
            assert_eq!(of(method, path, None), identity, "{method} {path}");
        }
    }
}
