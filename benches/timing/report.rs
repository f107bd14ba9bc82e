//! The results of a benchmark, as a Markdown table on the standard output and as JSON in a file.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use super::host::Host;
use super::{Times, is_brief};

/// The results of one benchmark.
#[derive(Serialize)]
pub(crate) struct Report {
    bench: &'static str,
    host: Host,
    notes: Vec<String>,
    pub(crate) rows: Vec<Row>,
    figures: Vec<Figure>,
}

/// One way to do a work, compared with the floor of the same work in the same run.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) work: String,
    pub(crate) way: String,
    /// The number of measurements.
    rounds: usize,
    pub(crate) median_ms: f64,
    /// The 5th and the 95th percentile.
    low_ms: f64,
    high_ms: f64,
    /// The median without that of the floor.
    pub(crate) overhead_ms: f64,
    /// The median divided by that of the floor.
    pub(crate) ratio: f64,
}

/// One more result.
#[derive(Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
}

impl Report {
    pub(crate) fn new(bench: &'static str) -> Self {
        Self {
            bench,
            host: Host::here(),
            notes: Vec::new(),
            rows: Vec::new(),
            figures: Vec::new(),
        }
    }

    /// Adds the durations of the ways to do `work`, and prints the medians as progress. The first way is the floor.
    #[expect(clippy::print_stderr, reason = "the progress")]
    pub(crate) fn compare<'a>(
        &mut self,
        work: &str,
        ways: impl IntoIterator<Item = (&'a str, &'a Times)>,
    ) {
        let mut floor = None;
        for (way, times) in ways {
            let median = times.median();
            let floor = *floor.get_or_insert(median);
            let row = Row {
                work: work.to_owned(),
                way: way.to_owned(),
                rounds: times.len(),
                median_ms: median,
                low_ms: times.percentile(5),
                high_ms: times.percentile(95),
                overhead_ms: median - floor,
                ratio: median / floor,
            };
            eprintln!(
                "{}: {}, {}: {} ms",
                self.bench,
                row.work,
                row.way,
                digits(median)
            );
            self.rows.push(row);
        }
    }

    /// Adds a note about the run, such as a version.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Adds a result that is not a duration with a floor. The unit may be empty.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.figures.push(Figure {
            name: name.into(),
            value,
            unit,
        });
    }

    /// Prints the tables, and writes `bench/NAME.json` and `bench/NAME.md` in the target directory. The files of brief
    /// runs are in `bench/brief`.
    #[expect(clippy::print_stdout, reason = "the tables")]
    pub(crate) fn finish(&self) {
        let tables = self.markdown();
        println!("{tables}");
        let json = serde_json::to_string_pretty(self).expect("it has no maps");
        self.write("json", &json);
        self.write("md", &tables);
    }

    /// Writes a file of this benchmark.
    pub(crate) fn write(&self, extension: &str, text: &str) {
        let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        let mut directory = PathBuf::from(target).join("bench");
        if is_brief() {
            directory.push("brief");
        }
        fs::create_dir_all(&directory).expect("the directory is writable");
        let file = directory.join(self.bench).with_extension(extension);
        fs::write(file, text).expect("the file is writable");
    }

    fn markdown(&self) -> String {
        let mut text = self.host.line();
        for note in &self.notes {
            write!(text, ", {note}").expect("a string has room");
        }
        if !self.rows.is_empty() {
            text.push_str(
                "\n\n| work | way | median (5 % to 95 %), ms | above the floor, ms | ratio |",
            );
            text.push_str("\n| --- | --- | --- | --- | --- |");
        }
        let mut work = "";
        for row in &self.rows {
            let name = if row.work == work { "" } else { &row.work };
            work = &row.work;
            let [median, low, high, overhead] =
                [row.median_ms, row.low_ms, row.high_ms, row.overhead_ms].map(digits);
            let (overhead, ratio) = match name {
                "" => (overhead, format!("{:.2}", row.ratio)),
                _ => ("floor".to_owned(), String::new()),
            };
            let way = &row.way;
            let line =
                format!("\n| {name} | {way} | {median} ({low} to {high}) | {overhead} | {ratio} |");
            text.push_str(&line);
        }
        if !self.figures.is_empty() {
            text.push_str("\n\n| figure | value |\n| --- | --- |");
        }
        for Figure { name, value, unit } in &self.figures {
            let value = digits(*value);
            let line = format!("{value} {unit}");
            write!(text, "\n| {name} | {} |", line.trim()).expect("a string has room");
        }
        text.push('\n');
        text
    }
}

/// Returns a number with at least three digits.
fn digits(number: f64) -> String {
    match number.abs() {
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}
