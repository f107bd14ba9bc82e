//! The command "top": the load of machines and vCPUs.
//!
//! `source` gets samples, `rates` compares two of them, and `rows` makes the chosen rows. The live mode is `app`
//! (its state), `view` (drawing) and `live` (its loop). The batch mode is in this file.

mod app;
mod live;
mod rates;
mod rows;
mod sample;
mod source;
mod view;

use std::io::{Write, stdout};
use std::time::SystemTime;

use serde_json::{Value as Json, json};

use crate::cli::{Global, Top};
use crate::failure::Failure;
use crate::render::{self, Table};
use rates::Machine;
use rows::{Choice, Expanded, HEADINGS};
use source::Source;

/// Shows the load of all machines.
pub(crate) async fn top(request: Top, arguments: &Global) -> Result<(), Failure> {
    let json = arguments.json;
    let source = Source::new(request.delay, arguments.clone());
    let choice = Choice {
        sort: request.sort,
        is_reversed: request.reverse,
        filter: request.filter,
        expanded: Expanded::all(request.expand),
    };
    if request.batch || json {
        batch(source, &choice, request.samples, arguments).await
    } else {
        live::run(source, choice, request.samples).await
    }
}

/// Prints samples until interrupted, or `count` of them.
async fn batch(
    mut source: Source,
    choice: &Choice,
    count: Option<u64>,
    arguments: &Global,
) -> Result<(), Failure> {
    let mut before = source.next().await?;
    let mut left = count;
    while left != Some(0) {
        let sample = source.next().await?;
        let machines = choice.machines(&rates::machines(&before, &sample));
        print(&machines, choice, arguments)?;
        before = sample;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

fn print(machines: &[Machine], choice: &Choice, arguments: &Global) -> Result<(), Failure> {
    let legend = !arguments.no_legend;
    if arguments.json {
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let machines: Vec<Json> = machines.iter().map(rows::object).collect();
        let line = json!({"time": time, "machines": machines});
        return Ok(writeln!(stdout(), "{line}")?);
    }
    let mut table = Table::new(legend, HEADINGS);
    for row in choice.rows(machines) {
        table.row(row.cells);
    }
    Ok(writeln!(
        stdout(),
        "{}  {}\n{table}\n",
        render::local_time(),
        view::summary(machines)
    )?)
}
