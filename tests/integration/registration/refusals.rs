//! Registrations that are refused, and what they leave.

use super::*;

const INVALID: &str = error_name::INVALID_ARGS;
const DISCONNECTED: &str = error_name::DISCONNECTED;
const OTHER_UUID: &str = "00000000-1111-4222-8333-444444444444";

/// A part of a call, the name of its error, and parts of the text.
type Case<'a, T> = (T, &'a str, &'a [&'a str]);

/// Calls that the service must refuse.
struct Refused<'a> {
    manager: &'a ManagerProxy<'a>,
    world: &'a World,
    /// The leader of machines without this option. The test's process is the machine `taken`.
    leader: u32,
}

impl Refused<'_> {
    fn at(&self, name: &str) -> String {
        elsewhere(self.world, name).display().to_string()
    }

    async fn call(&self, name: &str, address: &str, options: Options<'_>) -> Failure {
        let result = register(self.manager, name, address, options).await;
        result.expect_err(&format!("{name} {address} {options:?}"))
    }

    async fn names(&self, cases: &[Case<'_, &str>]) {
        let options = [("leader", self.leader.into())];
        for (name, error, parts) in cases {
            let failure = self.call(name, &self.at("good"), &options).await;
            failure.assert(error, parts);
        }
    }

    async fn addresses(&self, cases: &[Case<'_, String>]) {
        let soon = ("qmp-timeout", Variant::from("200ms"));
        let options = [("leader", self.leader.into()), soon];
        for (address, error, parts) in cases {
            let failure = self.call("web", address, &options).await;
            failure.assert(error, parts);
        }
    }

    async fn options(&self, cases: Vec<Case<'_, (&str, Variant<'_>)>>) {
        for (option, error, parts) in cases {
            let leader = ("leader", self.leader.into());
            let options = match option {
                ("leader", _) => vec![option],
                _ => vec![option, leader],
            };
            let failure = self.call("web", &self.at("good"), &options).await;
            failure.assert(error, parts);
        }
    }

    async fn descriptors(&self) {
        let file = fs::File::open(elsewhere(self.world, "file")).unwrap();
        let failure = register_fd(self.manager, "web", file).await.unwrap_err();
        // It is refused before the arguments are read.
        failure.assert(INVALID, &["not a connected Unix stream socket"]);
        let (ours, theirs) = pair();
        drop(ours);
        let result = register_fd_of(self.manager, "web", theirs, Some(self.leader)).await;
        let failure = result.unwrap_err();
        failure.assert(DISCONNECTED, &["web", "closed"]);
    }

    async fn processes(&self) {
        let failure = self.call("web", &self.at("good"), &[]).await;
        failure.assert(error_name::MACHINE_EXISTS, &["web", "the machine taken"]);
        let mut mixed = command("setpriv");
        mixed.args(["--euid=65534", "sleep"]);
        let mixed = sleeper(mixed).await;
        let options = [("leader", Variant::from(mixed.pid()))];
        let failure = self.call("web", &self.at("good"), &options).await;
        failure.assert(INVALID, &["web", "real, effective, saved", "65534"]);
    }

    async fn all(&self) {
        let long = "x".repeat(65);
        self.names(&[
            ("taken", error_name::MACHINE_EXISTS, &["taken", "socket"]),
            ("-x", INVALID, &["-x", "machine name"]),
            (&long, INVALID, &["machine name"]),
        ])
        .await;
        let at = |name| self.at(name);
        let late = error_name::QMP_TIMEOUT;
        self.addresses(&[
            ("good".into(), INVALID, &["good", "absolute path"]),
            ("tcp:127.0.0.1:1".into(), INVALID, &["absolute path"]),
            (at("none"), DISCONNECTED, &["web", "does not exist"]),
            (at("dead"), DISCONNECTED, &["web", "no process listens"]),
            (at("file"), INVALID, &["web", "not a socket"]),
            (at("ssh"), DISCONNECTED, &["web", "QMP"]),
            (at("silent"), late, &["web", "0.2 s"]),
            (at("stalled"), late, &["web", "0.2 s"]),
        ])
        .await;
        let unavailable = error_name::CPU_UNAVAILABLE;
        let init = ["process 1 cannot be its leader", "none of its threads"];
        self.options(vec![
            (
                ("uuid", OTHER_UUID.into()),
                INVALID,
                &["web", UUID, OTHER_UUID],
            ),
            (("uuid", "x".into()), INVALID, &["uuid", "not a UUID"]),
            (
                ("afinity", "0".into()),
                INVALID,
                &["\"afinity\"", "\"affinity\""],
            ),
            (("qmp", "/x".into()), INVALID, &["\"qmp\"", "unknown"]),
            (("affinity", 3u32.into()), INVALID, &["\"affinity\""]),
            (("affinity", "8191".into()), unavailable, &["8191"]),
            (
                ("scheduler", "fifo".into()),
                INVALID,
                &["\"scheduler\"", "priority"],
            ),
            (
                ("leader", "1".into()),
                INVALID,
                &["\"leader\"", "an integer"],
            ),
            (("leader", 1u32.into()), INVALID, &init),
            (("leader", 0u32.into()), INVALID, &["process 0"]),
        ])
        .await;
        self.descriptors().await;
        self.processes().await;
    }
}

/// Scripted QEMUs and other peers, dbus-daemon.
#[tokio::test]
async fn a_registration_that_fails_says_why_and_leaves_nothing() {
    let world = World::without_polkit().await;
    let taken = world.peer("taken", Model::x86(1, 4));
    let machine = world.machine("taken").await;
    let manager = world.manager().await;
    let at = |name: &str| elsewhere(&world, name);
    let good = Peer::start(&at("good"), Model::x86(1, 4));
    let _ssh = Peer::start_with(&at("ssh"), "SSH-2.0-OpenSSH\r\n");
    let _silent = Peer::start_silent(&at("silent"), Model::x86(1, 4));
    let stalled = Peer::start(&at("stalled"), Model::x86(1, 4));
    stalled.script(|_, call| (call.command == "query-cpus-fast").then(Vec::new));
    fs::write(at("file"), "").unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("dead")).unwrap());
    let qemu = sleeper(command("sleep")).await;
    good.model().threads = Threads::Of(qemu.pid());
    let asked = good.all_calls();
    let mark = world.signals.mark().await;
    let service = world.service.as_ref().expect("it runs");
    // The first looks at a machine open files.
    machine.wait_for("StartedVcpus", 1u32).await;
    let before = service.descriptors();

    let refused = Refused {
        manager: &manager,
        world: &world,
        leader: qemu.pid(),
    };
    refused.all().await;

    assert_eq!(world.names().await, ["taken"]);
    assert_eq!(world.signals.since(mark).await, []);
    assert!(good.all_calls() > asked, "its UUID was asked for");
    assert_eq!(good.count("device_add"), 0);
    let run = world.bus.runtime_directory();
    let count = |directory: &str| fs::read_dir(run.join(directory)).unwrap().count();
    // The service closes them after its answer. It also saves the state of the machine `taken` from time to time.
    let are_released =
        || (count("machines"), count("registrations")) == (1, 0) && service.descriptors() <= before;
    until("the end of descriptors and files", are_released).await;
    // The name is free.
    let options = [("uuid", UUID.into()), ("leader", qemu.pid().into())];
    register(&manager, "web", &refused.at("good"), &options)
        .await
        .unwrap();
    assert_eq!(taken.clients(), 1);
}
