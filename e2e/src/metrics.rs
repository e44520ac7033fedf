//! The metrics of an instance, read from its `/metrics`.

use anyhow::{Context, Result};
use launcher::Stack;
use reqwest::Method;

use crate::client::http_client::Client;

/// The text of the response.
pub struct Metrics(String);

impl Metrics {
    /// Fetches the metrics of an instance, by its name.
    pub async fn fetch(stack: &Stack, client: &Client, name: &str) -> Result<Metrics> {
        let url = format!("{}/metrics", stack.probe_url(name)?);
        let answer = client.send(Method::GET, &url, None, None).await;
        let answer = answer.with_context(|| format!("{name} does not serve its metrics"))?;
        Ok(Metrics(String::from_utf8(answer.body)?))
    }

    /// The sum of a metric over all its labels; `None` if it was never counted.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.sum_where(name, |_| true)
    }

    /// The sum over the series with this label, such as `topic="orders.created"`.
    pub fn sum_with_label(&self, name: &str, label: &str) -> Option<f64> {
        self.sum_where(name, |labels| labels.split(',').any(|one| one == label))
    }

    fn sum_where(&self, name: &str, is_meant: impl Fn(&str) -> bool) -> Option<f64> {
        let of = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(labelled) => labelled.rsplit_once('}')?,
                None => ("", rest),
            };
            let value = value.strip_prefix(' ').filter(|_| is_meant(labels))?;
            value.trim().parse::<f64>().ok()
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

    #[test]
    fn a_metric_with_a_label_is_summed_over_its_matches() {
        let text =
            "sent{of=\"a\",by=\"x\"} 2\nsent{by=\"y\",of=\"a\"} 3\nsent{of=\"ab\"} 4\nsent 5\n";
        let metrics = Metrics(text.to_string());
        assert_eq!(metrics.sum_with_label("sent", "of=\"a\""), Some(5.0));
        assert_eq!(metrics.sum_with_label("sent", "of=\"b\""), None);
    }
}
