//! The guest agent (`vcpud::guest_agent`). The guest controls all its data.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, timeout};
use vcpud::guest_agent::{Error, GuestAgent};
use vcpud::ids::Pid;
use vcpud::inventory::MAX_VCPUS;

use super::choice::Choices;

/// The time limit of a conversation.
const LIMIT: Duration = Duration::from_secs(30);
/// A length above the maximum of a line.
const TOO_LONG: usize = 3 << 20;

/// A conversation ends within its limit, regardless of the data. Accepted CPUs are possible, and errors are
/// short and have no control characters.
///
/// The first byte selects the behaviour of the guest. The others are its replies, separated by 0.
pub fn agent(data: &[u8]) {
    super::in_own_time(async {
        let directory = tempfile::tempdir().expect("a directory can be created");
        let path = directory.path().join("agent");
        let listener = UnixListener::bind(&path).expect("the socket can be created");
        let guest = tokio::spawn(be_guest(listener, data.to_vec()));
        let start = Instant::now();
        let talk = timeout(2 * LIMIT, async {
            // The guest is in this process, so this process is the leader.
            let mut agent = GuestAgent::connect(&path, Pid(std::process::id()), LIMIT).await?;
            let cpus = agent.cpus().await?;
            assert!(cpus.len() <= MAX_VCPUS as usize);
            assert!(cpus.iter().all(|(id, cpu)| *id == cpu.logical_id));
            let ids: Vec<u32> = cpus.into_keys().take(8).collect();
            agent.set_online(&ids, false).await
        });
        let result = talk.await.expect("the conversation ends within its limit");
        assert!(start.elapsed() <= LIMIT + Duration::from_secs(1));
        check(&result);
        guest.abort();
    });
}

fn check(result: &Result<(), Error>) {
    if let Err(error) = result {
        let words = error.to_string();
        assert!(words.len() < 4096, "{} bytes of an error", words.len());
        assert!(!words.chars().any(char::is_control), "{words:?}");
    }
}

async fn be_guest(listener: UnixListener, data: Vec<u8>) {
    while let Ok((stream, _)) = listener.accept().await {
        // A client that has left is not a failure.
        let _ = talk(stream, &data).await;
    }
}

async fn talk(stream: UnixStream, data: &[u8]) -> std::io::Result<()> {
    let (manner, said) = data.split_first().unwrap_or((&0, &[]));
    let mut manner = Choices::new(std::slice::from_ref(manner));
    let manner = manner.below(8);
    let mut answers = said.split(|byte| *byte == 0);
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).split(b'\n');
    while let Some(line) = lines.next_segment().await? {
        let line = String::from_utf8_lossy(&line).into_owned();
        let id = line
            .split("\"id\":")
            .nth(1)
            .and_then(|rest| rest.split('}').next());
        match (id, manner) {
            // Sends arbitrary data from the beginning.
            (Some(_), 1) | (None, _) => {
                let Some(answer) = answers.next() else {
                    return Ok(());
                };
                write.write_all(answer).await?;
                write.write_all(b"\n").await?;
            }
            // Does not answer.
            (Some(_), 2) => {}
            (Some(_), 3) => write.write_all(&vec![b'x'; TOO_LONG]).await?,
            // Sends data of a previous client first.
            (Some(id), 4) => {
                let answer = answers.next().unwrap_or_default();
                write.write_all(answer).await?;
                write.write_all(b"\n\xff").await?;
                write
                    .write_all(format!("{{\"return\": {id}}}\n").as_bytes())
                    .await?;
            }
            (Some(id), _) => {
                write.write_all(&[0xff]).await?;
                write
                    .write_all(format!("{{\"return\": {id}}}\n").as_bytes())
                    .await?;
            }
        }
    }
    Ok(())
}
