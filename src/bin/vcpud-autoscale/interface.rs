//! The interface `org.vcpud1.Autoscale`: arguments and authorization. The service decides.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::{mpsc, oneshot};
use vcpud::names::MachineName;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedVariant, Variant, interface};

use crate::admission::Admission;
use crate::authority;
use crate::describe::Dict;
use crate::error::Error;
use crate::link::{has_machine, max_vcpus};
use crate::settings::{Mode, Settings};

/// The maximum number of options of a call.
const MAX_OPTIONS: usize = 16;

/// A request of a caller to the service.
#[derive(Debug)]
pub(crate) enum Command {
    Enable(MachineName, Change, oneshot::Sender<Result<(), Error>>),
    Disable(MachineName, oneshot::Sender<Result<(), Error>>),
    List(oneshot::Sender<BTreeMap<String, Dict>>),
    Explain(MachineName, oneshot::Sender<Option<Dict>>),
    Errors(oneshot::Sender<Vec<String>>),
}

/// The settings of a call of `Enable`.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) settings: Settings,
    /// Whether absent keys keep their values.
    pub(crate) is_update: bool,
    /// The maximum number of vCPUs of the machine, if it is known.
    pub(crate) max_vcpus: Option<u32>,
}

/// Serves `org.vcpud1.Autoscale`.
#[derive(Debug)]
pub(crate) struct Autoscale {
    commands: mpsc::Sender<Command>,
    admission: Admission,
}

impl Autoscale {
    pub(crate) fn new(commands: mpsc::Sender<Command>) -> Self {
        let admission = Admission::new();
        Self {
            commands,
            admission,
        }
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Error> {
        let (sender, reply) = oneshot::channel();
        let _ = self.commands.send(command(sender)).await;
        reply.await.map_err(|_| Error::io("the service is ending"))
    }
}

#[interface(name = "org.vcpud1.Autoscale")]
impl Autoscale {
    async fn enable(
        &self,
        machine: &str,
        mut options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<(), Error> {
        let turn = self.admission.admit(bus, &header).await?;
        let name = machine_name(machine)?;
        if options.len() > MAX_OPTIONS {
            let text = format!(
                "{} options in one call; the limit is {MAX_OPTIONS}",
                options.len()
            );
            return Err(Error::invalid_args(text));
        }
        let is_update = take_update(&mut options).map_err(Error::invalid_args)?;
        let settings = Settings::from_options(options).map_err(Error::invalid_args)?;
        if settings.mode() == Mode::Off {
            return Err(Error::invalid_args(
                "the mode is \"on\" or \"observe\"; call Disable to end the scaling",
            ));
        }
        authority::check(bus, &header, turn.uid, machine, "enable").await?;
        let max_vcpus = max_vcpus(bus, &name).await?;
        let change = Change {
            settings,
            is_update,
            max_vcpus,
        };
        self.ask(|reply| Command::Enable(name, change, reply))
            .await?
    }

    async fn disable(
        &self,
        machine: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<(), Error> {
        let turn = self.admission.admit(bus, &header).await?;
        let name = machine_name(machine)?;
        authority::check(bus, &header, turn.uid, machine, "disable").await?;
        self.ask(|reply| Command::Disable(name, reply)).await?
    }

    #[zbus(out_args("result"))]
    async fn can_manage(
        &self,
        machine: &str,
        operation: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<&'static str, Error> {
        let turn = self.admission.admit(bus, &header).await?;
        let name = machine_name(machine)?;
        let is_possible = match operation {
            "enable" => has_machine(bus, &name).await?,
            "disable" => {
                let explanation = self.ask(|reply| Command::Explain(name, reply)).await?;
                explanation.is_some()
            }
            _ => {
                let text = "the operation is not one of enable, disable";
                return Err(Error::invalid_args(text));
            }
        };
        if !is_possible {
            return Ok("na");
        }
        Ok(authority::permission(bus, &header, turn.uid, machine, operation).await)
    }

    #[zbus(out_args("machines"))]
    async fn list(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<BTreeMap<String, Dict>, Error> {
        let _turn = self.admission.admit(bus, &header).await?;
        self.ask(Command::List).await
    }

    #[zbus(out_args("explanation"))]
    async fn explain(
        &self,
        machine: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<Dict, Error> {
        let _turn = self.admission.admit(bus, &header).await?;
        let name = machine_name(machine)?;
        let explanation = self.ask(|reply| Command::Explain(name, reply)).await?;
        explanation.ok_or_else(|| not_scaled(machine))
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn configuration_errors(&self) -> Vec<String> {
        self.ask(Command::Errors).await.unwrap_or_default()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> &'static [&'static str] {
        &["can-manage", "update"]
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    #[zbus(signal)]
    pub(crate) async fn decided(
        emitter: &SignalEmitter<'_>,
        machine: &str,
        from: u32,
        to: u32,
        reason: &str,
        details: Dict,
    ) -> zbus::Result<()>;
}

/// Takes the option "update", which is no setting.
fn take_update(options: &mut HashMap<String, OwnedVariant>) -> Result<bool, String> {
    match options.remove("update").as_deref() {
        None => Ok(false),
        Some(Variant::Bool(is_update)) => Ok(*is_update),
        Some(_) => Err("option \"update\": the value is not a boolean".to_owned()),
    }
}

fn machine_name(name: &str) -> Result<MachineName, Error> {
    // A long text is not repeated.
    let short = name.chars().take(65).collect::<String>();
    short
        .parse()
        .map_err(|error: vcpud::names::InvalidMachineName| Error::invalid_args(error.to_string()))
}

/// Returns the error for a machine without settings.
pub(crate) fn not_scaled(machine: &str) -> Error {
    Error::no_such_machine(format!(
        "the vCPUs of machine {machine} are not scaled; call List to list the machines"
    ))
}
