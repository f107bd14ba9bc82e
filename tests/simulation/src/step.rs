//! The steps of a story.

use std::time::Duration;

use vcpud::ids::{Uid, VcpuId};
use vcpud::inventory::Target;
use vcpud::machine::Wait;

/// The number of bytes that define a step.
const STEP: usize = 4;
/// The number of slots of a machine is at most this.
const MAX_SLOTS: u8 = 6;

/// A story: how it begins, and what happens.
#[derive(Clone, Debug)]
pub struct Story {
    /// The begin.
    pub setup: Setup,
    /// What happens.
    pub steps: Vec<Step>,
}

/// How a story begins.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The number of slots of QEMU.
    pub slots: u32,
    /// The number of vCPUs of each slot.
    pub width: u32,
    /// The number of slots that are present at first.
    pub plugged: u32,
    /// Whether a call registered the machine.
    pub is_registered: bool,
    /// Whether there is a placer.
    pub has_unit: bool,
    /// Whether the kernel counts the exits of vCPUs.
    pub counts_exits: bool,
    /// Whether the guest is paused at first.
    pub is_paused: bool,
}

/// A part of the host, QEMU or the bus that can stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// QEMU owes its replies.
    Qemu,
    /// A write of the state file does not end.
    Disk,
    /// The placer does not end.
    Placer,
    /// The search for the unit does not end.
    Units,
    /// The bus takes no message.
    Bus,
}

/// Something that fails the next time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A write of the state file.
    Save,
    /// A write of the state file, because the state is too large.
    TooLarge,
    /// The search for the unit.
    Units,
    /// A placement pass, for all vCPUs.
    Place,
    /// The check of a tuning.
    Check,
    /// The enforcement of a tuning.
    Change,
    /// The restoration of guest CPUs.
    Restore,
    /// An attempt to connect.
    Connect,
    /// QEMU's first answer.
    Open,
    /// A `device_add`.
    Add,
    /// A `device_del`.
    Remove,
    /// The read of the state file.
    Load,
}

/// One thing that happens. Numbers select among what exists.
#[derive(Clone, Debug)]
pub enum Step {
    /// A caller changes the vCPUs.
    SetVcpus(Target, Wait, Uid),
    /// A caller changes the tuning.
    Tune(u8),
    /// The configuration changes.
    Configure(u8),
    /// A caller applies the configuration.
    ApplyConfig,
    /// A caller takes the guest CPU of a vCPU offline.
    Offline(u8),
    /// The call that took guest CPUs offline ends; the flag says whether it restored them.
    Release(bool),
    /// The guest gives up a CPU that it was asked for.
    GiveUp(u8),
    /// The guest refuses to.
    Refuse(u8),
    /// The guest ejects any CPU.
    Eject(u8),
    /// The guest is reset, which completes pending removals. The flag says whether the guest then starts all
    /// CPUs.
    Reset(bool),
    /// The guest starts a CPU.
    Start(u8),
    /// The guest is paused, or continues.
    Pause(bool),
    /// The guest agent reports a CPU as online.
    Online(u8),
    /// A caller waits until the guest has started vCPUs.
    AwaitStart(u8, Duration),
    /// Another client plugs a CPU.
    Plug(u8),
    /// QEMU sends an event that means nothing.
    Stale(u8),
    /// An unprivileged guest causes many events.
    Flood(u8),
    /// QEMU enters or leaves a state that it leaves by itself.
    Migrate(bool),
    /// The next job of this kind fails.
    Fail(Fault),
    /// A part stalls, or goes on.
    Stall(Part, bool),
    /// One of the things happens that can happen now.
    Go(u8),
    /// Up to this number of things happen, the first one first.
    Run(u8),
    /// Time passes.
    Pass(Duration),
    /// The connection ends: with a breach of the protocol, or after QEMU received what it was sent.
    HangUp {
        /// Whether QEMU broke the protocol.
        is_breach: bool,
        /// Whether QEMU received the commands that it owes replies for.
        is_received: bool,
    },
    /// Something listens on the socket, or nothing does.
    Listen(bool),
    /// The service restarts, after a crash.
    Restart {
        /// Whether the messages to the bus were sent before.
        is_sent: bool,
        /// Whether the connection outlives the service.
        is_kept: bool,
        /// Whether QEMU received the commands that it owes replies for.
        is_received: bool,
    },
    /// The QEMU process exits.
    Exit,
    /// A QEMU process starts, unless one runs.
    Launch,
    /// The machine is forgotten.
    Stop,
}

impl Story {
    /// Returns the story that `bytes` define.
    pub fn new(bytes: &[u8]) -> Self {
        let (chunks, _) = bytes.as_chunks::<STEP>();
        let (setup, steps) = chunks.split_first().unwrap_or((&[0; STEP], &[]));
        Self {
            setup: Setup::new(*setup),
            steps: steps.iter().map(|bytes| Step::new(*bytes)).collect(),
        }
    }
}

impl Setup {
    /// Returns the begin that `bytes` define.
    pub fn new([slots, width, plugged, flags]: [u8; STEP]) -> Self {
        let slots = u32::from(slots % MAX_SLOTS) + 1;
        Self {
            slots,
            width: [1, 1, 1, 2][usize::from(width % 4)],
            plugged: u32::from(plugged) % slots + 1,
            is_registered: flags & 3 == 3,
            has_unit: flags & 12 != 12,
            counts_exits: flags & 16 == 0,
            is_paused: flags & 96 == 96,
        }
    }
}

impl Step {
    /// Returns the step that `bytes` define.
    pub fn new([kind, a, b, c]: [u8; STEP]) -> Self {
        let flag = a & 1 == 1;
        match kind % 104 {
            0..=11 => Self::SetVcpus(target(a), wait(b), Uid(u32::from(c % 3) + 7)),
            12..=13 => Self::Tune(a),
            14 => Self::Configure(a),
            15 => Self::ApplyConfig,
            16..=17 => Self::Offline(a),
            18 => Self::Release(flag),
            19..=25 => Self::GiveUp(a),
            26..=29 => Self::Refuse(a),
            30..=31 => Self::Eject(a),
            32 => Self::Reset(flag),
            33..=35 => Self::Plug(a),
            36 => Self::Stale(a),
            37 => Self::Flood(a),
            38 => Self::Migrate(flag),
            39..=43 => Self::Fail(FAULTS[usize::from(a) % FAULTS.len()]),
            44..=46 => Self::Stall(PARTS[usize::from(a) % PARTS.len()], b % 3 == 0),
            47..=65 => Self::Go(a),
            66..=78 => Self::Run(a % 16 + 1),
            79..=88 => Self::Pass(duration(a)),
            89..=90 => Self::HangUp {
                is_breach: a % 4 == 3,
                is_received: b & 1 == 1,
            },
            91 => Self::Listen(a % 3 != 0),
            92..=93 => Self::Restart {
                is_sent: flag,
                is_kept: b & 1 == 1,
                is_received: c & 1 == 1,
            },
            94 => [Self::Exit, Self::Launch][usize::from(flag)].clone(),
            95 => [Self::Launch, Self::Stop][usize::from(a % 8 == 0)].clone(),
            96..=99 => Self::Start(a),
            100 => Self::Pause(flag),
            101 => Self::Online(a),
            _ => Self::AwaitStart(a, duration(b)),
        }
    }
}

const FAULTS: [Fault; 12] = [
    Fault::Save,
    Fault::TooLarge,
    Fault::Units,
    Fault::Place,
    Fault::Check,
    Fault::Change,
    Fault::Restore,
    Fault::Connect,
    Fault::Open,
    Fault::Add,
    Fault::Remove,
    Fault::Load,
];

const PARTS: [Part; 5] = [Part::Qemu, Part::Disk, Part::Placer, Part::Units, Part::Bus];

fn target(byte: u8) -> Target {
    let number = u32::from(byte / 4);
    match byte % 4 {
        0 | 1 => Target::Count(number % 14),
        2 => Target::Present([VcpuId(number % 12)].into()),
        _ => Target::Absent([VcpuId(number % 12)].into()),
    }
}

fn wait(byte: u8) -> Wait {
    match byte % 6 {
        0 => Wait::No,
        1 => Wait::UpTo(None),
        2 => Wait::UpTo(Some(Duration::ZERO)),
        3 => Wait::UpTo(Some(Duration::from_millis(1_100))),
        4 => Wait::UpTo(Some(Duration::from_secs(3))),
        _ => Wait::UpTo(Some(Duration::from_secs(20))),
    }
}

fn duration(byte: u8) -> Duration {
    let milliseconds = [
        0, 1, 10, 60, 255, 500, 1_000, 1_500, 2_100, 5_100, 11_000, 70_000,
    ];
    Duration::from_millis(milliseconds[usize::from(byte) % milliseconds.len()])
}
