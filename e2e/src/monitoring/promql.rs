//! What the tests need to know of an expression in PromQL: which metrics it names, and which durations.

use std::collections::BTreeSet;

/// Words of PromQL that are no metrics.
const KEYWORDS: [&str; 8] = ["and", "or", "unless", "bool", "offset", "group_left", "inf", "nan"];

/// Words before a list of labels in parentheses.
const BEFORE_LABELS: [&str; 4] = ["by", "without", "on", "ignoring"];

/// The metrics that an expression names. Aggregations and functions stand before a parenthesis, and labels within braces
/// or after one of a few words.
pub fn metrics(expression: &str) -> BTreeSet<String> {
    let text = without_texts(expression);
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let (mut found, mut rest, mut skips_labels) = (BTreeSet::new(), text.as_str(), false);
    while let Some(start) = rest.find(|c: char| is_word(c) || "{[(".contains(c)) {
        rest = &rest[start..];
        let first = rest.chars().next().unwrap_or_default();
        let closing = match first {
            '{' => Some('}'),
            '[' => Some(']'),
            '(' if skips_labels => Some(')'),
            _ => None,
        };
        if let Some(closing) = closing {
            rest = rest.split_once(closing).map_or("", |(_, after)| after);
            skips_labels = false;
            continue;
        }
        if first == '(' {
            rest = &rest[1..];
            continue;
        }
        let end = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        skips_labels = BEFORE_LABELS.contains(&word);
        let is_called = after.trim_start().starts_with('(');
        let is_name = !word.starts_with(|c: char| c.is_ascii_digit());
        // `sum by (service) (…)`: the aggregation stands before the word, and not before a parenthesis.
        let is_aggregation = BEFORE_LABELS.iter().any(|it| {
            let next = after.trim_start();
            next.starts_with(&format!("{it} (")) || next.starts_with(&format!("{it}("))
        });
        let is_operator = KEYWORDS.contains(&word);
        if is_name && !is_called && !is_operator && !skips_labels && !is_aggregation {
            found.insert(word.to_string());
        }
        rest = after;
    }
    found
}

/// The expression with nothing between its quotes.
fn without_texts(expression: &str) -> String {
    expression.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
}

/// The same expression with a tenth of each duration: `[5m]` is `[30000ms]`, and where the seconds of a metric are
/// compared with a number, a tenth of that.
pub fn with_tenth_of_durations(expression: &str) -> String {
    let mut result = String::new();
    let (mut is_of_seconds, mut is_compared) = (false, false);
    for (nth, part) in expression.split('"').enumerate() {
        // Texts stay as they are.
        if nth % 2 == 1 {
            result.push_str(&format!("\"{part}\""));
            continue;
        }
        let mut word = String::new();
        for c in part.chars().chain(['\0']) {
            if c.is_ascii_alphanumeric() || c == '_' || c == ':' || c == '.' {
                word.push(c);
                continue;
            }
            let seconds = word.parse::<f64>().ok().filter(|_| is_of_seconds && is_compared);
            let scaled = seconds.map(|seconds| (seconds / 10.0).to_string());
            result.push_str(&scaled.or_else(|| tenth(&word)).unwrap_or_else(|| word.clone()));
            if !word.is_empty() {
                is_of_seconds = word.contains("_seconds");
                is_compared = false;
            }
            word.clear();
            is_compared |= c == '<' || c == '>';
            if c != '\0' {
                result.push(c);
            }
        }
    }
    result
}

/// A tenth of a duration such as `5m`; nothing if the word is none.
pub fn tenth(word: &str) -> Option<String> {
    let unit = word.chars().last()?;
    let milliseconds: u64 = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return None,
    };
    let number: u64 = word.strip_suffix(unit)?.parse().ok()?;
    Some(format!("{}ms", number * milliseconds / 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_found_and_neither_labels_nor_functions() {
        let names = |expression| metrics(expression).into_iter().collect::<Vec<_>>();
        assert_eq!(
            names(
                r#"max by (service) (label_replace(a_lag, "service", "$1", "group", "(.+)")) or sum by (b) (c)"#
            ),
            ["a_lag", "c"]
        );
        assert_eq!(
            names(r#"sum(rate(d_total{path!~"/livez|e", f="g"}[5m])) by (le) > 1"#),
            ["d_total"]
        );
        assert_eq!(
            names("(a:b:sum > 0) unless on (service) (c:d:sum offset 5m > 0.05)"),
            ["a:b:sum", "c:d:sum"]
        );
        assert_eq!(
            names("histogram_quantile(0.99, sum by (le) (rate(h_bucket[1m])))"),
            ["h_bucket"]
        );
        assert_eq!(names(r#"absent(up{job="holdfast"} == 1)"#), ["up"]);
    }

    #[test]
    fn durations_become_a_tenth_and_nothing_else_does() {
        let scaled = with_tenth_of_durations(
            r#"rate(a_5m{b="5m"}[5m]) > 1 or c > 1000 or min by (d) (e_seconds) < 604800 or f_seconds:max > 60"#,
        );
        assert_eq!(
            scaled,
            r#"rate(a_5m{b="5m"}[30000ms]) > 1 or c > 1000 or min by (d) (e_seconds) < 60480 or f_seconds:max > 6"#
        );
        assert_eq!(tenth("10m").unwrap(), "60000ms");
        assert_eq!(tenth("m"), None);
    }
}
