//! Traces: the load of machines and the capacity of the host over time, as CSV. It must not read files.

use std::collections::BTreeSet;

use crate::names::MachineName;

/// The longest time from the first line to the last, in seconds.
const MAX_TIME: u64 = 31 * 24 * 60 * 60;
/// The maximum number of columns.
const MAX_COLUMNS: usize = 256;
/// The maximum length of an error, in characters.
const MAX_ERROR: usize = 200;

/// The load of machines, and the capacity of their host.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The names of the columns with the demand of a machine.
    pub machines: Vec<String>,
    /// At least two rows, sorted by time.
    rows: Vec<Row>,
}

/// What applies from one time on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// The time in seconds.
    time: u64,
    /// The number of host CPUs that the machines have.
    pub(super) host: f64,
    /// The number of host CPUs that each machine wants.
    pub(super) demands: Vec<f64>,
    /// Whether the policy gets a sample.
    pub(super) has_sample: bool,
    /// Whether the guests refuse to release vCPUs.
    pub(super) refuses: bool,
    /// Whether the guests are booting: they have started only their first vCPU.
    pub(super) boots: bool,
}

/// An error in a trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {text}")]
pub struct TraceError {
    /// The number of the line, from 1.
    pub line: usize,
    /// The error, and the allowed values.
    pub text: String,
}

/// The optional columns.
const OPTIONS: [&str; 3] = ["sample", "refuse", "boot"];

impl Trace {
    /// Parses a trace, which is UTF-8 with or without a byte order mark.
    ///
    /// # Errors
    ///
    /// Returns the first line that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, TraceError> {
        let text = str::from_utf8(bytes).map_err(|wrong| {
            let before = &bytes[..wrong.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            error(line, "the line is not UTF-8")
        })?;
        // Spreadsheets begin a file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = (1..).zip(text.lines());
        let mut lines = lines.filter(|(_, line)| !line.starts_with('#') && !line.trim().is_empty());
        let Some((number, header)) = lines.next() else {
            return Err(error(1, "the trace has no line with the names of columns"));
        };
        let columns: Vec<&str> = header.split(',').map(str::trim).collect();
        let machines = machines(&columns).map_err(|text| error(number, text))?;
        let mut rows: Vec<Row> = Vec::new();
        let mut last = number;
        for (number, line) in lines {
            let row = Row::parse(&columns, line).map_err(|text| error(number, text))?;
            if rows.last().is_some_and(|last| last.time >= row.time) {
                return Err(error(
                    number,
                    "the time must be above that of the previous line",
                ));
            }
            let start = rows.first().map_or(row.time, |first| first.time);
            if row.time - start > MAX_TIME {
                return Err(error(number, "the trace is longer than 31 days"));
            }
            rows.push(row);
            last = number;
        }
        if rows.len() < 2 {
            return Err(error(
                last,
                "the trace needs at least two lines with numbers",
            ));
        }
        Ok(Self { machines, rows })
    }

    /// Returns each second, and the row that applies to it. The last row is the end.
    pub(super) fn seconds(&self) -> impl Iterator<Item = (u64, &Row)> {
        let pairs = self.rows.windows(2);
        pairs.flat_map(|pair| (pair[0].time..pair[1].time).map(|second| (second, &pair[0])))
    }

    /// Returns the number of CPUs of the host: the maximum of the column.
    pub(super) fn host(&self) -> f64 {
        self.rows.iter().map(|row| row.host).fold(0.0, f64::max)
    }
}

fn error(line: usize, text: impl Into<String>) -> TraceError {
    // A value can be long.
    let text = text.into().chars().take(MAX_ERROR).collect();
    TraceError { line, text }
}

/// Returns the columns that are machines.
fn machines(columns: &[&str]) -> Result<Vec<String>, String> {
    let ["time", "host", others @ ..] = columns else {
        return Err("the first columns must be \"time,host\"".to_owned());
    };
    if columns.len() > MAX_COLUMNS {
        let count = columns.len();
        return Err(format!("{count} columns; the limit is {MAX_COLUMNS}"));
    }
    let mut known = BTreeSet::from(["time", "host"]);
    let mut machines = Vec::new();
    for column in others {
        if !known.insert(column) {
            return Err(format!("there are two columns {column:?}"));
        }
        if !OPTIONS.contains(column) {
            let name: Result<MachineName, _> = column.parse();
            machines.push(name.map_err(|error| error.to_string())?.to_string());
        }
    }
    if machines.is_empty() {
        return Err("a column with the demand of a machine is missing, such as \"web\"".to_owned());
    }
    Ok(machines)
}

impl Row {
    fn parse(columns: &[&str], line: &str) -> Result<Self, String> {
        let values: Vec<&str> = line.split(',').map(str::trim).collect();
        if values.len() != columns.len() {
            return Err(format!(
                "{} values are needed, not {}",
                columns.len(),
                values.len()
            ));
        }
        let mut row = Self {
            time: values[0]
                .parse()
                .map_err(|_| "the time must be whole seconds")?,
            host: number(values[1])?,
            demands: Vec::new(),
            has_sample: true,
            refuses: false,
            boots: false,
        };
        for (&column, value) in columns.iter().zip(values).skip(2) {
            match column {
                "sample" => row.has_sample = flag(value)?,
                "refuse" => row.refuses = flag(value)?,
                "boot" => row.boots = flag(value)?,
                _ => row.demands.push(number(value)?),
            }
        }
        Ok(row)
    }
}

fn number(value: &str) -> Result<f64, String> {
    let number = value.parse::<f64>().ok();
    let number = number.filter(|number| (0.0..=4096.0).contains(number));
    number.ok_or_else(|| format!("{value:?} is not a number from 0 to 4096"))
}

fn flag(value: &str) -> Result<bool, String> {
    match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(format!("{value:?} is neither 0 nor 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Trace, TraceError> {
        Trace::parse(text.as_bytes())
    }

    #[test]
    fn a_row_applies_until_the_next_one() {
        let trace = Trace::parse(b"# Text\ntime,host,web,boot\n0,8,1.5,1\n\n2,4,3,0\n3,4,3,0\n");
        let trace = trace.unwrap();
        assert_eq!(trace.machines, ["web"]);
        assert_eq!(trace.host(), 8.0);
        let seconds = trace.seconds();
        let seconds = seconds.map(|(second, row)| (second, row.demands[0], row.boots));
        let expected = [(0, 1.5, true), (1, 1.5, true), (2, 3.0, false)];
        assert_eq!(seconds.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn errors_have_the_line() {
        for (text, line) in [
            ("", 1),
            ("time,web\n", 1),
            ("time,host\n", 1),
            ("#\ntime,host,web\n0,8\n", 3),
            ("time,host,web\n0,8,x\n", 2),
            ("time,host,web\n0,8,-1\n", 2),
            ("time,host,web\n0.5,8,1\n", 2),
            ("time,host,web,sample\n0,8,1,2\n", 2),
            ("time,host,web\n5,8,1\n5,8,1\n", 3),
            ("time,host,web\n5,8,1\n", 2),
            ("time,host,web,a b\n0,8,1,1\n1,8,1,1\n", 1),
            ("time,host,web,\n0,8,1,1\n1,8,1,1\n", 1),
            ("time,host,web,web\n0,8,1,1\n1,8,1,1\n", 1),
            ("time,host,web,host\n0,8,1,1\n1,8,1,1\n", 1),
            ("#\ntime,host,web,boot,boot\n", 2),
            ("time,host,web\n0,8,1\n2678401,8,1\n", 3),
            ("time,host,web\n0,8,1\n18446744073709551615,8,1\n", 3),
        ] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text}");
        }
    }

    #[test]
    fn a_trace_has_at_most_31_days_and_256_columns() {
        let days = "time,host,web\n5,8,1\n2678405,8,1\n";
        assert!(parse(days).is_ok());
        let wide = |machines: usize| {
            let names = (0..machines).map(|number| format!(",vm{number}"));
            let row = |time: u8| format!("{time},8{}\n", ",1".repeat(machines));
            let text = format!(
                "time,host{}\n{}{}",
                names.collect::<String>(),
                row(0),
                row(1)
            );
            parse(&text)
        };
        assert_eq!(wide(254).unwrap().machines.len(), 254);
        let error = wide(255).unwrap_err();
        assert_eq!(error.to_string(), "line 1: 257 columns; the limit is 256");
    }

    #[test]
    fn a_byte_order_mark_is_ignored() {
        let text = "time,host,web\n0,8,1\n1,8,1\n";
        let marked = format!("\u{feff}{text}");
        assert_eq!(parse(&marked), parse(text));
    }

    #[test]
    fn an_error_of_wrong_bytes_has_the_line_and_is_short() {
        let error = Trace::parse(b"time,host,web\n0,8,\xff\n").unwrap_err();
        assert_eq!(error.to_string(), "line 2: the line is not UTF-8");
        let long = format!("time,host,web\n0,8,\u{1b}{}\n", "x".repeat(100_000));
        let error = parse(&long).unwrap_err();
        assert_eq!((error.line, error.text.len()), (2, MAX_ERROR));
        assert!(error.text.starts_with("\"\\u{1b}xxx"), "{error}");
    }
}
