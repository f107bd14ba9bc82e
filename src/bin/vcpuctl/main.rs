//! The command-line client of vcpud. It uses only the bus interface.

mod agent;
mod autoscale;
mod cli;
mod client;
mod completion;
mod failure;
mod manage;
mod monitor;
mod progress;
mod query;
mod render;
mod sentence;
mod set;
mod show;
mod stats;
mod status;
mod top;
mod tune;
mod tuning;
mod vcpus;
mod wait;
mod watch;
mod words;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Arguments, Command};
use client::Client;
use failure::Failure;

fn main() -> ExitCode {
    completion::complete(Arguments::command);
    start()
}

#[tokio::main(flavor = "current_thread")]
async fn start() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return failure::report_usage(&error),
    };
    let json = arguments.global.json;
    let command = arguments.command.as_ref();
    let subject = command.map(Command::subject).unwrap_or_default();
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json, &subject),
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let json = arguments.global.json;
    let command = match arguments.command.unwrap_or(Command::List) {
        Command::Completions { shell } => return Ok(completion::print_script(shell)?),
        Command::Top(request) => return top::top(request, &arguments.global).await,
        command => command,
    };
    let client = Client::new(&arguments.global).await?;
    match command {
        Command::Completions { .. } | Command::Top(_) => Ok(()),
        Command::List => query::list(&client).await,
        Command::Status { names } if names.is_empty() => query::service(&client).await,
        Command::Status { names } => query::status(&client, &names).await,
        Command::Show {
            names,
            property,
            value,
        } => show::show(&client, &names, &property, value).await,
        Command::Wait { names, timeout } => wait::wait(&client, &names, timeout).await,
        Command::Vcpus { name, all } => vcpus::vcpus(&client, &name, all).await,
        Command::Stats { name, kvm } => stats::stats(&client, name.as_deref(), kvm).await,
        Command::Tuning { name } => tuning::tuning(&client, &name).await,
        Command::Set(request) => set::set(&client, &request).await,
        Command::Plug(these) => set::change(&client, &these, true).await,
        Command::Unplug(these) => set::change(&client, &these, false).await,
        Command::Tune(tune) => {
            tune::tune(&client, &tune).await?;
            Ok(render::done(json)?)
        }
        Command::Manage(manage) => {
            manage::manage(&client, &manage).await?;
            Ok(render::done(json)?)
        }
        Command::Autoscale(request) => autoscale::autoscale(&client, &request).await,
        Command::Explain { name } => autoscale::explain(&client, &name).await,
        Command::Monitor { name } => monitor::monitor(&client, name.as_deref()).await,
    }
}
