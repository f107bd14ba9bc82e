//! Plays a recording from its start to its end against the service, and holds what the service
//! says to what was recorded.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use vcpud::names::error_name;

use crate::harness::*;

const NAME: &str = "web";

/// A recording that is played.
pub(super) struct Player {
    pub(super) world: World,
    pub(super) machine: Machine,
    pub(super) replay: Replay,
    mark: usize,
    /// The vCPUs and the alias of each entity that is there, by its QOM path.
    there: BTreeMap<String, (Vec<u32>, String)>,
    /// The paths of those that the service asked to leave, and of those that another client removed.
    leaving: BTreeSet<String>,
    waiting: Vec<Waiting>,
    expected: Expected,
    /// All events that were sent.
    pub(super) events: Vec<Sent>,
    /// How many of them told the end of a CPU whose successor was there.
    pub(super) belated: usize,
}

/// A `SetVcpu` that waits for removals.
struct Waiting {
    call: JoinHandle<Result<Outcome, Failure>>,
    outstanding: BTreeSet<String>,
    removed: Vec<u32>,
    refused: Vec<String>,
}

/// The expected signals, in order.
#[derive(Debug, Default, PartialEq)]
struct Expected {
    /// All signals about vCPUs.
    news: Vec<Signal>,
    /// The values of `Vcpus`.
    counts: Vec<Value>,
    /// The values of `State`.
    states: Vec<Value>,
}

/// Plays all of each recording, one after the other. Returns what became of them.
pub(super) async fn play_each(recordings: &[&str]) -> Vec<Player> {
    let mut players = Vec::new();
    for recording in recordings {
        let name = (*recording).to_owned();
        let played = tokio::spawn(async move { Player::play_all(&name).await }).await;
        players.push(played.unwrap_or_else(|_| panic!("{recording} went wrong")));
    }
    players
}

impl Player {
    /// The machine as it was when the recording starts.
    pub(super) async fn start(recording: &str) -> Self {
        Self::start_late(recording, 0).await
    }

    /// The machine as it was when another client had carried out the first `commands`.
    pub(super) async fn start_late(recording: &str, commands: usize) -> Self {
        let mut world = World::without_service().await;
        let replay = Replay::start(&world.socket(NAME), recording);
        for _ in 0..commands {
            replay.by_another_client();
        }
        world.serve().await;
        let machine = world.machine(NAME).await;
        // A call can find the machine before the service announces what it found at its start.
        world.signals.addition_of(NAME, 0).await;
        let mark = world.signals.mark().await;
        let mut player = Self {
            world,
            machine,
            replay,
            mark,
            there: BTreeMap::new(),
            leaving: BTreeSet::new(),
            waiting: Vec::new(),
            expected: Expected::default(),
            events: Vec::new(),
            belated: 0,
        };
        player.there = player.listed().await;
        player.check_presence();
        player
    }

    /// Plays all of the recording `recording`; see [`Player::play`].
    pub(super) async fn play_all(recording: &str) -> Self {
        let mut player = Self::start(recording).await;
        player.play_rest().await;
        player
    }

    /// Plays all that is left.
    pub(super) async fn play_rest(&mut self) {
        while self.play().await {}
        self.finish().await;
    }

    /// Plays what comes next. Whatever the service can be asked for, it is asked for; the rest is
    /// another client's or the guest's doing. Returns whether there was anything.
    pub(super) async fn play(&mut self) -> bool {
        match self.replay.next() {
            Next::End => return false,
            Next::Commands(commands) => self.command(&commands).await,
            Next::Event => {
                let looks = self.looks();
                let sent = self.replay.send_event();
                if leads_to_a_look(&sent) {
                    self.looked_after(looks).await;
                }
                self.expect_event(&sent);
                self.settle().await;
            }
            Next::Detached => {
                let clients = self.replay.peer.clients();
                let gone = self.replay.detach();
                self.machine.wait_for("State", "disconnected").await;
                self.expected.states.push("disconnected".into());
                self.replay.peer.accept();
                self.replay.peer.had_clients(clients + 1).await;
                for path in gone {
                    self.expect_departure(&path, "reconnect");
                }
                self.expect_state();
                self.settle().await;
            }
        }
        self.there = self.listed().await;
        self.check_presence();
        true
    }

    /// Checks that the expected signals came, and no others.
    async fn finish(&mut self) {
        let mut pending: Vec<u32> = self
            .leaving
            .iter()
            .flat_map(|path| self.there[path].0.clone())
            .collect();
        pending.sort_unstable();
        assert_eq!(self.machine.pending().await, pending);
        assert_eq!(self.told().await, self.expected);
        for waiting in self.waiting.drain(..) {
            waiting.call.abort();
        }
    }

    /// All signals since the start.
    pub(super) async fn signals(&self) -> Vec<Signal> {
        self.world.signals.since(self.mark).await
    }

    /// What `property` was said to change to.
    pub(super) async fn changes_of(&self, property: &str) -> Vec<Value> {
        changes_of(&self.signals().await, property)
    }

    async fn told(&self) -> Expected {
        let signals = self.signals().await;
        let is_news = |signal: &&Signal| {
            matches!(
                signal,
                Signal::Added(_) | Signal::Removed(_) | Signal::RemovalFailed(..)
            )
        };
        Expected {
            counts: changes_of(&signals, "Vcpus"),
            states: changes_of(&signals, "State"),
            news: signals.iter().filter(is_news).cloned().collect(),
        }
    }

    /// How often the service has looked at the machine.
    fn looks(&self) -> usize {
        self.replay.peer.count("query-status")
    }

    async fn looked_after(&self, looks: usize) {
        self.replay.peer.asked("query-status", looks + 1).await;
    }

    /// What `ListVcpus` says is there, by QOM path.
    async fn listed(&self) -> BTreeMap<String, (Vec<u32>, String)> {
        let mut there = BTreeMap::<_, (Vec<u32>, String)>::new();
        for row in self.machine.rows().await {
            if row["present"] == true {
                let text = |key| row.get(key).and_then(Value::as_str).unwrap_or_default();
                let entity = there.entry(text("qom-path").to_owned()).or_default();
                entity.0.push(row["id"].as_u64().expect("a number") as u32);
                entity.1 = text("alias").to_owned();
            }
        }
        there
    }

    fn check_presence(&self) {
        let mut paths = self.replay.paths();
        paths.sort();
        let listed: Vec<String> = self.there.keys().cloned().collect();
        assert_eq!(listed, paths);
    }

    /// The commands that were sent at once. They are the service's if it could be asked for them.
    async fn command(&mut self, commands: &[Command]) {
        let rows = self.machine.rows().await;
        let plugs = |command: &Command| {
            command.name == "device_add"
                && command.error.is_none()
                && command.arguments.contains_key("id")
        };
        let unplugs = |command: &Command| {
            let path = command.arguments.get("id").and_then(Value::as_str);
            let path = path.unwrap_or_default();
            command.name == "device_del"
                && !self.leaving.contains(path)
                && rows.iter().any(|row| {
                    row.get("qom-path").is_some_and(|there| there == path)
                        && row["removable"] == true
                })
        };
        if commands.iter().all(plugs) {
            self.grow(commands, &rows).await;
        } else if commands.iter().all(unplugs) {
            self.shrink(commands).await;
        } else {
            let looks = self.looks();
            let sent = self.replay.by_another_client();
            for event in &sent {
                self.expect_event(event);
            }
            if sent.iter().any(leads_to_a_look) {
                self.looked_after(looks).await;
            }
            self.settle().await;
        }
    }

    async fn grow(&mut self, commands: &[Command], rows: &[Dict]) {
        let mut vcpus = Vec::new();
        for command in commands {
            let props = self.replay.props(command);
            let is_meant = |row: &&Dict| {
                props.iter().all(|(key, value)| match key.as_str() {
                    "thread-id" => row["thread-id-in-core"] == *value,
                    key => row[key] == *value,
                })
            };
            let group = rows.iter().filter(is_meant);
            vcpus.extend(group.map(|row| row["id"].as_u64().expect("a number") as u32));
        }
        vcpus.sort_unstable();
        let result = self.machine.set_these(&vcpus, true).await;
        assert_eq!(result, Ok(Outcome::added(vcpus.clone())));
        let width = vcpus.len() / commands.len();
        for group in vcpus.chunks(width) {
            let alias = format!("vcpu{}", group[0]);
            let came = group.iter().map(|id| Vcpu::by_request(NAME, *id, &alias));
            self.expected.news.extend(came.map(Signal::Added));
        }
        let count = self.present_count() + vcpus.len();
        self.expected.counts.push(count.into());
    }

    async fn shrink(&mut self, commands: &[Command]) {
        let paths: BTreeSet<String> = commands
            .iter()
            .map(|command| command.arguments["id"].as_str().expect("an id").to_owned())
            .collect();
        let vcpus: Vec<u32> = paths
            .iter()
            .flat_map(|path| self.there[path].0.clone())
            .collect();
        if let Some(text) = &commands[0].error {
            // QEMU refused at once.
            let failure = self.machine.set_these(&vcpus, false).await.unwrap_err();
            failure.assert(error_name::QMP_FAILED, &[NAME, text]);
            let path = paths.first().expect("one was asked for").clone();
            let told = removal_failed(&self.signals().await);
            let (_, reason) = told.last().expect("a signal came").clone();
            assert!(reason.contains(text), "{reason}");
            self.expect_refusal(&path, &reason, "request");
            return;
        }
        let (requests, there) = (self.replay.peer.count("device_del"), self.replay.paths());
        let machine = self.machine.clone();
        let call = tokio::spawn(async move {
            let patience = ("timeout-usec", 600_000_000u64.into());
            machine.set_these_with(&vcpus, false, &[patience]).await
        });
        let requests = requests + commands.len();
        self.replay.peer.asked("device_del", requests).await;
        self.leaving.extend(paths.iter().cloned());
        self.waiting.push(Waiting {
            call,
            outstanding: paths,
            removed: Vec::new(),
            refused: Vec::new(),
        });
        // Some go before the reply.
        let left = self.replay.paths();
        let (stay, gone): (Vec<String>, Vec<String>) =
            there.into_iter().partition(|path| left.contains(path));
        for path in gone {
            self.expect_departure(&path, "request");
        }
        if stay.iter().any(|path| self.leaving.contains(path)) {
            let pending: BTreeSet<u32> = self
                .leaving
                .iter()
                .flat_map(|path| self.there[path].0.clone())
                .collect();
            let pending: Vec<u32> = pending.into_iter().collect();
            self.machine.wait_for("PendingRemovals", pending).await;
        }
        self.settle().await;
    }

    fn present_count(&self) -> usize {
        self.there.values().map(|(vcpus, _)| vcpus.len()).sum()
    }

    fn expect_event(&mut self, sent: &Sent) {
        let path = sent.data["path"].as_str().unwrap_or_default();
        if sent.name == "DEVICE_DELETED" && self.replay.paths().iter().any(|there| there == path) {
            self.belated += 1;
        }
        self.events.push(sent.clone());
        for path in &sent.gone {
            self.expect_departure(path, "external");
        }
        if let Some(reason) = refusal(sent)
            && let Some(path) = self.subject(sent)
        {
            let cause = match sent.data["info"]["source"] == 0x103 {
                _ if self.leaving.contains(&path) => "request",
                true => "guest",
                false => "external",
            };
            self.expect_refusal(&path, &reason, cause);
        }
        self.expect_state();
    }

    fn expect_state(&mut self) {
        let status: Value = self.replay.status().into();
        let is_new = match self.expected.states.last() {
            Some(last) => *last != status,
            None => status != self.state_at_start(),
        };
        if is_new {
            self.expected.states.push(status);
        }
    }

    fn state_at_start(&self) -> Value {
        json!(self.replay.first_status())
    }

    /// The path of the CPU that an event is about, where it is still there.
    fn subject(&self, sent: &Sent) -> Option<String> {
        let info = sent.data.get("info").unwrap_or(&sent.data);
        let device = info.get("device")?.as_str()?;
        let path = format!("/machine/peripheral/{device}");
        self.there.contains_key(&path).then_some(path)
    }

    /// `cause` is why it went if the service has not asked for it.
    fn expect_departure(&mut self, path: &str, cause: &str) {
        let (vcpus, alias) = self.there.remove(path).expect("it was there");
        let asked = self.leaving.remove(path);
        let cause = match (asked, cause) {
            (true, "external" | "reconnect") => "request",
            (_, cause) => cause,
        };
        let uid = asked.then_some(0);
        let gone = vcpus.iter().map(|id| Vcpu {
            uid,
            ..Vcpu::by_cause(NAME, *id, &alias, cause)
        });
        self.expected.news.extend(gone.map(Signal::Removed));
        self.expected.counts.push(self.present_count().into());
        for waiting in &mut self.waiting {
            if waiting.outstanding.remove(path) {
                waiting.removed.extend(&vcpus);
                waiting.removed.sort_unstable();
            }
        }
    }

    fn expect_refusal(&mut self, path: &str, reason: &str, cause: &str) {
        self.leaving.remove(path);
        let (vcpus, alias) = &self.there[path];
        let uid = (cause == "request").then_some(0);
        let stay = vcpus.iter().map(|id| Vcpu {
            uid,
            ..Vcpu::by_cause(NAME, *id, alias, cause)
        });
        let code = reason_code(reason);
        let failed = |vcpu| Signal::RemovalFailed(vcpu, reason.to_owned(), code.to_owned());
        let failed = stay.map(failed);
        self.expected.news.extend(failed);
        for waiting in &mut self.waiting {
            if waiting.outstanding.remove(path) {
                waiting.refused.push(reason.to_owned());
            }
        }
    }

    /// Waits until all signals that are expected so far came, and callers are answered.
    async fn settle(&mut self) {
        let (news, states) = (self.expected.news.len(), self.expected.states.len());
        let what = format!("{news} signals about vCPUs and {states} states");
        let told = self.world.signals.wait(&what, self.mark, |told| {
            let of_vcpus = added(told).len() + removed(told).len() + removal_failed(told).len();
            of_vcpus >= news && changes_of(told, "State").len() >= states
        });
        drop(told.await);
        let is_over = |waiting: &Waiting| waiting.outstanding.is_empty();
        let (over, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(is_over);
        self.waiting = waiting;
        for Waiting {
            call,
            removed,
            refused,
            ..
        } in over
        {
            let outcome = within("the answer to SetVcpu", call).await;
            let outcome = outcome.expect("the call does not panic");
            if refused.is_empty() {
                assert_eq!(outcome, Ok(Outcome::removed(removed)));
            } else {
                let reasons: Vec<&str> = refused.iter().map(String::as_str).collect();
                outcome
                    .unwrap_err()
                    .assert(error_name::GUEST_REFUSED, &reasons);
            }
        }
    }
}

/// Whether the service has to look at the machine after an event.
fn leads_to_a_look(sent: &Sent) -> bool {
    !matches!(sent.name.as_str(), "MIGRATION_PASS" | "BALLOON_CHANGE")
}

/// Why the guest keeps a CPU, in the words of the service, where an event says that it does.
fn refusal(sent: &Sent) -> Option<String> {
    if sent.name == "DEVICE_UNPLUG_GUEST_ERROR" {
        return Some("the guest refused to give up the CPU".to_owned());
    }
    let info = sent.data.get("info")?;
    if sent.name != "ACPI_DEVICE_OST" || (info["source"] != 3 && info["source"] != 0x103) {
        return None;
    }
    Some(match info["status"].as_u64().expect("a number") {
        0 | 0x84 => return None,
        0x80 => "the guest does not support removing this CPU".to_owned(),
        0x81 => "the CPU is in use by the guest".to_owned(),
        0x82 => "the guest is busy with the CPU".to_owned(),
        0x83 => "another device of the guest depends on the CPU".to_owned(),
        other => format!("the guest failed to remove the CPU (_OST status {other:#x})"),
    })
}

/// The code in `VcpuRemovalFailed` for a reason.
fn reason_code(reason: &str) -> &'static str {
    match reason {
        "the guest does not support removing this CPU" => "not-supported",
        "the CPU is in use by the guest" => "in-use",
        "the guest is busy with the CPU" => "busy",
        text if text.contains("unplug request for not supported device type") => "no-guest",
        text if text.contains("while migrating") => "migrating",
        text if text.starts_with("the guest ") => "guest-failed",
        _ => "qemu-refused",
    }
}
