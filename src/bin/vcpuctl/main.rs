//! The command-line client of vcpud. It uses only the bus interface.

mod cli;
mod failure;
mod manage;
mod monitor;
mod query;
mod render;
mod set;
mod stats;
mod top;
mod tune;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use zbus::Connection;

use cli::{Arguments, Command};
use failure::Failure;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let json = arguments.json;
    match arguments.command {
        Command::List => query::list(&connect().await?, json).await,
        Command::Status { name: Some(name) } => query::status(&connect().await?, &name, json).await,
        Command::Status { name: None } => query::service(&connect().await?, json).await,
        Command::Register(machine) => manage::register(&connect().await?, &machine).await,
        Command::Unregister { name } => manage::unregister(&connect().await?, &name).await,
        Command::Reload => manage::reload(&connect().await?).await,
        Command::Vcpus { name } => query::vcpus(&connect().await?, &name, json).await,
        Command::Stats { name, kvm } => {
            stats::stats(&connect().await?, name.as_deref(), kvm, json).await
        }
        Command::Top(request) => top::top(request, json).await,
        Command::Set(request) => set::set(&connect().await?, &request, json).await,
        Command::Plug(these) => set::change(&connect().await?, &these, true, json).await,
        Command::Unplug(these) => set::change(&connect().await?, &these, false, json).await,
        Command::Pin { name, vcpus, cpus } => {
            tune::pin(&connect().await?, &name, &vcpus, &cpus).await
        }
        Command::Bandwidth {
            name,
            quota,
            period,
        } => tune::bandwidth(&connect().await?, &name, quota, period).await,
        Command::Scheduler {
            name,
            vcpus,
            policy,
            priority,
        } => tune::scheduler(&connect().await?, &name, &vcpus, &policy, priority).await,
        Command::Cache {
            name,
            vcpus,
            schemata,
        } => tune::cache(&connect().await?, &name, &vcpus, &schemata).await,
        Command::Monitor { name } => {
            monitor::monitor(&connect().await?, name.as_deref(), json).await
        }
        Command::Completions { shell } => {
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "vcpuctl", &mut std::io::stdout());
            Ok(())
        }
    }
}

async fn connect() -> Result<Connection, Failure> {
    Connection::system().await.map_err(Failure::NoBus)
}
