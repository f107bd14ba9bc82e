//! The exporter for Prometheus. systemd starts it for the first connection to its socket. It has no rights,
//! and uses only the bus interface.

mod http;
mod metrics;
mod scrape;

use std::io;
use std::net::TcpListener;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tracing::error;

use scrape::{Scraper, Service};

/// Export the statistics of vcpud to Prometheus.
///
/// systemd starts the exporter with a listening socket, which vcpud-exporter.socket defines. The exporter serves
/// /metrics over HTTP in the OpenMetrics format. It exits when it is not used.
#[derive(Parser)]
#[command(name = "vcpud-exporter", version)]
struct Arguments {
    /// Exit after this time without a connection.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "6min")]
    idle_exit: Duration,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    vcpud::log::start();
    let listener = match listener() {
        Ok(listener) => listener,
        Err(error) => {
            error!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut service = Service::default();
    let (scraper, scraping) = Scraper::new(async move || service.page().await);
    tokio::spawn(scraping);
    http::serve(&listener, &scraper, arguments.idle_exit).await;
    ExitCode::SUCCESS
}

/// Takes the socket that systemd passed.
fn listener() -> io::Result<tokio::net::TcpListener> {
    let mut sockets = vcpud::systemd::passed()?.into_iter();
    let (Some((_, socket)), None) = (sockets.next(), sockets.next()) else {
        return Err(io::Error::other(
            "the exporter needs one listening socket; run \"systemctl start vcpud-exporter.socket\"",
        ));
    };
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}
