//! Standard output: one document a command, as text, JSON or YAML.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::arguments::Format;
use crate::failure::Failure;
use crate::human;
use crate::screen::Screen;

/// Where a command's answer goes, and in which form.
pub(crate) struct Output {
    format: Format,
    program: String,
}

impl Output {
    pub(crate) fn new(format: Format, program: &str) -> Self {
        Self {
            format,
            program: program.to_owned(),
        }
    }

    /// The name the user calls this program by, for commands that are suggested.
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    /// Writes `value`, or for people the text, which is told whether it may be wide.
    pub(crate) fn document<T: Serialize>(
        &mut self,
        value: T,
        text: impl FnOnce(bool) -> String,
    ) -> Result<(), Failure> {
        let mut text = match self.format {
            Format::Table => text(false),
            Format::Wide => text(true),
            Format::Json => serde_json::to_string_pretty(&value)
                .map_err(|error| Failure::failed("the answer can't be written as JSON", &error))?,
            Format::Yaml => serde_saphyr::to_string(&value)
                .map_err(|error| Failure::failed("the answer can't be written as YAML", &error))?,
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }

    /// Where progress is shown: standard output for people, standard error beside a document for
    /// machines; live if that is a terminal.
    pub(crate) fn screen(&self) -> Screen {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match self.format {
            Format::Table | Format::Wide => Screen::stdout(io::stdout().is_terminal() && !dumb),
            Format::Json | Format::Yaml => Screen::stderr(io::stderr().is_terminal() && !dumb),
        }
    }
}

/// Text in columns as wide as needed.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    indent: &'static str,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()],
            indent: "",
        }
    }

    /// Without a head, each row set in by two spaces.
    pub(crate) fn inset() -> Self {
        Self {
            rows: Vec::new(),
            indent: "  ",
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|cell| human::clean(&cell)).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = self.indent.to_owned();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_needed_and_lines_end_without_spaces() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        table.row(["a\u{1b}[2J".to_owned(), String::new()]);
        table.row(["b".to_owned(), "12".to_owned()]);
        assert_eq!(
            table.to_string(),
            "NAME        SIZE\na\\u{1b}[2J\nb           12\n"
        );
    }
}
