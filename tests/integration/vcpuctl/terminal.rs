//! vcpuctl on a terminal: passwords, progress, and interrupts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
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
    fn start(world: &World, mut script: Command, line: &str) -> Self {
        // The user `nobody` cannot enter the directory of the program, but can run a copy of it.
        let copy = world.bus.directory().join("vcpuctl");
        fs::copy(env!("CARGO_BIN_EXE_vcpuctl"), &copy).unwrap();
        let line = format!("stty cols 100; exec {} {line}", copy.display());
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

/// Scripted QEMU, dbus-daemon, polkitd, pkttyagent, vcpuctl as nobody.
#[tokio::test]
async fn polkit_asks_for_a_password_on_the_terminal() {
    let world = World::with_polkit("").await;
    let _peer = world.peer("web", Model::x86(1, 4));
    world.machine("web").await;
    // polkitd uses a fallback agent only for processes of a session of logind.
    let agent = world.bus.directory().join("pkttyagent");
    let text = "#!/bin/sh\n[ \"$1\" = --fallback ] && shift && exec /usr/bin/pkttyagent \"$@\"\n";
    fs::write(&agent, text).unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
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
            "authentication is required, and --no-ask-password",
        ),
        ("set db 2", "not authorized by polkit"),
        ("set db 2 --no-ask-password", "not authorized by polkit"),
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let (status, _, complaint) = world.vcpuctl_of_nobody(&arguments).await;
        assert_eq!(status, 3, "{line}: {complaint}");
        assert!(complaint.contains(reason), "{line}: {complaint}");
    }
    let script = command_of_nobody("script");
    let terminal = Terminal::start(&world, script, "--no-ask-password set web 2");
    let (status, screen) = terminal.end().await;
    assert_eq!(status, Some(3), "{screen}");
    assert!(screen.contains("--no-ask-password is given"), "{screen}");
}
