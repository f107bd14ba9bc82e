//! The options of `SetVcpus`.

use vcpud::names::error_name;
use zbus::Variant;

use crate::harness::*;

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn an_option_that_is_not_known_or_of_another_type_is_an_error() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let cases: [(&str, Variant<'_>, &str); 7] = [
        ("asynk", true.into(), "unknown option \"asynk\""),
        ("", 1u32.into(), "unknown option"),
        ("async", 1u32.into(), "of type b"),
        ("timeout-usec", (-5i32).into(), "out of range"),
        ("timeout-usec", "5s".into(), "an integer"),
        ("until", true.into(), "of type s"),
        ("until", "online".into(), "\"present\" or \"started\""),
    ];
    for (key, value, text) in cases {
        let failure = machine.set_with(2, &[(key, value)]).await.unwrap_err();
        failure.assert(error_name::INVALID_ARGS, &[text]);
    }
    let both = [("async", true.into()), ("until", "started".into())];
    let failure = machine.set_with(2, &both).await.unwrap_err();
    failure.assert(error_name::INVALID_ARGS, &["omit one of them"]);
    assert_eq!(peer.count("device_add"), 0);
    assert_eq!(machine.vcpus().await.unwrap(), 1);

    let options = [
        ("async", false.into()),
        ("timeout-usec", u64::MAX.into()),
        ("until", "started".into()),
    ];
    let result = machine.set_with(2, &options).await;
    assert_eq!(result, Ok(Outcome::added([1])));
    let result = machine.set_with(1, &options).await;
    assert_eq!(result, Ok(Outcome::removed([1])));
    // The types that languages give to small integers.
    let numbers: [Variant<'_>; 4] = [
        5_000_000i32.into(),
        5_000_000u32.into(),
        5_000_000i64.into(),
        255u8.into(),
    ];
    for number in numbers {
        let result = machine.set_with(1, &[("timeout-usec", number)]).await;
        assert_eq!(result, Ok(Outcome::default()));
    }
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_list_has_a_limit() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(1, 4));
    let machine = world.machine("web").await;
    let asked = peer.all_calls();
    for (length, texts) in [
        (20_000, ["20000 vCPUs", "16384"]),
        (100_000, ["too long", "128 KiB"]),
    ] {
        let endless: Vec<u32> = (0..length).collect();
        let failure = machine.set_these(&endless, true).await.unwrap_err();
        failure.assert(error_name::LIMIT_EXCEEDED, &texts);
    }
    assert_eq!(peer.count("device_add"), 0);
    assert!(peer.all_calls() - asked < 10, "nothing is planned for it");
}

/// Scripted QEMU, dbus-daemon.
#[tokio::test]
async fn a_caller_can_require_the_number_that_it_knows() {
    let world = World::without_polkit().await;
    let peer = world.peer("web", Model::x86(2, 4));
    let machine = world.machine("web").await;
    let failure = machine.set_with(3, &[("current", 1_u64.into())]).await;
    let text = [
        "2 vCPUs present, and not 1 as the option \"current\" requires",
        "nothing was changed",
    ];
    failure.unwrap_err().assert(error_name::BUSY, &text);
    assert_eq!(peer.count("device_add"), 0);
    let set = machine.set_with(3, &[("current", 2_i32.into())]).await;
    assert_eq!(set, Ok(Outcome::added([2])));
}
