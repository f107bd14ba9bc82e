//! A client of HTTP.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wait::within;

/// The answer of an HTTP server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The status line and the headers, in lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Requests a page of the HTTP server with this address.
pub(crate) async fn request(address: SocketAddr, method: &str, path: &str) -> Answer {
    // With HTTP 1.0, the body has no parts, and its end is the end of the connection.
    let request = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let connected = within("a connection", TcpStream::connect(address)).await;
    let mut stream = connected.expect("it listens");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it reads");
    let answer = read_to_end(&mut stream).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok());
    Answer {
        status: status.expect("a status"),
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

/// Reads until the other side closes the connection.
pub(crate) async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    // A connection that is closed with unread bytes is reset.
    let _ = within("the end of a connection", read).await;
    String::from_utf8(answer).expect("UTF-8")
}
