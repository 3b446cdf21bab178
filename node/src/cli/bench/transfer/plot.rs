//! The measurement as one SVG: a row of four charts per file size, bars grouped by chunk size.
//!
//! Hand-written, because a plotting library would be the largest dependency of the binary.

use std::fmt::Write as _;

/// One bar, or two stacked.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    /// Heights from the bottom up; the second is drawn lighter.
    pub(super) parts: Vec<f64>,
}

/// One chart.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    /// What the y axis measures.
    pub(super) unit: String,
    /// One label per group of bars.
    pub(super) groups: Vec<String>,
    /// One name per bar of a group.
    pub(super) series: Vec<String>,
    /// `bars[group][series]`.
    pub(super) bars: Vec<Vec<Bar>>,
}

/// Charts under one heading.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) heading: String,
    pub(super) charts: Vec<Chart>,
}

const CHART_WIDTH: f64 = 345.0;
const CHART_HEIGHT: f64 = 250.0;
const PLOT_LEFT: f64 = 48.0;
const PLOT_RIGHT: f64 = 12.0;
const PLOT_TOP: f64 = 62.0;
const PLOT_BOTTOM: f64 = 30.0;
const HEADER_HEIGHT: f64 = 62.0;
const HEADING_HEIGHT: f64 = 30.0;
const FOOTER_HEIGHT: f64 = 12.0;
const MARGIN: f64 = 20.0;
/// Okabe and Ito's colours: told apart by every reader.
const COLOURS: [&str; 4] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"];
/// How much lighter the second part of a stacked bar is.
const SECOND_PART_OPACITY: f64 = 0.4;

/// Draws `rows` under `title`; `notes` stands below it.
pub(super) fn svg(title: &str, notes: &str, rows: &[Row]) -> String {
    let columns = rows
        .iter()
        .map(|row| row.charts.len())
        .max()
        .unwrap_or(0)
        .max(1);
    let width = 2.0 * MARGIN + columns as f64 * CHART_WIDTH;
    let height =
        HEADER_HEIGHT + rows.len() as f64 * (HEADING_HEIGHT + CHART_HEIGHT) + FOOTER_HEIGHT;
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif" font-size="11" fill="#222">"##
    ));
    line(format!(
        r##"<rect width="{width}" height="{height}" fill="#fff"/>"##
    ));
    line(text(
        MARGIN,
        28.0,
        r#"font-size="18" font-weight="bold""#,
        title,
    ));
    line(text(MARGIN, 47.0, r##"fill="#666""##, notes));
    let mut top = HEADER_HEIGHT;
    for row in rows {
        line(text(
            MARGIN,
            top + 18.0,
            r#"font-size="14" font-weight="bold""#,
            &row.heading,
        ));
        for (index, chart) in row.charts.iter().enumerate() {
            line(draw(
                chart,
                MARGIN + index as f64 * CHART_WIDTH,
                top + HEADING_HEIGHT,
            ));
        }
        top += HEADING_HEIGHT + CHART_HEIGHT;
    }
    line("</svg>".to_owned());
    out
}

fn draw(chart: &Chart, left: f64, top: f64) -> String {
    let heights = chart
        .bars
        .iter()
        .flatten()
        .map(|bar| bar.parts.iter().sum::<f64>());
    let (step, ceiling) = scale(heights.fold(0.0, f64::max));
    let plot_width = CHART_WIDTH - PLOT_LEFT - PLOT_RIGHT;
    let plot_height = CHART_HEIGHT - PLOT_TOP - PLOT_BOTTOM;
    let base = PLOT_TOP + plot_height;
    let y = |value: f64| base - value / ceiling * plot_height;
    let mut out = format!("<g transform=\"translate({left:.1} {top:.1})\">\n");
    let mut push = |line: String| {
        out.push_str(&line);
        out.push('\n');
    };
    push(text(
        PLOT_LEFT - 40.0,
        12.0,
        r#"font-weight="bold""#,
        &format!("{}, {}", chart.title, chart.unit),
    ));
    push(legend(&chart.series));
    for tick in 0..=(ceiling / step).round() as u32 {
        let value = f64::from(tick) * step;
        let (at, right) = (y(value), PLOT_LEFT + plot_width);
        push(format!(
            r##"<line x1="{PLOT_LEFT}" y1="{at:.1}" x2="{right}" y2="{at:.1}" stroke="#ddd"/>"##
        ));
        push(text(
            PLOT_LEFT - 6.0,
            at + 4.0,
            r##"text-anchor="end" fill="#666""##,
            &tick_label(value, step),
        ));
    }
    let group_width = plot_width / chart.groups.len().max(1) as f64;
    let bar_width = group_width * 0.8 / chart.series.len().max(1) as f64;
    for (group, (label, bars)) in chart.groups.iter().zip(&chart.bars).enumerate() {
        let group_left = PLOT_LEFT + group as f64 * group_width + group_width * 0.1;
        push(text(
            group_left + group_width * 0.4,
            base + 16.0,
            r#"text-anchor="middle""#,
            label,
        ));
        for (series, bar) in bars.iter().enumerate() {
            let bar_left = group_left + series as f64 * bar_width;
            push(draw_bar(
                bar,
                bar_left,
                bar_width - 2.0,
                COLOURS[series % COLOURS.len()],
                y,
            ));
        }
    }
    out.push_str("</g>");
    out
}

fn draw_bar(bar: &Bar, left: f64, width: f64, colour: &str, y: impl Fn(f64) -> f64) -> String {
    let mut out = String::new();
    let mut below = 0.0;
    for (index, part) in bar.parts.iter().enumerate() {
        let (bottom, top) = (y(below), y(below + part));
        let opacity = if index == 0 { 1.0 } else { SECOND_PART_OPACITY };
        // Writing to a String does not fail.
        let _ = write!(
            out,
            r#"<rect x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{:.1}" fill="{colour}" fill-opacity="{opacity}"/>"#,
            bottom - top
        );
        below += part;
    }
    let label = format!("{below:.2}");
    out + &text(
        left + width / 2.0,
        y(below) - 3.0,
        r#"text-anchor="middle" font-size="9""#,
        &label,
    )
}

fn legend(series: &[String]) -> String {
    let mut out = String::new();
    let mut left = PLOT_LEFT - 40.0;
    for (name, colour) in series.iter().zip(COLOURS) {
        let _ = write!(
            out,
            r#"<rect x="{left:.1}" y="22" width="10" height="10" fill="{colour}"/>"#
        );
        out.push_str(&text(left + 14.0, 31.0, "", name));
        // Text cannot be measured here; 6.6 units a letter is a generous average at this size.
        left += 24.0 + 6.6 * name.chars().count() as f64;
    }
    out
}

fn text(x: f64, y: f64, attributes: &str, content: &str) -> String {
    let gap = if attributes.is_empty() { "" } else { " " };
    format!(
        r#"<text x="{x:.1}" y="{y:.1}"{gap}{attributes}>{}</text>"#,
        escape(content)
    )
}

fn escape(content: &str) -> String {
    content
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Tick distance and axis end: three to six ticks at 1, 2 or 5 times a power of ten, with room above
/// the highest bar for its label.
fn scale(highest: f64) -> (f64, f64) {
    if highest <= 0.0 || !highest.is_finite() {
        return (1.0, 1.0);
    }
    let wanted = highest * 1.08;
    let power = 10_f64.powf((wanted / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| wanted / step <= 6.0)
        .unwrap_or(10.0 * power);
    (step, (wanted / step).ceil() * step)
}

fn tick_label(value: f64, step: f64) -> String {
    let digits = (-step.log10().floor()).max(0.0) as usize;
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let bar = |parts: &[f64]| Bar {
            parts: parts.to_vec(),
        };
        Row {
            heading: "a <file> & more".to_owned(),
            charts: vec![Chart {
                title: "Send".to_owned(),
                unit: "GiB/s".to_owned(),
                groups: vec!["4 KiB".to_owned(), "1 MiB".to_owned()],
                series: vec!["one".to_owned(), "two".to_owned()],
                bars: vec![
                    vec![bar(&[1.0, 0.5]), bar(&[2.0])],
                    vec![bar(&[0.0]), bar(&[7.3])],
                ],
            }],
        }
    }

    /// Every tag is closed in order, attributes are quoted, and no bare `<` or `&` is in the text.
    fn assert_well_formed(svg: &str) {
        let mut open = Vec::new();
        let mut rest = svg;
        while let Some(start) = rest.find('<') {
            assert!(
                !rest[..start].contains('>'),
                "a bare > in {:?}",
                &rest[..start]
            );
            for entity in rest[..start].split('&').skip(1) {
                assert!(
                    ["amp;", "lt;", "gt;"]
                        .iter()
                        .any(|known| entity.starts_with(known)),
                    "a bare &"
                );
            }
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            assert_eq!(
                tag.matches('"').count() % 2,
                0,
                "unbalanced quotes in <{tag}>"
            );
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
            rest = &rest[end + 1..];
        }
        assert!(
            open.is_empty() && rest.trim().is_empty(),
            "left open: {open:?}"
        );
    }

    #[test]
    fn the_picture_is_well_formed_and_draws_every_part() {
        let drawn = svg("A & B", "notes", &[row(), row()]);
        assert_well_formed(&drawn);
        // Per row: five bar parts and two legend squares; and the background.
        assert_eq!(drawn.matches("<rect").count(), 2 * (5 + 2) + 1);
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"));
        assert_well_formed(&svg("empty", "", &[]));
    }

    #[test]
    fn axes_end_above_the_highest_bar_on_a_round_number() {
        for highest in [0.013, 0.5, 1.0, 4.9, 6.0, 99.0, 12_345.0] {
            let (step, ceiling) = scale(highest);
            assert!(
                ceiling >= highest * 1.05 && ceiling <= highest * 2.5,
                "{highest}: {ceiling}"
            );
            let ticks = ceiling / step;
            assert!(
                (ticks - ticks.round()).abs() < 1e-9 && (2.0..=6.5).contains(&ticks),
                "{highest}: {ticks} ticks"
            );
        }
        assert_eq!(scale(0.0), (1.0, 1.0));
    }
}
