//! The HTTP server: a few connections at a time, each for one request and a limited time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::scrape::Scraper;

/// How many connections are served at a time. The others wait in the queue of the socket.
pub(crate) const MAX_CONNECTIONS: usize = 32;
/// How long a client may take for the head of its request.
const HEAD_LIMIT: Duration = Duration::from_secs(2);
/// How long a connection may last.
const CONNECTION_LIMIT: Duration = Duration::from_secs(20);
/// The maximum length of the head of a request, in bytes: the least that hyper accepts.
const MAX_HEAD: usize = 8192;
/// The pause after the kernel refused a connection.
const PAUSE: Duration = Duration::from_millis(100);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

const INDEX: &str = "<!DOCTYPE html>\n<html lang=\"en\"><title>vcpud-exporter</title>\
                     <p><a href=\"/metrics\">Metrics of vcpud</a></p></html>\n";

/// Serves the pages of `scraper` until no connection arrived for `idle_exit`.
pub(crate) async fn serve(listener: &TcpListener, scraper: &Scraper, idle_exit: Duration) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut http = Builder::new();
    http.keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(MAX_HEAD);
    loop {
        let slot = slots.clone().acquire_owned().await;
        let stream = match timeout(idle_exit, listener.accept()).await {
            Ok(Ok((stream, _))) => stream,
            Ok(Err(_)) => {
                sleep(PAUSE).await;
                continue;
            }
            // Connections that are still served have ended when all slots are free.
            Err(_) if slots.available_permits() == MAX_CONNECTIONS - 1 => return,
            Err(_) => continue,
        };
        let scraper = scraper.clone();
        let answer = service_fn(move |request| answer(request, scraper.clone()));
        let connection = http.serve_connection(TokioIo::new(stream), answer);
        tokio::spawn(async move {
            // A client that breaks a limit gets no answer.
            let _ = timeout(CONNECTION_LIMIT, connection).await;
            drop(slot);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    scraper: Scraper,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "use GET\n");
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return Ok(response);
    }
    Ok(match request.uri().path() {
        "/metrics" => match scraper.scrape().await {
            Ok(metrics) => page(StatusCode::OK, OPEN_METRICS, metrics),
            Err(reason) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{reason}\n")),
        },
        "/" => page(StatusCode::OK, HTML, INDEX),
        _ => page(StatusCode::NOT_FOUND, TEXT, "see /metrics\n"),
    })
}

fn page(
    status: StatusCode,
    content_type: &'static str,
    text: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::{advance, pause};

    use super::*;

    /// More than the kernel keeps for a client that does not read.
    const LENGTH: usize = 64 << 20;

    #[tokio::test]
    async fn a_client_that_does_not_read_is_disconnected() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (scraper, scraping) = Scraper::new(async || Ok(vec![b'#'; LENGTH].into()));
        tokio::spawn(scraping);
        tokio::spawn(async move { serve(&listener, &scraper, Duration::MAX).await });
        let mut client = TcpStream::connect(address).await.unwrap();
        client
            .write_all(b"GET /metrics HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        client.read_u8().await.unwrap();

        pause();
        advance(CONNECTION_LIMIT).await;
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
        assert!(rest.len() < LENGTH, "{}", rest.len());
    }
}
