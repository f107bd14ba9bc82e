//! A peer whose replies exist before the conversation, so that it needs no memory itself.

use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// The command of the service that comes last when it refreshes its view of QEMU.
const LAST_OF_REFRESH: &str = "query-status";

/// The replies of a peer, as JSON.
#[derive(Clone)]
pub struct Canned {
    /// The reply of `query-commands`.
    pub commands: Arc<str>,
    /// The reply of `query-hotpluggable-cpus`.
    pub slots: Arc<str>,
    /// The reply of `query-cpus-fast`.
    pub cpus: Arc<str>,
    /// Lines that follow the first refresh.
    pub events: Arc<str>,
}

impl Default for Canned {
    /// Returns the replies of a PC with one vCPU, which is present.
    fn default() -> Self {
        Self {
            commands: r#"[{"name":"query-hotpluggable-cpus"},{"name":"query-cpus-fast"}]"#.into(),
            slots: r#"[{"props":{"core-id":0},"vcpus-count":1,"type":"cpu","qom-path":"/machine/peripheral/vcpu0"}]"#.into(),
            cpus: "[]".into(),
            events: "".into(),
        }
    }
}

impl Canned {
    /// Serves one client until it disconnects.
    ///
    /// # Panics
    /// Panics if the client does not write JSON commands.
    pub async fn serve(self, stream: UnixStream) {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        let mut events = Some(self.events.clone());
        let greeting = b"{\"QMP\":{\"version\":{},\"capabilities\":[]}}\n";
        let _ = write.write_all(greeting).await;
        while let Ok(Some(line)) = lines.next_line().await {
            let call: Value = serde_json::from_str(&line).expect("the client writes JSON");
            let command = call["execute"].as_str().expect("a command");
            let id = format!("{{\"id\":{},\"return\":", call["id"]);
            for part in [id.as_bytes(), self.reply(command).as_bytes(), b"}\n"] {
                // The client may disconnect at any time.
                let _ = write.write_all(part).await;
            }
            if command == LAST_OF_REFRESH
                && let Some(events) = events.take()
            {
                let _ = write.write_all(events.as_bytes()).await;
                let _ = write.write_all(b"\n").await;
            }
        }
    }

    fn reply(&self, command: &str) -> &str {
        match command {
            "query-commands" => &self.commands,
            "query-hotpluggable-cpus" => &self.slots,
            "query-cpus-fast" => &self.cpus,
            "query-version" => r#"{"qemu":{"major":10,"minor":0,"micro":0}}"#,
            "query-uuid" => r#"{"UUID":"00000000-0000-0000-0000-000000000000"}"#,
            "query-target" => r#"{"arch":"x86_64"}"#,
            "query-kvm" => r#"{"enabled":true}"#,
            "query-status" => r#"{"status":"running"}"#,
            _ => "{}",
        }
    }
}
