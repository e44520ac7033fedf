//! What is ordered: bodies of `POST /orders`, drawn by lot.

use hyper::body::Bytes;
use rand::Rng;
use uuid::Uuid;

/// Accounts that orders are drawn from, each rich enough for everything.
pub const CUSTOMERS: u128 = 10_000;

/// How the items of orders are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Skus {
    /// Each of so many is as likely as any other.
    Even(usize),
    /// The nth of so many is as likely as 1/n.
    Zipf(usize),
}

/// What orders look like.
#[derive(Clone, Copy, Debug)]
pub struct Wishes {
    pub skus: Skus,
    pub lines: usize,
}

impl Default for Wishes {
    fn default() -> Wishes {
        Wishes { skus: Skus::Even(10_000), lines: 2 }
    }
}

impl Wishes {
    pub fn draw(&self) -> Bytes {
        let mut rng = rand::rng();
        let mut skus: Vec<usize> = Vec::with_capacity(self.lines);
        while skus.len() < self.lines {
            let sku = match self.skus {
                Skus::Even(count) => rng.random_range(0..count),
                // The inverse of the distribution function of 1/x, which is what 1/n is for all
                // but the first few.
                Skus::Zipf(count) => {
                    let upper = (count as f64 + 1.0).ln();
                    let nth = (rng.random::<f64>() * upper).exp() as usize;
                    nth.clamp(1, count) - 1
                }
            };
            if !skus.contains(&sku) {
                skus.push(sku);
            }
        }
        let lines: Vec<String> = skus
            .iter()
            .map(|sku| {
                format!(r#"{{"sku":"{}","quantity":{}}}"#, sku_of(*sku), rng.random_range(1..=3))
            })
            .collect();
        let customer = customer(rng.random_range(0..CUSTOMERS));
        format!(r#"{{"customer_id":"{customer}","lines":[{}]}}"#, lines.join(",")).into()
    }
}

pub fn sku_of(nth: usize) -> String {
    format!("bench-{nth:06}")
}

pub fn customer(nth: u128) -> Uuid {
    Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0000 + nth)
}
