//! What an instance says of itself at `/metrics`.

use anyhow::{Context, Result};
use reqwest::Method;

use crate::Stack;
use crate::client::Client;

/// The text as it came.
pub struct Metrics(String);

impl Metrics {
    /// Of one instance, by its name.
    pub async fn of(stack: &Stack, client: &Client, name: &str) -> Result<Metrics> {
        let url = format!("{}/metrics", stack.probe_url(name)?);
        let answer = client.send(Method::GET, &url, None, None).await;
        let answer = answer.with_context(|| format!("{name} shows no metrics"))?;
        Ok(Metrics(String::from_utf8(answer.body)?))
    }

    /// A metric's sum over all its labels; `None` where it was never counted.
    pub fn sum(&self, name: &str) -> Option<f64> {
        let of = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let value = match rest.strip_prefix('{') {
                Some(labelled) => labelled.rsplit_once('}')?.1,
                None => rest,
            };
            value.strip_prefix(' ')?.trim().parse::<f64>().ok()
        };
        self.0.lines().filter_map(of).fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_over_nothing_else() {
        let text = "# TYPE handled counter\nhandled{topic=\"a\"} 2\nhandled{topic=\"b} c\"} 3\n\
                    handled_total 7\nactive 1\n";
        let metrics = Metrics(text.to_string());
        assert_eq!(metrics.sum("handled"), Some(5.0));
        assert_eq!(metrics.sum("active"), Some(1.0));
        assert_eq!(metrics.sum("lag"), None);
    }
}
