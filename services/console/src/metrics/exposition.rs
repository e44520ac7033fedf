//! The text format of Prometheus, as far as the services write it.

use std::collections::BTreeMap;

/// The samples of one instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(BTreeMap<String, Vec<Sample>>);

/// One line: labels and a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    labels: Vec<(String, String)>,
    pub value: f64,
}

impl Sample {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }
}

impl Samples {
    /// Reads the samples whose metric is wanted. A line that can't be read is left out.
    pub fn parse(text: &str, is_wanted: impl Fn(&str) -> bool) -> Samples {
        let mut samples = Samples::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let end = line.find(['{', ' ']).unwrap_or(line.len());
            let name = &line[..end];
            if !is_wanted(name) {
                continue;
            }
            if let Some(sample) = parse_sample(&line[end..]) {
                samples.0.entry(name.to_string()).or_default().push(sample);
            }
        }
        samples
    }

    /// All samples of a metric.
    pub fn all(&self, name: &str) -> &[Sample] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// The largest value of a metric, whatever its labels are.
    pub fn largest(&self, name: &str) -> Option<f64> {
        self.all(name).iter().map(|sample| sample.value).reduce(f64::max)
    }
}

/// What follows the name: `{a="b"} 1` or ` 1`.
fn parse_sample(rest: &str) -> Option<Sample> {
    let Some(inner) = rest.strip_prefix('{') else {
        return Some(Sample { labels: Vec::new(), value: rest.trim().parse().ok()? });
    };
    let (mut labels, mut rest) = (Vec::new(), inner);
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(value) = rest.strip_prefix('}') {
            return Some(Sample { labels, value: value.trim().parse().ok()? });
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let (value, after) = parse_quoted(quoted)?;
        labels.push((name.to_string(), value));
        rest = after;
    }
}

/// A text up to its closing quote, without its escapes, and what follows.
fn parse_quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let text = "# HELP lag Records.\n# TYPE lag gauge\nlag{topic=\"a.b\"} 3\nlag{topic=\"c \\\"d\\\"\",x=\"1\"} 4.5\n\
                    up 1\nother 9\nlag{broken 1\nseconds_bucket{le=\"+Inf\"} 2\n";
        let samples = Samples::parse(text, |name| name != "other");
        let lags = samples.all("lag");
        assert_eq!(lags.iter().map(|sample| sample.value).collect::<Vec<_>>(), [3.0, 4.5]);
        assert_eq!(lags[1].label("topic"), Some("c \"d\""));
        assert_eq!(lags[0].label("x"), None);
        assert_eq!((samples.largest("up"), samples.largest("lag")), (Some(1.0), Some(4.5)));
        assert_eq!(samples.largest("other"), None);
        assert_eq!(samples.all("seconds_bucket")[0].label("le"), Some("+Inf"));
    }
}
