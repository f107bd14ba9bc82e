//! The real vcpud-autoscale, with directories of its own.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::process::Command;
use tokio::time::timeout;
use vcpud::names::AUTOSCALE_NAME;
use vcpud::proxy::AutoscaleProxy;
use zbus::fdo::DBusProxy;
use zbus::proxy::CacheProperties;

use super::json::{Dict, dict};
use super::process::{Process, command};
use super::wait::within;
use super::world::World;

/// A running vcpud-autoscale.
pub(crate) struct Autoscaler {
    pub(crate) process: Process,
    pub(crate) proxy: AutoscaleProxy<'static>,
}

impl Autoscaler {
    /// Starts it as root, and waits until it owns its name.
    pub(crate) async fn start(world: &World) -> Self {
        let connection = &world.connection;
        let daemon = DBusProxy::new(connection).await.expect("the bus works");
        let arguments = &[(0, AUTOSCALE_NAME)];
        let owners = daemon.receive_name_owner_changed_with_args(arguments);
        let mut owners = owners.await.expect("the bus works");
        let main = Self::directory(world, "autoscale-etc").join("autoscale.toml");
        if !main.exists() {
            // The host of a scripted machine is larger.
            Self::configure(world, "autoscale.toml", "host-cpus = 64");
        }
        let process = Process::spawn("vcpud-autoscale", &mut Self::command(world));
        let owned = async {
            while let Some(change) = owners.next().await {
                if change.args().expect("sss").new_owner().is_some() {
                    return;
                }
            }
        };
        within("vcpud-autoscale", owned).await;
        let builder = AutoscaleProxy::builder(connection);
        let builder = builder.cache_properties(CacheProperties::No);
        Self {
            process,
            proxy: builder.build().await.expect("a proxy"),
        }
    }

    /// Returns the command that starts it.
    pub(crate) fn command(world: &World) -> Command {
        Self::with_environment(world, command(env!("CARGO_BIN_EXE_vcpud-autoscale")))
    }

    /// Returns `command` with the bus and the directories of `world`.
    pub(crate) fn with_environment(world: &World, mut command: Command) -> Command {
        command
            .env("DBUS_SYSTEM_BUS_ADDRESS", world.bus.address())
            .env(
                "CONFIGURATION_DIRECTORY",
                Self::directory(world, "autoscale-etc"),
            )
            .env("STATE_DIRECTORY", Self::state_directory(world));
        command
    }

    /// Returns its state directory.
    pub(crate) fn state_directory(world: &World) -> PathBuf {
        Self::directory(world, "autoscale-state")
    }

    fn directory(world: &World, name: &str) -> PathBuf {
        let directory = world.bus.directory().join(name);
        fs::create_dir_all(directory.join("autoscale.d")).expect("it is writable");
        directory
    }

    /// Writes a file of the administrator.
    pub(crate) fn configure(world: &World, file: &str, text: &str) {
        let directory = Self::directory(world, "autoscale-etc");
        fs::write(directory.join(file), text).expect("it is writable");
    }

    /// Waits until `Explain` has the code of a reason, and returns the whole explanation as JSON.
    pub(crate) async fn explains(&self, machine: &str, code: &str) -> Dict {
        // The signals of other machines could fill the queue of the connection, and then no reply comes.
        let own = &[(0, machine)];
        let decisions = self.proxy.receive_decided_with_args(own).await;
        let mut decisions = decisions.expect("the bus works");
        let explained = async {
            loop {
                let explanation = self.proxy.explain(machine).await.expect("it is scaled");
                let explanation = dict(&explanation);
                if explanation["reason-code"] == code {
                    return explanation;
                }
                // A machine that vanishes has no decision.
                let _ = timeout(Duration::from_secs(1), decisions.next()).await;
            }
        };
        within(format!("the reason {code}"), explained).await
    }
}
