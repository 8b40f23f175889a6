//! `kubectl_complete-impound`: what kubectl, 1.26 or later, runs to complete `kubectl impound …`. It is a link to
//! `kubectl-impound` under that name.
//!
//! kubectl gives the words behind `impound`, the last being the one under the cursor, and takes one word a line, its
//! meaning behind a tab, and at last a colon and a number: what else its shell may offer. The numbers are
//! [cobra's](https://github.com/spf13/cobra/blob/main/completions.go), `ShellCompDirective`.

use std::io::{self, Write};

use clap::{Arg, ArgAction, Command, ValueHint};

/// Files and directories may be offered.
const FILES: u8 = 0;
/// Nothing else is to be offered.
const NOTHING: u8 = 4;
/// Directories may be offered.
const DIRECTORIES: u8 = 16;

/// Writes what could stand where the last of `words` begins.
///
/// # Errors
/// Those of writing.
pub(crate) fn write(command: Command, words: &[String], to: &mut impl Write) -> io::Result<()> {
    let Offer { words, more } = offer(command, words);
    for (word, meaning) in words {
        // A description is one line, whatever its help says.
        match meaning.lines().next().filter(|line| !line.is_empty()) {
            Some(meaning) => writeln!(to, "{word}\t{meaning}")?,
            None => writeln!(to, "{word}")?,
        }
    }
    writeln!(to, ":{more}")
}

/// Words that could stand there, each with its meaning, and what else may be offered.
struct Offer {
    words: Vec<(String, String)>,
    more: u8,
}

impl Offer {
    /// Nothing at all.
    fn none() -> Self {
        Self {
            words: Vec::new(),
            more: NOTHING,
        }
    }

    /// The values of `arg`, behind `before`.
    fn values(arg: &Arg, before: &str) -> Self {
        let values = arg.get_possible_values();
        let words: Vec<_> = values
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| {
                let help = value.get_help().map(ToString::to_string);
                (
                    format!("{before}{}", value.get_name()),
                    help.unwrap_or_default(),
                )
            })
            .collect();
        let more = match arg.get_value_hint() {
            _ if !words.is_empty() => NOTHING,
            ValueHint::AnyPath | ValueHint::FilePath => FILES,
            ValueHint::DirPath => DIRECTORIES,
            _ => NOTHING,
        };
        Self { words, more }
    }

    /// Only what begins so.
    fn beginning_with(mut self, begin: &str) -> Self {
        self.words.retain(|(word, _)| word.starts_with(begin));
        self
    }
}

fn offer(mut root: Command, words: &[String]) -> Offer {
    // Options of the program become those of its commands.
    root.build();
    let Some((begun, before)) = words.split_last() else {
        return Offer::none();
    };
    let mut command = &root;
    let mut options = true;
    let mut awaited: Option<&Arg> = None;
    let mut positionals = 0;
    for word in before {
        if awaited.take().is_some() {
            continue;
        }
        match word.as_str() {
            "--" if options => options = false,
            word if options && word.len() > 1 && word.starts_with('-') => {
                awaited = option(command, word).filter(|arg| arg.get_action().takes_values());
            }
            word => match command.find_subcommand(word) {
                Some(below) if options && positionals == 0 => command = below,
                _ => positionals += 1,
            },
        }
    }
    if let Some(arg) = awaited {
        return Offer::values(arg, "").beginning_with(begun);
    }
    if options && begun.starts_with('-') {
        return match begun.split_once('=') {
            Some((name, _)) => option(command, name).map_or_else(Offer::none, |arg| {
                Offer::values(arg, &format!("{name}=")).beginning_with(begun)
            }),
            None => long_options(command).beginning_with(begun),
        };
    }
    let mut offer = match positional(command, positionals) {
        Some(arg) => Offer::values(arg, ""),
        None => Offer::none(),
    };
    if options && positionals == 0 {
        let commands = command
            .get_subcommands()
            .filter(|below| !below.is_hide_set());
        offer.words.extend(commands.map(|below| {
            let about = below.get_about().map(ToString::to_string);
            (below.get_name().to_owned(), about.unwrap_or_default())
        }));
    }
    offer.beginning_with(begun)
}

/// The option that `word` is, if its value is another word: `--name` or `-n`.
fn option<'c>(command: &'c Command, word: &str) -> Option<&'c Arg> {
    let long = word.strip_prefix("--");
    let mut short = word.chars().skip(1);
    let short = short.next().filter(|_| short.next().is_none());
    command.get_opts().find(|arg| match long {
        Some(long) => arg.get_long() == Some(long),
        None => short.is_some() && arg.get_short() == short,
    })
}

fn long_options(command: &Command) -> Offer {
    let options = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let words = options.filter_map(|arg| {
        let help = arg.get_help().map(ToString::to_string);
        Some((format!("--{}", arg.get_long()?), help.unwrap_or_default()))
    });
    Offer {
        words: words.collect(),
        more: NOTHING,
    }
}

/// The argument at such a place, or the last one if it may be given several times.
fn positional(command: &Command, place: usize) -> Option<&Arg> {
    let last = || command.get_positionals().last();
    let several = |arg: &&Arg| matches!(arg.get_action(), ArgAction::Append);
    let at = command.get_positionals().nth(place);
    at.or_else(|| last().filter(several))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::arguments::Impound;

    /// What is offered at the end of these words, and the number behind it.
    fn offered(words: &str) -> (Vec<String>, String) {
        let words: Vec<_> = words.split(' ').map(str::to_owned).collect();
        let mut text = Vec::new();
        write(Impound::command(), &words, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        let more = lines.pop().unwrap();
        let word = |line: String| line.split('\t').next().unwrap().to_owned();
        (lines.into_iter().map(word).collect(), more)
    }

    #[test]
    fn commands_options_and_values_are_offered_where_they_can_stand() {
        for (words, expected, more) in [
            ("ver", "verify", ":4"),
            ("evidence ge", "get", ":4"),
            ("evidence nonsense ge", "", ":4"),
            ("verify --ke", "--key", ":4"),
            ("verify --key ", "", ":0"),
            ("verify --key=", "", ":0"),
            ("verify ", "", ":16"),
            ("verify --key k ", "", ":16"),
            ("list ", "quarantines collections", ":4"),
            ("list col", "collections", ":4"),
            ("list -o w", "wide", ":4"),
            ("list --output=j", "--output=json", ":4"),
            ("list -n ", "", ":4"),
            ("list -- --out", "", ":4"),
            ("-o json li", "list", ":4"),
            ("completion z", "zsh", ":4"),
        ] {
            let (there, number) = offered(words);
            assert_eq!(
                (there.join(" ").as_str(), number.as_str()),
                (expected, more),
                "{words}"
            );
        }
    }

    #[test]
    fn every_command_is_offered_and_so_is_every_option_of_it() {
        let (commands, _) = offered("");
        for command in Impound::command().get_subcommands() {
            assert!(commands.contains(&command.get_name().to_owned()));
            let (options, more) = offered(&format!("{} --", command.get_name()));
            assert_eq!(more, ":4");
            for option in command.get_opts().filter_map(Arg::get_long) {
                assert!(options.contains(&format!("--{option}")), "{option}");
            }
        }
    }
}
