//! The memory that one peer can make the service use: a scripted QEMU or guest agent, and the task of a
//! machine, with an allocator that counts.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a failed step ends the test"
)]

use std::alloc::System;
use std::fmt::Write as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cap::Cap;
use fake_qemu::{Canned, within};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use vcpud::audit::Audit;
use vcpud::config::Limits;
use vcpud::fd_store::FdStore;
use vcpud::machine::{
    self, BusMessage, EventSender, Handle, HostServices, Lifetime, MachineConfig, MachineEvent,
    MachineSpec, PlacementConfig, Processes, QmpEndpoint, Running,
};
use vcpud::placement::{NewScope, Process, UnitError, UnitFacts, Units};
use vcpud::placer::Host;
use vcpud::qmp::Codec;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// The limit: eight times the longest line of QEMU, and so eight times the largest inventory.
const LIMIT: usize = 8 * Codec::DEFAULT_LIMIT;
/// The longest value of a reply.
const LINE: usize = Codec::DEFAULT_LIMIT - 100;
/// The longest line of a guest agent.
const AGENT_LINE: usize = (2 << 20) - 100;
/// The maximum number of vCPUs in a slot.
const WIDTH: usize = 64;

/// The replies of a QEMU and its guest agent.
#[derive(Clone)]
struct Script {
    qemu: Canned,
    agent: Arc<str>,
}

impl From<Canned> for Script {
    fn from(qemu: Canned) -> Self {
        let agent = r#"{"return":[]}"#.into();
        Self { qemu, agent }
    }
}

/// Returns a list of `count` plugged slots of `width` vCPUs, or as many as fit into a line.
fn slots(count: usize, width: usize, props: impl Fn(usize) -> String) -> Arc<str> {
    let mut list = String::from("[");
    for n in 0..count {
        let slot = format!(
            r#"{{"props":{},"vcpus-count":{width},"type":"cpu","qom-path":"/machine/peripheral/vcpu{n}"}}"#,
            props(n)
        );
        if list.len() + slot.len() > LINE {
            break;
        }
        let separator = if n == 0 { "" } else { "," };
        let _ = write!(list, "{separator}{slot}");
    }
    list.push(']');
    list.into()
}

fn cpus(count: usize) -> Arc<str> {
    let cpu = |n: usize| {
        format!(
            r#"{{"cpu-index":{n},"qom-path":"/machine/peripheral/vcpu{n}","thread-id":{},"target":"x86_64","props":{{"core-id":{n}}}}}"#,
            (1 << 29) + n
        )
    };
    let list: Vec<String> = (0..count).map(cpu).collect();
    format!("[{}]", list.join(",")).into()
}

/// Returns `element` as often as `length` bytes hold it.
fn repeated(element: &str, length: usize) -> String {
    let count = length / (element.len() + 1);
    vec![element; count].join(",")
}

/// Returns the scripts, and whether the service accepts the machine.
fn scripts() -> Vec<(&'static str, bool, Script)> {
    let bomb = repeated(r#"{"a":0}"#, LINE - 200);
    let names: Vec<String> = (0..LINE / 17 - 40)
        .map(|n| format!(r#"{{"name":"{n:05x}"}}"#))
        .collect();
    let sixteen = |n: usize| {
        let members: Vec<String> = (0..16).map(|p| format!(r#""{p:x}":{n}"#)).collect();
        format!("{{{}}}", members.join(","))
    };
    let refusal = r#"{"event":"ACPI_DEVICE_OST","data":{"info":{"source":3,"status":1,"slot":"0","slot-type":"CPU"}},"timestamp":{"seconds":1,"microseconds":2}}"#;
    let script = Canned::default;
    vec![
        (
            "the largest inventory",
            true,
            Canned {
                slots: slots(16_384, 1, |n| format!(r#"{{"core-id":{n}}}"#)),
                cpus: cpus(16_384),
                ..script()
            }
            .into(),
        ),
        (
            "the largest number of properties",
            true,
            Canned {
                slots: slots(16_384, 1, sixteen),
                ..script()
            }
            .into(),
        ),
        (
            "properties that are trees",
            false,
            Canned {
                slots: slots(1, 1, |_| format!(r#"{{"a":[{bomb}]}}"#)),
                ..script()
            }
            .into(),
        ),
        (
            "slots without end",
            false,
            Canned {
                slots: format!(
                    "[{}]",
                    repeated(r#"{"props":{},"vcpus-count":1,"type":""}"#, LINE)
                )
                .into(),
                ..script()
            }
            .into(),
        ),
        (
            "commands without end",
            true,
            Canned {
                commands: format!(
                    "{},{}]",
                    script().commands.trim_end_matches(']'),
                    names.join(",")
                )
                .into(),
                ..script()
            }
            .into(),
        ),
        (
            "refusals of a wide slot",
            true,
            Canned {
                slots: slots(1, WIDTH, |_| r#"{"core-id":0}"#.to_owned()),
                events: vec![refusal; 1000].join("\n").into(),
                ..script()
            }
            .into(),
        ),
        (
            "an agent's list without end",
            true,
            Script {
                qemu: script(),
                agent: format!(r#"{{"return":[{}]}}"#, repeated(r#"{"a":0}"#, AGENT_LINE)).into(),
            },
        ),
    ]
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let scripts = scripts();
    let directory = tempfile::tempdir().expect("a directory can be created");
    let site = site();
    // The peak counts the whole process, so each machine ends before the next begins.
    let base = ALLOCATOR.allocated();
    for (what, lives, script) in &scripts {
        let (held, peak) = meet(directory.path(), &site, what, *lives, script.clone(), base).await;
        let mebibytes = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        println(&format!(
            "{what}: holds {:.1} MiB, at most {:.1} MiB so far",
            mebibytes(held),
            mebibytes(peak)
        ));
        assert!(held < LIMIT && peak < LIMIT, "{what} uses too much memory");
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the program is a test without a harness"
)]
fn println(line: &str) {
    println!("{line}");
}

/// Runs a machine whose QEMU follows `script`. Returns the bytes in use after it, and the peak so far.
async fn meet(
    directory: &Path,
    site: &HostServices,
    what: &str,
    lives: bool,
    script: Script,
    base: usize,
) -> (usize, usize) {
    let (near, far) = UnixStream::pair().expect("a pair");
    let agent_socket = directory.join("agent");
    let _ = std::fs::remove_file(&agent_socket);
    let listener = UnixListener::bind(&agent_socket).expect("the socket can be created");
    let peer = tokio::spawn(script.qemu.clone().serve(far));
    let agent = tokio::spawn(be_agent(listener, script.agent.clone()));
    let refusals = watch::Sender::new(0);
    let (outbox, notices) = EventSender::new();
    outbox.open().await;
    let listener = tokio::spawn(listen(notices, refusals.clone()));
    let (mut running, machine) = start(directory, near, site.clone(), outbox);
    let settled = within(what, running.settled()).await;
    assert_eq!(settled.is_ok(), lives, "{what}: {settled:?}");
    if !script.qemu.events.is_empty() {
        let mut reported = refusals.subscribe();
        let expected = reported.wait_for(|refusals| *refusals >= WIDTH);
        drop(within("the refusals", expected).await);
    }
    if lives {
        let handle = handle(&running);
        within("the agent", machine::online(&handle)).await;
    }
    let used = (
        ALLOCATOR.allocated().saturating_sub(base),
        ALLOCATOR.max_allocated().saturating_sub(base),
    );
    for task in [machine, peer, agent, listener] {
        task.abort();
        let _ = task.await;
    }
    running.finish().await;
    used
}

fn handle(running: &Running) -> Handle {
    running.configure(config())
}

fn config() -> MachineConfig {
    let limits = Limits {
        qmp_timeout: Duration::from_secs(60),
        removal_timeout: Duration::from_secs(60),
    };
    let placement = PlacementConfig::default();
    MachineConfig { limits, placement }
}

fn start(
    directory: &Path,
    stream: UnixStream,
    site: HostServices,
    outbox: EventSender,
) -> (Running, JoinHandle<()>) {
    let spec = MachineSpec {
        origin: machine::Origin::Socket,
        name: "machine".parse().expect("a valid name"),
        endpoint: QmpEndpoint::Connection(Some(stream)),
        lifetime: Lifetime::Registered,
        uuid: None,
        leader: None,
        processes: Processes::default(),
        agent: directory.join("agent"),
        state_file: directory.join("state"),
        config: config(),
    };
    let (running, task) = machine::create(spec, site, outbox);
    (running, tokio::spawn(task))
}

async fn listen(mut notices: mpsc::Receiver<BusMessage>, refusals: watch::Sender<usize>) {
    while let Some(notice) = notices.recv().await {
        match notice {
            BusMessage::Completion(completion) => completion.run(),
            BusMessage::Event {
                event: MachineEvent::VcpuRemovalFailed { .. },
                ..
            } => {
                refusals.send_modify(|refusals| *refusals += 1);
            }
            _ => {}
        }
    }
}

/// Serves as a guest agent with `answer` to each command.
async fn be_agent(listener: UnixListener, answer: Arc<str>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            let call: serde_json::Value = serde_json::from_slice(
                line.trim_ascii_start()
                    .strip_prefix(b"\xff")
                    .unwrap_or(&line),
            )
            .expect("the client writes JSON");
            let sync = format!("\u{0}{{\"return\":{}}}\n", call["arguments"]["id"]).into_bytes();
            let answer = match call["execute"].as_str() {
                Some("guest-sync-delimited") => {
                    let mut sync = sync;
                    sync[0] = 0xff;
                    let _ = write.write_all(&sync).await;
                    continue;
                }
                _ => &answer,
            };
            let _ = write.write_all(answer.as_bytes()).await;
            let _ = write.write_all(b"\n").await;
        }
    }
}

/// A host without systemd and without an audit log.
fn site() -> HostServices {
    HostServices {
        watches: None,
        units: Arc::new(Nothing),
        host: Host::this().expect("the host can be read"),
        audit: Arc::new(Audit::none()),
        fd_store: Arc::new(Nothing),
    }
}

#[derive(Debug)]
struct Nothing;

type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, UnitError>> + Send + 'a>>;

impl Units for Nothing {
    fn unit_of<'a>(&'a self, _: Process<'a>) -> Asked<'a, UnitFacts> {
        Box::pin(async { Err(UnitError::Absent("no service manager".to_owned())) })
    }

    fn start_scope<'a>(&'a self, _: NewScope<'a>, _: Process<'a>) -> Asked<'a, String> {
        panic!("no scope is needed")
    }

    fn appeared(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }
}

impl FdStore for Nothing {
    fn keep(&self, _: &str, _: BorrowedFd<'_>) {}
    fn release(&self, _: &str) {}
    fn take(&self, _: &str) -> Option<OwnedFd> {
        None
    }
}
