//! Where progress is shown: a terminal with live bars below finished lines, or lines only.
//!
//! What is over is a line that stays, in the same words on both, so a terminal's scroll-back and a
//! log read alike. What runs is a bar at the bottom of a terminal; without one it is a line when it
//! starts, and one every few seconds while bytes flow.

use std::collections::HashMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::Failure;
use crate::human;

/// How often a running transfer gets a line where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How often a terminal's spinner turns.
const TICK: Duration = Duration::from_millis(120);

pub(crate) struct Screen {
    target: Target,
    /// `None`: lines only.
    live: Option<Live>,
    running: HashMap<String, Running>,
}

#[derive(Clone, Copy)]
enum Target {
    Stdout,
    Stderr,
}

struct Live {
    bars: MultiProgress,
    /// The dim line at the very bottom: what is still to come.
    rest: ProgressBar,
    colour: bool,
}

struct Running {
    bar: Option<ProgressBar>,
    since: Instant,
    from: u64,
    said: Instant,
}

/// One line: when, what, its state, how long it took, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) time: String,
    pub(crate) label: String,
    pub(crate) state: String,
    pub(crate) took: String,
    pub(crate) message: String,
}

/// Bytes of a transfer: those there, and all of them, 0 if that is not known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes {
    pub(crate) done: u64,
    pub(crate) all: u64,
}

impl Screen {
    pub(crate) fn stdout(live: bool) -> Self {
        Self::new(Target::Stdout, live.then(ProgressDrawTarget::stdout))
    }

    pub(crate) fn stderr(live: bool) -> Self {
        Self::new(Target::Stderr, live.then(ProgressDrawTarget::stderr))
    }

    fn new(target: Target, draw: Option<ProgressDrawTarget>) -> Self {
        let live = draw.map(|draw| {
            let bars = MultiProgress::with_draw_target(draw);
            let rest = bars.add(ProgressBar::new_spinner().with_style(style("{wide_msg:.dim}")));
            Live {
                bars,
                rest,
                colour: std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty()),
            }
        });
        Self {
            target,
            live,
            running: HashMap::new(),
        }
    }

    /// A line that stays.
    pub(crate) fn line(&mut self, line: &Line) -> Result<(), Failure> {
        let colour = self.live.as_ref().is_some_and(|live| live.colour);
        let message = human::clean(&line.message);
        let text = format!(
            "{:9}  {:12}{}  {:>6}  {}",
            line.time,
            // The longest are longer than the column.
            format!("{} ", human::clean(&line.label)),
            state(&line.state, colour),
            line.took,
            // Logs keep one line for one event.
            if self.is_live() {
                wrapped(&message)
            } else {
                message
            }
        );
        self.text(text.trim_end())
    }

    /// Text that stays.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        if let Some(live) = &self.live {
            live.bars.suspend(|| write_line(self.target, text))?;
        } else {
            write_line(self.target, text)?;
        }
        Ok(())
    }

    /// Something is at work under `key`: a step with a message.
    pub(crate) fn step(&mut self, key: &str, label: &str, message: &str) {
        if let Some(bar) = self.bar(key, 0).bar.as_ref() {
            bar.set_style(style(
                "           {prefix:12}{spinner:.cyan} {elapsed:>4} {wide_msg}",
            ));
            bar.set_prefix(human::clean(label));
            bar.set_message(human::clean(message));
        }
    }

    /// A transfer is at work under `key`. Without a terminal, now and then a line.
    pub(crate) fn transfer(
        &mut self,
        key: &str,
        label: &str,
        name: &str,
        bytes: Bytes,
    ) -> Result<(), Failure> {
        let running = self.bar(key, bytes.done);
        let seconds = running.since.elapsed().as_secs_f64();
        let rate = bytes.done.saturating_sub(running.from) as f64 / seconds.max(0.001);
        let left = bytes.all.saturating_sub(bytes.done) as f64 / rate.max(1.0);
        let known = bytes.all > 0 && bytes.all >= bytes.done;
        let mut figures = match known {
            true => format!(
                "{} of {}",
                human::bytes(bytes.done),
                human::bytes(bytes.all)
            ),
            false => human::bytes(bytes.done),
        };
        // The first moments tell no rate.
        if seconds > 0.5 && rate >= 1.0 {
            figures.push_str(&format!(", {}/s", human::bytes(rate as u64)));
            if known {
                figures.push_str(&format!(", {} left", human::span(left)));
            }
        }
        match running.bar.clone() {
            Some(bar) => {
                // The figures fit beside it in 80 columns.
                let bars = "{bar:10.cyan/dim}";
                let bars = if known { bars } else { "{spinner:.cyan}" };
                bar.set_style(style(&format!(
                    "           {{prefix:12}}{bars} {{wide_msg}}"
                )));
                bar.set_prefix(human::clean(label));
                bar.set_length(bytes.all.max(1));
                bar.set_position(bytes.done);
                bar.set_message(format!("{figures}  {}", human::clean(name)));
            }
            None if running.said.elapsed() >= LINE_EVERY => {
                running.said = Instant::now();
                let line = Line {
                    label: label.to_owned(),
                    state: "running".to_owned(),
                    message: format!("{name}, {figures}"),
                    ..Line::default()
                };
                self.line(&line)?;
            }
            None => {}
        }
        Ok(())
    }

    /// Of so many things some are done, under `key`. Without a terminal, now and then a line.
    pub(crate) fn count(
        &mut self,
        key: &str,
        label: &str,
        done: u64,
        all: u64,
        about: &str,
    ) -> Result<(), Failure> {
        let running = self.bar(key, done);
        let seconds = running.since.elapsed().as_secs_f64();
        let more = done.saturating_sub(running.from);
        let mut text = format!("{done} of {all}, {about}");
        if more > 0 && seconds > 1.0 {
            let rate = more as f64 / seconds;
            let left = all.saturating_sub(done) as f64 / rate;
            text.push_str(&format!(
                ", {:.1} a minute, {} left",
                rate * 60.0,
                human::span(left)
            ));
        }
        match running.bar.clone() {
            Some(bar) => {
                bar.set_style(style("           {prefix:12}{bar:10.cyan/dim} {wide_msg}"));
                bar.set_prefix(human::clean(label));
                bar.set_length(all.max(1));
                bar.set_position(done);
                bar.set_message(text);
            }
            None if running.said.elapsed() >= LINE_EVERY => {
                running.said = Instant::now();
                let line = Line {
                    label: label.to_owned(),
                    state: "running".to_owned(),
                    message: text,
                    ..Line::default()
                };
                self.line(&line)?;
            }
            None => {}
        }
        Ok(())
    }

    /// Nothing is at work under `key` any more.
    pub(crate) fn over(&mut self, key: &str) {
        if let (Some(running), Some(live)) = (self.running.remove(key), &self.live)
            && let Some(bar) = running.bar
        {
            bar.finish_and_clear();
            live.bars.remove(&bar);
        }
    }

    /// Whether something is at work under `key`.
    pub(crate) fn is_running(&self, key: &str) -> bool {
        self.running.contains_key(key)
    }

    /// Whether running things are shown by themselves.
    pub(crate) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// What is still to come, at the bottom of a terminal.
    pub(crate) fn rest(&mut self, text: &str) {
        if let Some(live) = &self.live {
            live.rest.set_message(human::clean(text));
        }
    }

    /// Takes the bars away; lines stay.
    pub(crate) fn clear(&mut self) {
        let keys: Vec<String> = self.running.keys().cloned().collect();
        keys.iter().for_each(|key| self.over(key));
        if let Some(live) = &self.live {
            live.rest.finish_and_clear();
        }
    }

    fn bar(&mut self, key: &str, from: u64) -> &mut Running {
        let live = &self.live;
        self.running
            .entry(key.to_owned())
            .or_insert_with(|| Running {
                bar: live.as_ref().map(|live| {
                    let bar = live
                        .bars
                        .insert_before(&live.rest, ProgressBar::new_spinner());
                    bar.enable_steady_tick(TICK);
                    bar
                }),
                since: Instant::now(),
                from,
                said: Instant::now(),
            })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.clear();
    }
}

fn write_line(target: Target, text: &str) -> std::io::Result<()> {
    match target {
        Target::Stdout => writeln!(std::io::stdout(), "{text}"),
        Target::Stderr => writeln!(std::io::stderr(), "{text}"),
    }
}

/// A message broken between words, its further lines under the first one, as wide as the terminal.
fn wrapped(message: &str) -> String {
    /// Column where messages begin.
    const INDENT: usize = 43;
    /// Less than this is no room to break lines well.
    const ROOM: usize = 30;
    let columns = rustix::termios::tcgetwinsize(std::io::stdout())
        .or_else(|_| rustix::termios::tcgetwinsize(std::io::stderr()))
        .map_or(0, |size| usize::from(size.ws_col));
    match columns.checked_sub(INDENT) {
        Some(width) if width >= ROOM => wrap(message, width, INDENT),
        _ => message.to_owned(),
    }
}

fn wrap(message: &str, width: usize, indent: usize) -> String {
    let mut text = String::new();
    let mut used = 0;
    for word in message.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent));
            used = 0;
        } else if used > 0 {
            text.push(' ');
            used += 1;
        }
        text.push_str(word);
        used += length;
    }
    text
}

/// A state as a word of fixed width, coloured if it may be.
fn state(word: &str, colour: bool) -> String {
    let padded = format!("{word:10}");
    let code = match word {
        "done" | "stored" | "copied" | "extended" | "yes" | "sealed" => "32",
        "waiting" | "UNVERIFIED" | "INCOMPLETE" | "warning" | "PARTIAL" | "lost" => "33",
        "FAILED" | "NO" | "REFUSED" => "1;31",
        "CONTAINED" => "1;32",
        _ => return padded,
    };
    match colour {
        true => format!("\u{1b}[{code}m{padded}\u{1b}[0m"),
        false => padded,
    }
}

/// Templates are constants of this file; one with a mistake shows as the default style.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_break_between_words_and_stay_in_their_column() {
        assert_eq!(wrap("one two three", 7, 2), "one two\n  three");
        assert_eq!(wrap("unbreakable-word x", 5, 1), "unbreakable-word\n x");
        assert_eq!(wrap("", 5, 1), "");
    }
}
