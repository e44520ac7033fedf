//! The bodies of `POST /orders`, drawn at random.

use hyper::body::Bytes;
use rand::Rng;
use uuid::Uuid;

/// The number of accounts of the orders, each rich enough for every order.
pub const CUSTOMER_COUNT: usize = 10_000;

/// How the items of orders are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SkuDistribution {
    /// Each of this number of items has the same probability.
    Uniform(usize),
    /// The nth item has a probability proportional to 1/n; this holds the cumulative sums.
    Zipf(&'static [f64]),
}

impl SkuDistribution {
    pub fn zipf(count: usize) -> SkuDistribution {
        let sums = (1..=count).scan(0.0, |sum, nth| {
            *sum += 1.0 / nth as f64;
            Some(*sum)
        });
        SkuDistribution::Zipf(Vec::leak(sums.collect()))
    }
}

/// The shape of orders.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub skus: SkuDistribution,
    pub lines: usize,
}

impl Default for Workload {
    fn default() -> Workload {
        Workload { skus: SkuDistribution::Uniform(10_000), lines: 2 }
    }
}

/// An order of one of the customers.
#[derive(Clone)]
pub struct RandomOrder {
    pub customer: usize,
    pub body: Bytes,
}

impl Workload {
    pub fn random_order(&self) -> RandomOrder {
        let mut rng = rand::rng();
        let mut skus: Vec<usize> = Vec::with_capacity(self.lines);
        while skus.len() < self.lines {
            let sku = match self.skus {
                SkuDistribution::Uniform(count) => rng.random_range(0..count),
                SkuDistribution::Zipf(sums) => {
                    let at = rng.random_range(0.0..sums[sums.len() - 1]);
                    sums.partition_point(|sum| *sum <= at)
                }
            };
            if !skus.contains(&sku) {
                skus.push(sku);
            }
        }
        let lines: Vec<String> = skus
            .iter()
            .map(|sku| {
                format!(r#"{{"sku":"{}","quantity":{}}}"#, sku_name(*sku), rng.random_range(1..=3))
            })
            .collect();
        let customer = rng.random_range(0..CUSTOMER_COUNT);
        let customer_id = customer_id(customer);
        let body = format!(r#"{{"customer_id":"{customer_id}","lines":[{}]}}"#, lines.join(","));
        RandomOrder { customer, body: body.into() }
    }
}

pub fn sku_name(nth: usize) -> String {
    format!("bench-{nth:06}")
}

pub fn customer_id(nth: usize) -> Uuid {
    Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0000 + nth as u128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_ten_thousand_is_drawn_a_tenth_of_the_time_and_the_second_half_as_often() {
        let workload = Workload { skus: SkuDistribution::zipf(10_000), lines: 1 };
        let drawn: Vec<Bytes> = (0..20_000).map(|_| workload.random_order().body).collect();
        let times = |nth| {
            let sku = sku_name(nth).into_bytes();
            drawn.iter().filter(|body| body.windows(sku.len()).any(|part| part == sku)).count()
        };
        // 1/9.79 and half of that, plus or minus five standard deviations.
        assert!((1_830..2_260).contains(&times(0)), "{}", times(0));
        assert!((860..1_190).contains(&times(1)), "{}", times(1));
    }
}
