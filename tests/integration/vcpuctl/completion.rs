//! The completion of command lines, by shells.

use std::path::Path;

use crate::harness::*;

/// Returns the words that a shell offers for the last word of a command line. It finds vcpuctl in `PATH`.
async fn offered(world: &World, shell: &str, words: &[&str]) -> Vec<String> {
    let line = format!("vcpuctl {}", words.join(" "));
    let script = match shell {
        "bash" => {
            let load = "source <(vcpuctl completions bash)";
            let (all, last) = (words.len(), words[words.len() - 1]);
            let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
            let words = format!(
                "COMP_WORDS=(vcpuctl {}); COMP_CWORD={all}",
                quoted.join(" ")
            );
            let call = format!("_clap_complete_vcpuctl vcpuctl '{last}' 2>/dev/null");
            format!("{load}; {words}; {call}; printf '%s\\n' \"${{COMPREPLY[@]}}\"")
        }
        _ => format!("vcpuctl completions fish | source; complete --do-complete '{line}'"),
    };
    let directory = Path::new(env!("CARGO_BIN_EXE_vcpuctl")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut run = command(shell);
    run.args(["-c", &script]);
    run.env("PATH", format!("{}:{path}", directory.display()));
    run.env("HOME", world.bus.directory());
    let (status, printed, complaint) = world.run(&mut run).await;
    assert_eq!((status, complaint.as_str()), (0, ""), "{shell}: {line}");
    let value = |line: &str| {
        line.split('\t')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    printed.lines().map(value).collect()
}

/// Scripted QEMUs, dbus-daemon, vcpuctl, bash and fish.
#[tokio::test]
async fn shells_complete_names_and_vcpus() {
    let mut world = World::without_polkit().await;
    let _web = world.peer("web", Model::x86(2, 4));
    let _worker = world.peer("worker", Model::x86(1, 2));
    world.machine("web").await;
    world.machine("worker").await;
    for shell in ["bash", "fish"] {
        let offered = async |words: &[&str]| offered(&world, shell, words).await;
        assert_eq!(offered(&["sta"]).await, ["status", "stats"], "{shell}");
        assert_eq!(
            offered(&["status", "w"]).await,
            ["web", "worker"],
            "{shell}"
        );
        assert_eq!(
            offered(&["unplug", "web", ""]).await[..2],
            ["0", "1"],
            "{shell}"
        );
        assert_eq!(offered(&["plug", "web", "2,"]).await, ["2,3"], "{shell}");
        assert_eq!(
            offered(&["set", "web", "3", "--gu"]).await,
            ["--guest-online"],
            "{shell}"
        );
        assert_eq!(
            offered(&["autoscale", "web", "--up-"]).await,
            ["--up-window"],
            "{shell}"
        );
        assert_eq!(
            offered(&["autoscale", "web", "--keep-pinned", ""]).await,
            ["true", "false"],
            "{shell}"
        );
        // Another host is not asked.
        assert!(
            !offered(&["-H", "db", "status", "w"])
                .await
                .contains(&"web".to_owned())
        );
    }
    world.service.take().expect("it runs").kill().await;
    assert!(
        !offered(&world, "bash", &["status", "w"])
            .await
            .contains(&"web".to_owned())
    );
}
