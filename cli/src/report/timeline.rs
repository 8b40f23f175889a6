//! The picture of what happened when: one row for each thing, as inline SVG that also prints.

use maud::{Markup, html};
use time::{Duration, OffsetDateTime};

/// Units of the drawing; the picture scales as a whole.
const WIDTH: f64 = 900.0;
const LABELS: f64 = 270.0;
const RIGHT: f64 = 70.0;
const ROW: f64 = 22.0;
const TOP: f64 = 34.0;

/// Rows that are drawn; a picture with more says nothing.
const ROWS: usize = 40;

/// Longest label, in characters.
const LABEL: usize = 38;

/// What a row is about. Told by its group's heading and its shape, not by colour alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    Containment,
    Evidence,
    Around,
}

impl Group {
    fn title(self) -> &'static str {
        match self {
            Self::Containment => "Containment",
            Self::Evidence => "Evidence",
            Self::Around => "Other pods, losses",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Containment => "containment",
            Self::Evidence => "evidence",
            Self::Around => "around",
        }
    }
}

/// Something that took time, or happened at an instant.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) group: Group,
    pub(super) label: String,
    pub(super) from: OffsetDateTime,
    pub(super) to: OffsetDateTime,
}

/// The picture, none without rows. Rows of one group follow each other.
pub(super) fn picture(rows: &[Row]) -> Option<Markup> {
    let left_out = rows.len().saturating_sub(ROWS);
    let rows = rows.get(..ROWS.min(rows.len())).unwrap_or_default();
    let begin = rows.iter().map(|row| row.from).min()?;
    let end = rows.iter().map(|row| row.to.max(row.from)).max()?;
    let span = (end - begin).max(Duration::milliseconds(1));
    let x = |at: OffsetDateTime| {
        let part = (at - begin).as_seconds_f64() / span.as_seconds_f64();
        LABELS + part.clamp(0.0, 1.0) * (WIDTH - LABELS - RIGHT)
    };
    let step = step(span);
    let ticks = (0..)
        .map(|n| step * n)
        .take_while(|offset| *offset <= span)
        .take(20);
    let ticks: Vec<_> = ticks.map(|offset| (x(begin + offset), offset)).collect();
    let (drawn, height) = placed(rows);
    let view = format!("0 0 {WIDTH} {}", height + 6.0);
    let description = format!(
        "{} rows from {} to {} UTC. Each bar begins and ends when its step did; the table below has the figures.",
        rows.len(),
        clock(begin),
        clock(end)
    );
    Some(html! {
        div.scroll role="region" aria-label="Picture of the timeline" tabindex="0" {
            svg.timeline role="img" viewBox=(view) aria-labelledby="timeline-title timeline-text" {
                title id="timeline-title" { "What happened when" }
                desc id="timeline-text" { (description) }
                @for (at, offset) in &ticks {
                    line.grid x1=(n(*at)) x2=(n(*at)) y1=(n(TOP - 8.0)) y2=(n(height)) {}
                    text.tick x=(n(*at)) y="16" text-anchor="middle" { "+" (length(*offset)) }
                }
                @for (y, item) in &drawn {
                    @match item {
                        Item::Title(group) => text.group x="0" y=(n(y + 15.0)) { (group.title()) },
                        Item::Row(row) => {
                            text x="14" y=(n(y + 15.0)) { (cut(&row.label)) }
                            @let (from, to) = (x(row.from), x(row.to.max(row.from)));
                            @if to - from < 2.0 {
                                path class=(row.group.class()) d=(diamond(from, y + 11.0)) {}
                            } @else {
                                rect class=(row.group.class()) x=(n(from)) y=(n(y + 5.0)) width=(n(to - from)) height="12" {}
                            }
                            @if row.to > row.from {
                                text.took x=(n(to + 8.0)) y=(n(y + 15.0)) { (length(row.to - row.from)) }
                            }
                        }
                    }
                }
            }
        }
        p.caption {
            "Begins at " (clock(begin)) " UTC (controller's clock). A bar is something that took time, a diamond "
            "something that took less than can be drawn."
            @if left_out > 0 { " " (left_out) " more rows are not drawn." }
        }
    })
}

enum Item<'a> {
    Title(Group),
    Row(&'a Row),
}

/// Where each title and row goes, and the height of all.
fn placed(rows: &[Row]) -> (Vec<(f64, Item<'_>)>, f64) {
    let mut placed = Vec::new();
    let mut y = TOP - 6.0;
    let mut group = None;
    for row in rows {
        if group != Some(row.group) {
            y += if group.is_some() { 6.0 } else { 0.0 };
            placed.push((y, Item::Title(row.group)));
            y += ROW;
            group = Some(row.group);
        }
        placed.push((y, Item::Row(row)));
        y += ROW;
    }
    (placed, y)
}

/// Between two marks: a length that people count in, so that there are 4 to 9 marks.
fn step(span: Duration) -> Duration {
    const MILLIS: [i64; 26] = [
        1,
        2,
        5,
        10,
        20,
        50,
        100,
        200,
        500,
        1_000,
        2_000,
        5_000,
        10_000,
        15_000,
        30_000,
        60_000,
        120_000,
        300_000,
        600_000,
        1_800_000,
        3_600_000,
        7_200_000,
        21_600_000,
        43_200_000,
        86_400_000,
        864_000_000,
    ];
    let fits = |millis: &&i64| Duration::milliseconds(**millis) * 8 >= span;
    let millis = MILLIS.iter().find(fits).copied();
    millis.map_or(span / 4, Duration::milliseconds)
}

/// A length of time as short as it can be told.
pub(super) fn length(time: Duration) -> String {
    let seconds = time.as_seconds_f64().max(0.0);
    match seconds {
        0.0 => "0 s".to_owned(),
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1000.0),
        _ if seconds < 10.0 => format!("{} s", trimmed(seconds)),
        _ if seconds < 120.0 => format!("{seconds:.0} s"),
        _ if seconds < 7_200.0 => format!("{:.0} min", seconds / 60.0),
        _ if seconds < 172_800.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
}

fn trimmed(seconds: f64) -> String {
    let text = format!("{seconds:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Date and time to the second.
pub(super) fn clock(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    format!(
        "{} {:02}:{:02}:{:02}",
        at.date(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

fn n(value: f64) -> String {
    format!("{value:.1}")
}

fn diamond(x: f64, y: f64) -> String {
    format!("M{:.1} {y:.1}l6 -6l6 6l-6 6z", x - 6.0)
}

fn cut(label: &str) -> String {
    match label.chars().count() > LABEL {
        true => label.chars().take(LABEL - 1).chain(['…']).collect(),
        false => label.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_few_and_at_round_times() {
        for (span, expected) in [
            (3, 1),
            (900, 200),
            (6_200, 1_000),
            (90_000, 15_000),
            (3_600_000, 600_000),
        ] {
            let step = step(Duration::milliseconds(span));
            assert_eq!(step, Duration::milliseconds(expected), "{span} ms");
        }
        assert_eq!(step(Duration::days(4_000)), Duration::days(1_000));
    }

    #[test]
    fn lengths_are_short() {
        let text = |millis| length(Duration::milliseconds(millis));
        assert_eq!(
            [0, 35, 1_000, 1_849, 42_000, 300_000, 9_000_000].map(text),
            ["0 s", "35 ms", "1 s", "1.8 s", "42 s", "5 min", "2.5 h"]
        );
    }

    #[test]
    fn a_picture_has_a_text_alternative_and_no_more_rows_than_can_be_read() {
        assert!(picture(&[]).is_none());
        let at = OffsetDateTime::UNIX_EPOCH;
        let row = Row {
            group: Group::Evidence,
            label: "<x>".to_owned(),
            from: at,
            to: at + Duration::SECOND,
        };
        let picture = picture(&vec![row; 100]).unwrap().into_string();
        assert!(
            picture.contains("role=\"img\"") && picture.contains("<title id"),
            "{picture}"
        );
        assert_eq!(picture.matches("<rect").count(), ROWS);
        assert!(picture.contains("60 more rows") && picture.contains("&lt;x&gt;"));
    }
}
