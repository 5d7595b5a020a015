//! What a command prints. Results go to stdout, one whole line at a time and flushed with it, so that a pipe sees each
//! line when it is written; diagnoses go to stderr. Never panics on a closed pipe, as `println!` would.

use std::{
    fmt,
    io::{self, Write},
};

use serde::Serialize;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON document a line; docs/CLI.md lists them.
    Json,
}

/// `-o`, of every command that prints results.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct OutputArgs {
    /// How to print
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) format: Format,
}

impl OutputArgs {
    /// Prints `value` as JSON, or what `text` makes for people.
    pub(crate) fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
        match self.format {
            Format::Text => line(text(value).trim_end()),
            Format::Json => json(value),
        }
    }
}

/// Prints one line (or several, joined by newlines) of results.
pub(crate) fn line(text: impl fmt::Display) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// Prints one JSON document on one line.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    line(serde_json::to_string(value)?)
}

/// Prints one line for people to stderr. If that can't be written, nobody is there to be told.
pub(crate) fn diagnose(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether the error is that nobody reads our stdout any more: `busbar sub orders | head`.
pub(crate) fn is_closed(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// An error and its causes as one text. Many errors quote their cause already: that one is not said twice.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Columns aligned for people.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(heads: [&str; N]) -> Self {
        Self { rows: vec![heads.map(str::to_owned).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(Some(N), self.rows.first().map(Vec::len), "a row has a cell for each column");
        self.rows.push(cells.to_vec());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = Vec::new();
        for row in &self.rows {
            widths.resize(row.len(), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for (nr, row) in self.rows.iter().enumerate() {
            let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            let line = padded.collect::<Vec<_>>().join("  ");
            write!(f, "{}{}", if nr == 0 { "" } else { "\n" }, line.trim_end())?;
        }
        Ok(())
    }
}

/// `1,2,3`, or `-` for none.
pub(crate) fn list<T: fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    items.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::anyhow!("refused").context("no answer from a:1: refused; start one").context("can't list");
        assert_eq!(explain(&error), "can't list: no answer from a:1: refused; start one");
    }

    #[test]
    fn tables_align_their_columns() {
        let mut table = Table::new(["node", "address"]);
        table.row(["1".to_owned(), "größe:1".to_owned()]);
        table.row(["1000000".to_owned(), String::new()]);
        assert_eq!(table.to_string(), "node     address\n1        größe:1\n1000000");
    }
}
