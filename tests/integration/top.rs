//! `vcpuctl top`: the batch mode, and the live mode in a terminal.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout};
use vcpud::proxy::Statistics;
use zbus::{DBusError, OwnedObjectPath, OwnedVariant, interface};

use crate::harness::*;

/// Runs vcpuctl, which succeeds, and returns what it prints.
async fn printed(world: &World, arguments: &str) -> String {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let (status, printed, complaint) = world.vcpuctl(&arguments).await;
    assert_eq!((status, complaint.as_str()), (0, ""), "{arguments:?}");
    printed
}

/// Real QEMU with firmware only, scripted QEMU, dbus-daemon, vcpuctl.
#[tokio::test]
async fn the_batch_mode_prints_samples_as_tables_and_as_json() {
    let world = World::without_polkit().await;
    let _qemu = Qemu::start(&world, "web", &Boot::FIRMWARE).await;
    let mut model = Model::x86(2, 4);
    model.removal = Removal::Held;
    let _peer = world.peer("db", model);
    world.machine("web").await;
    let db = world.machine("db").await;
    assert_eq!(db.set_async(1).await, Ok(Outcome::pending([1])));

    let text = printed(&world, "top -b -n 2 -d 0.1 --expand").await;
    let samples: Vec<&str> = text.trim_end().split("\n\n").collect();
    assert_eq!(samples.len(), 2, "{text}");
    for sample in samples {
        let lines: Vec<Vec<&str>> = sample
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        // The date and the time come first.
        assert_eq!(lines[0][2..], ["2", "machines,", "4", "vCPUs"], "{text}");
        assert_eq!(
            lines[1].join(" "),
            "MACHINE STATE VCPUS PENDING USE% STEAL% THROT% CPU"
        );
        assert_eq!(lines[2][..4], ["db", "running", "2/4", "1"], "{text}");
        assert_eq!(lines[4][..3], ["vCPU", "1", "pending"], "{text}");
        assert_eq!(lines[5][..3], ["web", "running", "2/64"], "{text}");
        assert_eq!(lines[6][..3], ["vCPU", "0", "present"], "{text}");
        let used: f64 = lines[6][3].parse().expect("a rate");
        assert!((0.0..1000.0).contains(&used), "{text}");
        assert_eq!(lines.len(), 8, "{text}");
    }

    let text = printed(&world, "--json top -n 2 -d 100ms --filter e --sort use").await;
    let samples = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("one object"));
    let samples: Vec<Value> = samples.collect();
    assert_eq!(samples.len(), 2, "{text}");
    for sample in samples {
        assert!(sample["time"].is_string());
        assert_eq!(
            sample["machines"].as_array().map(Vec::len),
            Some(1),
            "{text}"
        );
        let machine = &sample["machines"][0];
        assert_eq!(
            (&machine["name"], &machine["state"]),
            (&"web".into(), &"running".into())
        );
        let vcpus = machine["vcpus"].as_array().expect("vCPUs");
        assert_eq!(vcpus.len(), 2);
        for numbers in [machine, &vcpus[1]] {
            assert!(numbers["use-percent"].is_f64(), "{text}");
            assert!(numbers["steal-percent"].is_f64(), "{text}");
            assert!(numbers.get("throttled-percent").is_none(), "{text}");
        }
        assert!(vcpus[0]["host-cpu"].is_u64(), "{text}");
    }
}

/// dbus-daemon, vcpuctl.
#[tokio::test]
async fn without_a_terminal_a_service_or_machines_top_says_so() {
    let mut world = World::without_service().await;
    let (status, _, complaint) = world.vcpuctl(&["top"]).await;
    assert_eq!(status, 1);
    assert!(
        complaint.contains("not a terminal; use --batch"),
        "{complaint}"
    );
    let (status, _, complaint) = world.vcpuctl(&["top", "-b", "-n", "1"]).await;
    assert_eq!(status, 75);
    assert!(complaint.contains("vcpud is not running"), "{complaint}");
    for wrong in ["-n0", "-d0", "--sort=size"] {
        let (status, ..) = world.vcpuctl(&["top", "-b", wrong]).await;
        assert_eq!(status, 2, "{wrong}");
    }
    world.serve().await;
    let text = printed(&world, "top -b -n 1 -d 0.1").await;
    assert!(text.contains("0 machines, 0 vCPUs"), "{text}");
    let text = printed(&world, "--json top -n 1 -d 0.1").await;
    assert!(text.contains("\"machines\":[]"), "{text}");
}

/// A shell in a terminal of 80 columns, which script(1) makes.
struct Terminal {
    process: Process,
    keys: ChildStdin,
    output: ChildStdout,
    text: String,
}

impl Terminal {
    fn start(world: &World, commands: &str) -> Self {
        let commands = format!("stty rows 24 cols 80; {commands}");
        let mut command = command("script");
        command
            .args(["--quiet", "--return", "--command", &commands, "/dev/null"])
            .env("DBUS_SYSTEM_BUS_ADDRESS", world.bus.address())
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Process::spawn("script", &mut command);
        let keys = process.child.stdin.take().expect("it is piped");
        let output = process.child.stdout.take().expect("it is piped");
        Self {
            process,
            keys,
            output,
            text: String::new(),
        }
    }

    async fn press(&mut self, keys: &str) {
        self.keys
            .write_all(keys.as_bytes())
            .await
            .expect("it reads");
    }

    /// Waits until the terminal got `text` after the texts of the previous calls. Returns what it got before.
    /// Only changes are written, which can leave out the spaces between words without a style.
    async fn shows(&mut self, text: &str) -> String {
        let read = async {
            let mut buffer = [0; 4096];
            loop {
                if let Some((before, rest)) = self.text.split_once(text) {
                    let before = before.to_owned();
                    self.text = rest.to_owned();
                    return before;
                }
                let length = self.output.read(&mut buffer).await.expect("it can be read");
                assert_ne!(length, 0, "the end without {text:?}: {:?}", self.text);
                self.text += &String::from_utf8_lossy(&buffer[..length]);
            }
        };
        within(format!("{text:?} in the terminal"), read).await
    }
}

const ENTER_SCREEN: &str = "\u{1b}[?1049h";
const LEAVE_SCREEN: &str = "\u{1b}[?1049l";
const SHOW_CURSOR: &str = "\u{1b}[?25h";

/// Runs top between two commands that print the settings of the terminal.
fn top_in_terminal(world: &World) -> Terminal {
    let vcpuctl = env!("CARGO_BIN_EXE_vcpuctl");
    Terminal::start(
        world,
        &format!("stty -g; {vcpuctl} top -d 0.1; echo status $?; stty -g; echo end"),
    )
}

/// Waits until top has ended with success, and checks that the terminal is as before.
async fn is_restored(mut terminal: Terminal, before: &str) {
    terminal.shows(LEAVE_SCREEN).await;
    terminal.shows(SHOW_CURSOR).await;
    terminal.shows("status 0\r\n").await;
    let after = terminal.shows("\r\nend").await;
    assert_eq!(before.trim(), after.trim());
    assert!(terminal.process.wait().await.success());
}

/// Scripted QEMU, dbus-daemon, vcpuctl in a pseudo-terminal.
#[tokio::test]
async fn the_live_mode_follows_machines_and_restarts_and_restores_the_terminal() {
    let mut world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 4));
    world.machine("web").await;
    let mut terminal = top_in_terminal(&world);
    let before = terminal.shows(ENTER_SCREEN).await;
    terminal.shows("web").await;
    terminal.press(" ").await;
    terminal.shows("present").await;
    terminal.press("?").await;
    terminal.shows("return.").await;
    terminal.press("n").await;
    terminal.shows("THROT%").await;
    peer.model().status = "paused";
    peer.send(&event("STOP", json!({})));
    terminal.shows("paused").await;

    let mut service = world.service.take().expect("it runs");
    service.kill().await;
    terminal.shows("No new sample: ").await;
    world.serve().await;
    let _other = world.peer("zoo", Model::x86(1, 4));
    terminal.shows("zoo").await;
    drop(peer);
    terminal.press("q").await;
    is_restored(terminal, &before).await;
}

/// dbus-daemon, vcpuctl in a pseudo-terminal.
#[tokio::test]
async fn ctrl_c_ends_the_live_mode() {
    let world = World::without_polkit().await;
    let mut terminal = top_in_terminal(&world);
    let before = terminal.shows(ENTER_SCREEN).await;
    terminal.shows("machines.").await;
    terminal.press("\u{3}").await;
    is_restored(terminal, &before).await;
}

#[derive(Debug, DBusError)]
#[zbus(prefix = "org.vcpud1.Error")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    LimitExceeded(String),
}

/// A service with one machine, which refuses calls while it is busy.
struct Busy(Arc<AtomicBool>);

#[interface(name = "org.vcpud1.Manager")]
impl Busy {
    fn get_statistics(
        &self,
        _options: HashMap<String, OwnedVariant>,
    ) -> Result<HashMap<OwnedObjectPath, Statistics>, Refusal> {
        if self.0.load(Ordering::Relaxed) {
            return Err(Refusal::LimitExceeded("too many calls".to_owned()));
        }
        let path = OwnedObjectPath::try_from("/org/vcpud1/machine/web")?;
        Ok(HashMap::from([(path, Statistics::default())]))
    }
}

/// Scripted service, dbus-daemon, vcpuctl in a pseudo-terminal.
#[tokio::test]
async fn the_live_mode_continues_after_a_refusal() {
    let world = World::without_service().await;
    let is_busy = Arc::new(AtomicBool::new(false));
    let objects = world.connection.object_server();
    let path = "/org/vcpud1";
    objects.at(path, zbus::fdo::ObjectManager).await.unwrap();
    objects.at(path, Busy(Arc::clone(&is_busy))).await.unwrap();
    world.connection.request_name("org.vcpud1").await.unwrap();

    let mut terminal = top_in_terminal(&world);
    let before = terminal.shows(ENTER_SCREEN).await;
    terminal.shows("web").await;
    is_busy.store(true, Ordering::Relaxed);
    terminal.shows("No new sample: too many calls").await;
    is_busy.store(false, Ordering::Relaxed);
    // The message was above the table, which moves up again.
    terminal.shows("web").await;
    terminal.press("q").await;
    is_restored(terminal, &before).await;
}
