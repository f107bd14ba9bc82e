//! Tests of the settings in files, and of the errors in them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::placement::{PlacementMode, Scheduler};

const ALL: &str = r#"
removal-timeout = "1min 30s"
qmp-timeout = "500ms"
placement = "scope"
slice = "vms-gold.slice"
affinity = "0-3,8"
memory-nodes = "0"
bandwidth-period = "50ms"
bandwidth-quota = 20000
scheduler = "fifo"
priority = 5
cache = [{ vcpus = "0-1", schemata = "L3:0=f" }, { vcpus = "3", schemata = "L3:0=1" }]
"#;

fn errors(text: &str) -> Vec<String> {
    let shown = |m: &ConfigError| format!("{}: {}: {}", m.location.line, m.key, m.text);
    let (_, _, errors) = parse_service(text);
    errors.iter().map(shown).collect()
}

fn machine_errors(text: &str) -> Vec<String> {
    let shown = |m: &ConfigError| format!("{}: {}: {}", m.location.line, m.key, m.text);
    let errors = parse_machine(text).expect_err(text);
    errors.iter().map(shown).collect()
}

#[test]
fn every_key_is_read() {
    let own = "idle-exit = \"2min\"\ndefaults-for-users = true";
    let text = format!("[service]\n{own}\n[defaults]\n{ALL}");
    let (service, settings, errors) = parse_service(&text);
    assert_eq!(errors, []);
    assert_eq!(service.idle_exit, Duration::from_secs(120));
    assert!(service.defaults_for_users);
    let limits = settings.limits();
    assert_eq!(limits.removal_timeout, Duration::from_secs(90));
    assert_eq!(limits.qmp_timeout, Duration::from_millis(500));
    assert_eq!(settings.placement, Some(PlacementMode::Scope));
    assert_eq!(settings.slice(), "vms-gold.slice");
    let tuning = settings.tuning();
    assert_eq!(tuning.affinity.unwrap().to_string(), "0-3,8");
    assert_eq!(tuning.memory_nodes.unwrap().to_string(), "0");
    assert_eq!(tuning.bandwidth.unwrap().to_string(), "20000 50000");
    assert_eq!(tuning.scheduler, Some(Scheduler::Fifo(5)));
    assert_eq!(tuning.cache.keys().copied().collect::<Vec<_>>(), [0, 1, 3]);

    // A machine's file has the same at its top, and the machine's own.
    let own = "qmp = \"unix:/run/web.sock\"\nguest-agent = \"/run/web.agent\"\nuuid = \"C0FFEE00-1234-4abc-8def-0123456789ab\"";
    let machine = parse_machine(&format!("{own}\n{ALL}")).unwrap();
    assert_eq!(machine.settings, settings);
    assert_eq!(machine.qmp, Some("/run/web.sock".into()));
    assert_eq!(machine.guest_agent, Some("/run/web.agent".into()));
    let uuid = "c0ffee00-1234-4abc-8def-0123456789ab";
    assert_eq!(machine.uuid.as_ref().map(Uuid::as_str), Some(uuid));
    let json = serde_json::to_string(&machine).unwrap();
    assert_eq!(
        serde_json::from_str::<MachineSettings>(&json).unwrap(),
        machine
    );
}

#[test]
fn nothing_said_is_the_default() {
    let (service, settings, errors) = parse_service("");
    assert_eq!(errors, []);
    assert_eq!(service.idle_exit, Duration::from_secs(30));
    assert!(!service.defaults_for_users);
    assert_eq!(settings, Settings::default());
    assert_eq!(settings.limits(), Limits::default());
    assert_eq!(settings.slice(), "machine.slice");
    assert_eq!(settings.tuning(), Default::default());
    assert_eq!(parse_machine(""), Ok(MachineSettings::default()));
}

#[test]
fn describes_every_key_that_is_set() {
    let own = "guest-agent = '/run/agent'\nuuid = 'C0FFEE00-1234-4abc-8def-0123456789ab'";
    let machine = parse_machine(&format!("{own}\n{ALL}")).unwrap();
    let described: Vec<String> = machine
        .describe()
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let expected = [
        "removal-timeout=90000000",
        "qmp-timeout=500000",
        "placement=scope",
        "slice=vms-gold.slice",
        "affinity=0-3,8",
        "memory-nodes=0",
        "bandwidth-period=50000",
        "bandwidth-quota=20000",
        "scheduler=fifo",
        "priority=5",
        "cache=0=L3:0=f 1=L3:0=f 3=L3:0=1",
        "guest-agent=/run/agent",
        "uuid=c0ffee00-1234-4abc-8def-0123456789ab",
    ];
    assert_eq!(described, expected);
    assert_eq!(MachineSettings::default().describe(), []);
}

#[test]
fn what_is_said_of_a_machine_goes_before_the_defaults() {
    let (_, defaults, _) =
        parse_service("[defaults]\naffinity = '0'\nbandwidth-period = '10ms'\nslice = 'a.slice'");
    let machine = parse_machine("affinity = '1'\nbandwidth-quota = '5ms'").unwrap();
    let settings = machine.settings.over(&defaults);
    assert_eq!(settings.affinity, Some("1".parse().unwrap()));
    assert_eq!(settings.slice(), "a.slice");
    let bandwidth = settings.tuning().bandwidth.unwrap();
    assert_eq!(bandwidth.to_string(), "5000 10000");
    for none in ["'-1'", "-1"] {
        let machine = parse_machine(&format!("bandwidth-quota = {none}")).unwrap();
        let bandwidth = machine.settings.over(&defaults).tuning().bandwidth;
        assert_eq!(bandwidth.unwrap().quota(), None);
    }
}

#[test]
fn an_error_names_its_line_and_key_and_suggests_a_correction() {
    assert_eq!(
        errors("# one\n[defaults]\naffinty = \"0\"\nqmp-timeout = 5\n\n[sevrice]\nx = 1\n"),
        [
            "3: affinty: unknown key; did you mean \"affinity\"?",
            "4: qmp-timeout: an integer is not a time such as \"5s\" or \"1min 30s\"",
            "6: sevrice: unknown table; did you mean \"service\"?",
        ]
    );
    assert_eq!(
        errors("affinity = \"0\"\nidle-exit = \"5s\"\n[service]\nidle-exit = \"5 parsecs\""),
        [
            "1: affinity: it belongs below [defaults]",
            "2: idle-exit: it belongs below [service]",
            "4: idle-exit: \"5 parsecs\" is not a time such as \"5s\" or \"1min 30s\"",
        ]
    );
    for (text, error) in [
        (
            "qmp-timeout = '1ms'",
            "qmp-timeout: \"1ms\" is not between 100ms and 7days",
        ),
        ("affinity = ''", "affinity: the list is empty"),
        (
            "affinity = '3-1'",
            "affinity: the range \"3-1\" runs backwards",
        ),
        (
            "affinity = 3",
            "affinity: an integer where there must be a text",
        ),
        (
            "memory-nodes = 'x'",
            "memory-nodes: \"x\" is neither a memory node",
        ),
        (
            "placement = 'here'",
            "placement: \"here\" is not a placement; the placements are auto",
        ),
        (
            "slice = '../a.slice'",
            "slice: \"../a.slice\" is not a slice of systemd",
        ),
        (
            "bandwidth-period = '1us'",
            "bandwidth-period: a period of 1 µs is not between",
        ),
        (
            "bandwidth-quota = -2",
            "bandwidth-quota: a quota of -2 µs is neither -1",
        ),
        (
            "bandwidth-period = '1 parsec'",
            "bandwidth-period: \"1 parsec\" is not a time",
        ),
        (
            "bandwidth-quota = true",
            "bandwidth-quota: true or false is not a time",
        ),
        (
            "scheduler = 'fast'",
            "scheduler: \"fast\" is not a scheduler",
        ),
        (
            "scheduler = 'fifo'",
            "scheduler: fifo takes a priority from 1 to 99",
        ),
        (
            "scheduler = 'rr'\\npriority = 100",
            "priority: rr takes a priority from 1 to 99",
        ),
        ("priority = 1", "priority: it requires the key"),
        ("cache = 'L3:0=f'", "cache: it must be a list such as"),
        (
            "cache = [{ vcpus = '0' }]",
            "cache: \"schemata\" is missing",
        ),
        (
            "cache = [{ vcpu = '0', schemata = 'L3:0=f' }]",
            "cache: vcpu: unknown key; did you mean \"vcpus\"?",
        ),
        (
            "cache = [{ vcpus = '0', schemata = 'L3' }]",
            "cache: schemata: \"L3\" is not a line",
        ),
        (
            "qmp = 'web.sock'",
            "qmp: \"web.sock\" is not the address of a socket",
        ),
        (
            "qmp = '/run/./web.sock'",
            "qmp: \"/run/./web.sock\" contains the component",
        ),
        (
            "guest-agent = '/run/../web.sock'",
            "guest-agent: \"/run/../web.sock\" contains the component",
        ),
        ("uuid = 'web'", "uuid: \"web\" is not a UUID"),
        (
            "removal_timeout = '5s'",
            "removal_timeout: unknown key; did you mean \"removal-timeout\"?",
        ),
    ] {
        let found = machine_errors(&text.replace("\\n", "\n"));
        assert!(
            found.len() == 1 && found[0].contains(error),
            "{text}: {found:?}"
        );
    }
    let twice =
        "cache = [\n{ vcpus = '0-2', schemata = 'L3:0=f' },\n{ vcpus = '2', schemata = 'L3:0=f' }]";
    assert_eq!(
        machine_errors(twice),
        ["3: cache: vcpus: vCPU 2 is in more than one list"]
    );
}

#[test]
fn what_is_no_toml_is_told_with_its_line() {
    let found = machine_errors("affinity = '0'\n\nslice = machine.slice\n");
    assert!(found[0].starts_with("3: "), "{found:?}");
    let found = machine_errors("affinity = '0'\naffinity = '1'\n");
    assert!(
        found[0].starts_with("2: ") && found[0].contains("duplicate"),
        "{found:?}"
    );
}

#[test]
fn syntax_errors_have_their_line() {
    let lines: Vec<String> = errors("a = \"x\nb\n\nc\n")
        .iter()
        .map(|error| error.split(':').next().unwrap().to_owned())
        .collect();
    assert_eq!(lines, ["1", "2", "4"]);
}

#[test]
fn settings_beside_an_error_apply_to_the_service() {
    let (_, settings, errors) = parse_service("[defaults]\naffinty = '0'\nslice = 'a.slice'");
    assert_eq!(errors.len(), 1);
    assert_eq!(settings.slice(), "a.slice");
}

fn machine(text: &str) -> MachineFile {
    MachineFile {
        path: "web.toml".into(),
        settings: parse_machine(text).ok(),
    }
}

fn configuration(service: &str, web: &str) -> Configuration {
    let (service, defaults, errors) = parse_service(service);
    Configuration {
        service,
        defaults,
        has_service_errors: !errors.is_empty(),
        machines: [("web".parse().unwrap(), machine(web))].into(),
        errors: Vec::new(),
    }
}

#[test]
fn previous_settings_stay_if_a_file_has_an_error() {
    let previous = configuration("[defaults]\nqmp-timeout = '1s'", "affinity = '1'");
    let is = |service, web| configuration(service, web).replacing(&previous);
    let new = is("[defaults]\nqmp-timeout = '2s'", "affinity = '2'");
    assert_eq!(new.defaults.limits().qmp_timeout, Duration::from_secs(2));
    assert_ne!(new.machines, previous.machines);
    let bad = is("[defaults]\nqmp-timeuot = '2s'", "affinty = '2'");
    assert_eq!(bad.defaults, previous.defaults);
    assert_eq!(bad.machines, previous.machines);
    // The first configuration has no previous settings.
    let first = configuration("[defaults]\nx = 1\nqmp-timeout = '2s'", "affinty = '2'");
    let first = first.replacing(&Configuration::default());
    assert_eq!(first.machines["web"].settings, None);
}

#[test]
fn a_registration_takes_precedence_over_the_file_and_the_defaults() {
    let web: MachineName = "web".parse().unwrap();
    let own = Settings {
        slice: Some("own.slice".to_owned()),
        ..Settings::default()
    };
    let service = "[defaults]\nqmp-timeout = '2s'\naffinity = '1'\nmemory-nodes = '0'";
    let all = configuration(service, "affinity = '2'\nslice = 'file.slice'");
    let affinity = |settings: &Settings| settings.affinity.as_ref().map(ToString::to_string);

    let settings = all.settings_of(&web, None);
    assert_eq!(affinity(&settings).as_deref(), Some("2"));
    assert_eq!(settings.slice(), "file.slice");
    assert!(settings.memory_nodes.is_some());
    let settings = all.settings_of(&web, Some((Uid::ROOT, &own)));
    assert_eq!(affinity(&settings).as_deref(), Some("2"));
    assert_eq!(settings.slice(), "own.slice");
    assert!(settings.memory_nodes.is_some());
}

#[test]
fn a_registration_by_a_user_gets_only_the_time_limits_of_the_defaults() {
    let db: MachineName = "db".parse().unwrap();
    let none = Settings::default();
    let service = "[defaults]\nqmp-timeout = '2s'\naffinity = '1'\nplacement = 'scope'";
    let settings = configuration(service, "").settings_of(&db, Some((Uid(1000), &none)));
    assert_eq!(settings.limits().qmp_timeout, Duration::from_secs(2));
    assert_eq!(settings.affinity, None);
    assert_eq!(settings.placement, Some(PlacementMode::None));
    assert_eq!(settings.slice(), "user-1000.slice");
    let root = configuration(service, "").settings_of(&db, Some((Uid::ROOT, &none)));
    assert_eq!(root.placement, Some(PlacementMode::Scope));
    let service = format!("[service]\ndefaults-for-users = true\n{service}");
    let settings = configuration(&service, "").settings_of(&db, Some((Uid(1000), &none)));
    assert_eq!(settings.placement, Some(PlacementMode::Scope));
}

/// A directory of files with these texts.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for sub in ["vcpud.toml.d", "machines.d"] {
        fs::create_dir(directory.path().join(sub)).unwrap();
    }
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn errors_in(directory: &tempfile::TempDir) -> Vec<String> {
    let errors = Configuration::read(directory.path()).errors;
    let root = format!("{}/", directory.path().display());
    let shown = |error: &ConfigError| error.to_string().replace(&root, "");
    errors.iter().map(shown).collect()
}

#[test]
fn later_files_take_precedence() {
    let directory = directory(&[
        (
            "vcpud.toml",
            "[defaults]\nslice = 'a.slice'\naffinity = '0'",
        ),
        (
            "vcpud.toml.d/10-b.toml",
            "[defaults]\nslice = 'b.slice'\nplacement = 'none'",
        ),
        ("vcpud.toml.d/20-c.toml", "[defaults]\nslice = 'c.slice'"),
        ("vcpud.toml.d/.30-d.toml", "nonsense"),
        ("vcpud.toml.d/30-d.toml~", "nonsense"),
        ("machines.d/web.toml", "qmp = '/run/web.sock'"),
    ]);
    let configuration = Configuration::read(directory.path());
    assert_eq!(configuration.errors, []);
    assert_eq!(configuration.defaults.slice(), "c.slice");
    assert_eq!(configuration.defaults.placement, Some(PlacementMode::None));
    assert_eq!(configuration.defaults.affinity, Some("0".parse().unwrap()));
    assert_eq!(configuration.machines.len(), 1);
    let empty = tempfile::tempdir().unwrap();
    for nothing in [empty.path().to_owned(), empty.path().join("not-there")] {
        assert_eq!(Configuration::read(&nothing), Configuration::default());
    }
}

#[test]
fn a_bad_file_disables_one_machine() {
    let directory = directory(&[
        ("machines.d/web.toml", "qmp = '/run/web.sock'\n\ncolour = 1"),
        ("machines.d/db.toml", "qmp = '/run/db.sock'"),
        ("machines.d/-x.toml", ""),
    ]);
    let configuration = Configuration::read(directory.path());
    assert!(!configuration.has_service_errors);
    assert_eq!(configuration.machines["web"].settings, None);
    assert!(configuration.machines["db"].settings.is_some());
    let found = errors_in(&directory);
    assert!(
        found[0].starts_with("machines.d/-x.toml: \"-x\" is not a machine name"),
        "{found:?}"
    );
    assert!(
        found[1].starts_with("machines.d/web.toml:3: colour: unknown key"),
        "{found:?}"
    );
}

#[test]
fn refuses_what_all_users_can_write_to() {
    let directory = directory(&[
        ("vcpud.toml", "[defaults]\nslice = 'a.slice'"),
        ("machines.d/big.toml", &"#".repeat(300_000)),
        ("machines.d/text.toml", ""),
    ]);
    let path = |name: &str| directory.path().join(name);
    let mode = |name: &str, mode| {
        fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    fs::write(path("machines.d/text.toml"), [0xff]).unwrap();
    fs::create_dir(path("machines.d/directory.toml")).unwrap();
    // A link that the administrator made is a file like any other.
    symlink(path("vcpud.toml"), path("vcpud.toml.d/link.toml")).unwrap();
    symlink("/dev/zero", path("machines.d/zero.toml")).unwrap();
    mode("vcpud.toml", 0o666);
    assert_eq!(
        errors_in(&directory),
        [
            "machines.d/big.toml: is larger than 262144 bytes",
            "machines.d/directory.toml: is not a file",
            "machines.d/text.toml: is not UTF-8",
            "machines.d/zero.toml: is not a file",
            "vcpud.toml: is not used: all users can write to it (chmod o-w)",
            "vcpud.toml.d/link.toml: is not used: all users can write to it (chmod o-w)",
        ]
    );
    mode("machines.d", 0o777);
    assert_eq!(errors_in(&directory).len(), 3);
    mode("", 0o777);
    assert_eq!(errors_in(&directory).len(), 1);
}

#[test]
fn refuses_what_a_group_other_than_roots_can_write_to() {
    let directory = directory(&[
        ("vcpud.toml", "[defaults]\nslice = 'a.slice'"),
        ("machines.d/web.toml", ""),
    ]);
    let path = |name: &str| directory.path().join(name);
    let share = |name: &str, group| {
        chown(path(name), None, Some(group)).expect("the tests run as root");
        let mode = fs::metadata(path(name)).unwrap().permissions().mode();
        fs::set_permissions(path(name), fs::Permissions::from_mode(mode | 0o020)).unwrap();
    };
    share("vcpud.toml", 0);
    share("machines.d", 0);
    assert_eq!(errors_in(&directory), [] as [&str; 0]);
    share("vcpud.toml", 100);
    share("machines.d", 100);
    let text = "is not used: group 100 can write to it (chmod g-w)";
    let expected = [format!("machines.d: {text}"), format!("vcpud.toml: {text}")];
    assert_eq!(errors_in(&directory), expected);
}

proptest! {
    #[test]
    fn no_text_is_too_strange(text in ".{0,200}") {
        let (_, _, errors) = parse_service(&text);
        let lines = 1 + text.matches('\n').count();
        prop_assert!(errors.iter().all(|error| error.location.line <= lines));
        let _ = parse_machine(&text);
    }

    #[test]
    fn no_line_is_too_strange(key in "[a-z-]{1,20}", value in r#"(-?[0-9]{1,25}|"[^"\\\n]{0,30}"|\[.{0,20}\])"#) {
        for error in parse_machine(&format!("\n{key} = {value}")).err().into_iter().flatten() {
            prop_assert!(error.location.line <= 2);
            prop_assert!(!error.text.is_empty());
        }
    }

    #[test]
    fn what_is_set_is_what_counts(
        affinity in proptest::option::of(0u32..64),
        period in proptest::option::of(1_000u64..1_000_000),
        quota in proptest::option::of(1_000i64..1_000_000),
    ) {
        let mut text = String::new();
        text.extend(affinity.map(|cpu| format!("affinity = '{cpu}'\n")));
        text.extend(period.map(|usec| format!("bandwidth-period = '{usec}'\n")));
        text.extend(quota.map(|usec| format!("bandwidth-quota = '{usec}us'\n")));
        let tuning = parse_machine(&text).unwrap().settings.tuning();
        prop_assert_eq!(tuning.affinity.map(|cpus| cpus.to_string()), affinity.map(|cpu| cpu.to_string()));
        prop_assert_eq!(tuning.bandwidth.is_some(), period.is_some() || quota.is_some());
        let bandwidth = tuning.bandwidth.unwrap_or(crate::placement::Bandwidth::UNLIMITED);
        prop_assert_eq!(bandwidth.period(), period.unwrap_or(100_000));
        prop_assert_eq!(bandwidth.signed_quota(), quota.unwrap_or(-1));
    }
}
