//! A node's `/metrics`, read as the Prometheus text format.

/// One reading of every sample a node exposes.
#[derive(Debug, Clone)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Reads the text exposition format; lines that are not samples are skipped.
    pub fn parse(text: &str) -> Self {
        Self {
            samples: text.lines().filter_map(parse_sample).collect(),
        }
    }

    /// The sum of all samples of `name` that carry every one of `labels`, or `None` when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let carries = |sample: &Sample| {
            labels
                .iter()
                .all(|(key, value)| sample.labels.iter().any(|(k, v)| k == key && v == value))
        };
        let mut found = self
            .samples
            .iter()
            .filter(|sample| sample.name == name && carries(sample))
            .peekable();
        found.peek()?;
        Some(found.map(|sample| sample.value).sum())
    }

    /// Every sample name, for the message of a test that missed one.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .samples
            .iter()
            .map(|sample| sample.name.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

fn parse_sample(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = match line.rfind('}') {
        Some(end) => (&line[..=end], line[end + 1..].split_whitespace().next()?),
        None => line
            .split_once(' ')
            .map(|(series, rest)| (series, rest.split_whitespace().next().unwrap_or("")))?,
    };
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}')?)),
        None => (series, Vec::new()),
    };
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().ok()?,
    })
}

/// `a="x",b="y"`; the values the node writes hold no quotes and no commas.
fn parse_labels(text: &str) -> Vec<(String, String)> {
    text.split("\",")
        .filter_map(|pair| pair.split_once("=\""))
        .map(|(key, value)| (key.to_owned(), value.trim_end_matches('"').to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_the_labels_not_named() {
        let metrics = Metrics::parse(
            "# HELP bytes sent\n# TYPE bytes counter\nbytes_total{path=\"sendfile\",api=\"fetch\"} 10\n\
             bytes_total{path=\"sendfile\",api=\"other\"} 5\nbytes_total{path=\"copy\",api=\"fetch\"} 1\nup 1\n# EOF\n",
        );
        assert_eq!(
            metrics.sum("bytes_total", &[("path", "sendfile")]),
            Some(15.0)
        );
        assert_eq!(metrics.sum("bytes_total", &[]), Some(16.0));
        assert_eq!(metrics.sum("up", &[]), Some(1.0));
        assert_eq!(metrics.sum("bytes_total", &[("path", "ktls")]), None);
        assert_eq!(metrics.names(), ["bytes_total", "up"]);
    }
}
