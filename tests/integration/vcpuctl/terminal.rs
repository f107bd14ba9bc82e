//! vcpuctl on a terminal: passwords, progress, and interrupts.

use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout, Command};

use crate::harness::*;

/// A terminal, in which script(1) runs a command.
struct Terminal {
    script: Process,
    keyboard: ChildStdin,
    output: ChildStdout,
    screen: String,
}

impl Terminal {
    /// Runs vcpuctl with the arguments in `line`, by `script`, which can have another user.
    fn start(world: &World, script: Command, line: &str) -> Self {
        Self::with_columns(100, world, script, line)
    }

    /// The same on a terminal with so many columns.
    fn with_columns(columns: usize, world: &World, mut script: Command, line: &str) -> Self {
        let program = world.copy_of_vcpuctl();
        let line = format!("stty cols {columns}; exec {} {line}", program.display());
        script
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .env("DBUS_SYSTEM_BUS_ADDRESS", world.bus.address())
            .env("SHELL", "/bin/bash")
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut script = Process::spawn("script", &mut script);
        Self {
            keyboard: script.child.stdin.take().unwrap(),
            output: script.child.stdout.take().unwrap(),
            screen: String::new(),
            script,
        }
    }

    /// Waits until the screen has `text`.
    async fn shows(&mut self, text: &str) {
        let shown = async {
            while !self.screen.contains(text) {
                assert!(
                    self.read().await,
                    "the end, without {text:?}: {}",
                    self.screen
                );
            }
        };
        within(format!("{text:?} on the terminal"), shown).await;
    }

    async fn read(&mut self) -> bool {
        let mut bytes = Vec::new();
        let read = self.output.read_buf(&mut bytes).await.unwrap();
        self.screen += &String::from_utf8_lossy(&bytes);
        read > 0
    }

    async fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).await.unwrap();
    }

    /// Waits for the end. Returns the exit status and the screen.
    async fn end(mut self) -> (Option<i32>, String) {
        within("the end of vcpuctl", async { while self.read().await {} }).await;
        (self.script.wait().await.code(), self.screen)
    }
}

/// Scripted QEMU, dbus-daemon, vcpuctl.
#[tokio::test]
async fn an_interrupt_leaves_the_removal_pending() {
    let world = World::without_polkit().await;
    let mut model = Model::x86(3, 4);
    model.removal = Removal::Held;
    let peer = world.peer("web", model);
    world.machine("web").await;
    let start = |line: &str| Terminal::start(&world, command("script"), line);
    let mut terminal = start("set web 1 --timeout 600");
    let progress = "web: waiting for the guest to release vCPUs 1-2";
    terminal.shows(progress).await;
    terminal.press("\x03").await;
    let (status, screen) = terminal.end().await;
    assert_eq!(status, Some(5), "{screen}");
    let reason = "vcpuctl: web: interrupted; the removal of vCPUs 1-2 stays pending";
    assert!(screen.contains(reason), "{screen}");

    // "wait" ends when the guest has released all vCPUs.
    let mut terminal = start("wait web");
    terminal.shows(progress).await;
    release(&peer, 2);
    terminal
        .shows("web: waiting for the guest to release vCPU 1 ")
        .await;
    release(&peer, 1);
    let (status, screen) = terminal.end().await;
    assert_eq!(status, Some(0), "{screen}");
    assert!(screen.ends_with("web: removed 1-2\r\n"), "{screen:?}");
}

/// Lets the guest release a vCPU.
fn release(peer: &Peer, n: usize) {
    let path = peer.model().unplug(n);
    peer.send(&deleted(&path));
}

/// Scripted QEMUs, dbus-daemon, vcpuctl.
#[tokio::test]
async fn wait_reports_how_the_removal_ended() {
    let world = World::without_polkit().await;
    let model = || {
        let mut model = Model::x86(2, 4);
        model.removal = Removal::Held;
        model
    };
    let web = world.peer("web", model());
    let (mut process, _db) = world.process_peer("db", model());
    let (web_machine, db_machine) = (world.machine("web").await, world.machine("db").await);
    let (status, printed, _) = world.vcpuctl(&["wait", "web", "db"]).await;
    let nothing = "web: no removal is pending\ndb: no removal is pending\n";
    assert_eq!((status, printed.as_str()), (0, nothing));

    assert_eq!(web_machine.set_async(1).await, Ok(Outcome::pending([1])));
    assert_eq!(db_machine.set_async(1).await, Ok(Outcome::pending([1])));
    let arguments = ["--json", "wait", "web", "--timeout", "0.05"];
    let (status, printed, _) = world.vcpuctl(&arguments).await;
    let object: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let expected = serde_json::json!({
        "error": "org.vcpud1.Error.RemovalPending",
        "message": "web: the time limit ended; the removal of vCPU 1 stays pending",
        "removed": [], "pending": [1], "refused": [],
    });
    assert_eq!((status, object), (5, expected));

    let start = |line: &str| Terminal::start(&world, command("script"), line);
    let mut terminal = start("wait web");
    terminal.shows("waiting for the guest").await;
    web.send(&ost(1, None, 3, 130));
    let (status, screen) = terminal.end().await;
    assert_eq!(status, Some(4), "{screen}");
    let refused = "vcpuctl: web: the guest refused: vCPU 1: the guest is busy with the CPU";
    assert!(screen.contains(refused), "{screen}");
    let mut terminal = start("wait db");
    terminal.shows("waiting for the guest").await;
    process.kill().await;
    let (status, screen) = terminal.end().await;
    assert_eq!(status, Some(6), "{screen}");
    assert!(screen.contains("machine db has ended"), "{screen}");
}

/// Scripted QEMU, dbus-daemon, polkitd, pkttyagent, vcpuctl as nobody.
#[tokio::test]
async fn polkit_asks_for_a_password_on_the_terminal() {
    let world = World::with_polkit("").await;
    let _peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    // polkitd uses a fallback agent only for processes of a session of logind.
    let agent = world.bus.directory().join("pkttyagent");
    let text = "[ \"$1\" = --fallback ] && shift && exec /usr/bin/pkttyagent \"$@\"";
    script(&agent, text);
    let mut script = command_of_nobody("script");
    let directory = world.bus.directory().display();
    script.env("PATH", format!("{directory}:/usr/bin:/bin"));
    let mut terminal = Terminal::start(&world, script, "set web 2");
    let question = "Authentication is required to change the virtual CPUs of web from 1 to 2.";
    terminal.shows(question).await;
    terminal.press("\x03").await;
    let (status, screen) = terminal.end().await;
    assert_ne!(status, Some(0), "{screen}");
}

/// Scripted QEMU, dbus-daemon, polkitd, vcpuctl as nobody.
#[tokio::test]
async fn a_missing_password_is_not_a_denial() {
    let rules = r#"
        polkit.addRule(function (action) {
            if (action.lookup("machine") == "db") return polkit.Result.NO;
        });"#;
    let world = World::with_polkit(rules).await;
    let _web = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    let _db = world.peer("db", Model::x86(1, 4));
    world.machine("db").await;
    for (line, reason) in [
        ("set web 2", "no authentication agent is available"),
        (
            "set web 2 --no-ask-password",
            "machine web: authentication is required for the polkit action org.vcpud1.set-vcpus, and --no-ask-password",
        ),
        ("set db 2", "not authorized by polkit"),
        ("set db 2 --no-ask-password", "not authorized by polkit"),
    ] {
        let mut command = command_of_nobody(world.copy_of_vcpuctl());
        command
            .args(line.split(' '))
            .env("DBUS_SYSTEM_BUS_ADDRESS", world.bus.address())
            .stdin(Stdio::null());
        let output = within("vcpuctl", command.output()).await.unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{line}: {complaint}");
        assert!(complaint.contains(reason), "{line}: {complaint}");
    }
    let script = command_of_nobody("script");
    let terminal = Terminal::start(&world, script, "--no-ask-password set web 2");
    let (status, screen) = terminal.end().await;
    assert_eq!(status, Some(3), "{screen}");
    assert!(screen.contains("--no-ask-password is given"), "{screen}");
}

/// Scripted QEMU, dbus-daemon, vcpuctl.
#[tokio::test]
async fn tables_fit_the_terminal_and_have_colours_there() {
    let world = World::without_polkit().await;
    let long = "w".repeat(60);
    let _peer = world.peer(&long, Model::x86(2, 4));
    world.machine(&long).await;
    let list = async |columns, no_color: bool| {
        let mut script = command("script");
        if no_color {
            script.env("NO_COLOR", "1");
        } else {
            script.env_remove("NO_COLOR");
        }
        let terminal = Terminal::with_columns(columns, &world, script, "--no-pager list");
        let (status, screen) = terminal.end().await;
        assert_eq!(status, Some(0), "{screen}");
        screen
    };
    let screen = list(60, true).await;
    assert!(!screen.contains('\x1b'), "{screen:?}");
    assert!(screen.contains('…'), "{screen}");
    let lengths = screen.lines().map(|line| line.chars().count());
    assert!(lengths.max() <= Some(60), "{screen}");
    let screen = list(200, false).await;
    assert!(screen.contains(&long), "{screen}");
    assert!(screen.contains("\x1b["), "{screen:?}");

    // A pipe has no width and no colours.
    let (status, printed, _) = world.vcpuctl(&["list"]).await;
    assert_eq!(status, 0);
    assert!(printed.contains(&long), "{printed}");
    assert!(!printed.contains(['\x1b', '…']), "{printed:?}");
}
