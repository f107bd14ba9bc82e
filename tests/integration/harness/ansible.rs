//! The real Ansible that `tests/setup` installs, with the collection of this project.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;

use super::process::command;
use super::sshd::Keys;
use super::wait::within;
use super::world::World;

/// Returns the path of a file of the project.
fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn fixture(name: &str) -> PathBuf {
    source("tests/fixtures/ansible").join(name)
}

/// Ansible with the collection, in a directory of its own.
pub(crate) struct Ansible {
    directory: TempDir,
    /// Variables of the environment.
    environment: Vec<(&'static str, String)>,
    inventory: String,
}

/// The results of the tasks of a playbook, by host, and the statistics.
#[derive(Debug, Default)]
pub(crate) struct Played {
    pub(crate) results: BTreeMap<String, Vec<Value>>,
    pub(crate) stats: Value,
}

impl Ansible {
    /// Installs the collection as README.md says.
    pub(crate) async fn install() -> Self {
        let directory = TempDir::new().expect("there is room for a directory");
        let collections = directory.path().join("collections");
        let configuration = directory.path().join("ansible.cfg");
        fs::write(&configuration, "").expect("the directory is writable");
        let value = |path: &Path| path.display().to_string();
        let environment = vec![
            // Not the configuration, the directories and the connections of a user.
            ("ANSIBLE_CONFIG", value(&configuration)),
            ("ANSIBLE_HOME", value(&directory.path().join("home"))),
            ("ANSIBLE_REMOTE_TMP", value(&directory.path().join("tmp"))),
            ("ANSIBLE_SSH_ARGS", "-o ControlMaster=no".to_owned()),
            // One connection for each task.
            ("ANSIBLE_PIPELINING", "true".to_owned()),
            ("ANSIBLE_COLLECTIONS_PATH", value(&collections)),
            ("ANSIBLE_CALLBACK_PLUGINS", value(&fixture(""))),
            ("ANSIBLE_STDOUT_CALLBACK", "results".to_owned()),
            // A failure is only a warning otherwise.
            (
                "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED",
                "true".to_owned(),
            ),
            ("ANSIBLE_LOCALHOST_WARNING", "false".to_owned()),
            ("LC_ALL", "C.UTF-8".to_owned()),
            ("PATH", "/usr/bin:/bin".to_owned()),
        ];
        let inventory = String::new();
        let ansible = Self {
            directory,
            environment,
            inventory,
        };
        let command = readme_block("ansible-galaxy");
        let arguments: Vec<&str> = command.split_whitespace().skip(1).collect();
        ansible.run("ansible-galaxy", &arguments).await;
        ansible
    }

    /// Lets the playbooks use the hosts of `keys` with these names.
    pub(crate) fn connect_to(&mut self, hosts: &[&str], keys: &Keys<'_>) {
        self.use_programs(&format!("{}:", keys.bin().display()));
        let hosts = hosts.join("\n");
        let variables = "ansible_user=root\nansible_python_interpreter=/usr/bin/python3";
        self.inventory = format!("[hypervisors]\n{hosts}\n[all:vars]\n{variables}\n");
    }

    /// Lets the playbooks use this host, with the bus of `world`.
    pub(crate) fn stay_on(&mut self, world: &World) {
        self.use_programs("");
        let address = world.bus.address().to_owned();
        self.environment.push(("DBUS_SYSTEM_BUS_ADDRESS", address));
        let variables = "ansible_connection=local ansible_python_interpreter=/usr/bin/python3";
        self.inventory = format!("[hypervisors]\nlocalhost {variables}\n");
    }

    /// Lets Ansible use vcpuctl, and programs of other directories.
    fn use_programs(&mut self, directories: &str) {
        let vcpuctl = Path::new(env!("CARGO_BIN_EXE_vcpuctl")).parent();
        let vcpuctl = vcpuctl.expect("a program is in a directory").display();
        let path = format!("{directories}{vcpuctl}:/usr/bin:/bin");
        self.environment.push(("PATH", path));
    }

    /// Runs a program of Ansible. Returns whether it succeeded, and what it printed.
    async fn try_run(&self, program: &str, arguments: &[&str]) -> (bool, String, String) {
        let path = source("target/ansible/venv/bin").join(program);
        assert!(path.exists(), "no {}; run tests/setup", path.display());
        let mut command = command(path);
        command
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .envs(self.environment.iter().map(|(key, value)| (*key, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = within(program, command.output())
            .await
            .expect("it can be run");
        let text = |bytes| String::from_utf8(bytes).expect("Ansible writes UTF-8");
        let (printed, complaint) = (text(output.stdout), text(output.stderr));
        (output.status.success(), printed, complaint)
    }

    async fn run(&self, program: &str, arguments: &[&str]) -> String {
        let (is_success, printed, complaint) = self.try_run(program, arguments).await;
        assert!(is_success, "{program} {arguments:?}: {printed}{complaint}");
        printed
    }

    /// Writes a file for Ansible, and returns its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        fs::write(&path, text).expect("the directory is writable");
        path.display().to_string()
    }

    /// Runs a playbook on all hosts.
    pub(crate) async fn play(&self, playbook: &str, options: &[&str]) -> Played {
        let inventory = self.file("hosts.ini", &self.inventory);
        let arguments = [&["-i", &inventory, playbook], options].concat();
        let (_, printed, complaint) = self.try_run("ansible-playbook", &arguments).await;
        let mut played = Played::default();
        for line in printed.lines() {
            // Warnings are lines, too.
            let Ok(mut line) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            if let Some(host) = line["host"].as_str() {
                let results = played.results.entry(host.to_owned()).or_default();
                results.push(line["result"].take());
            } else {
                played.stats = line["stats"].take();
            }
        }
        assert!(played.stats.is_object(), "{printed}{complaint}");
        played
    }

    /// Runs a playbook of `tests/fixtures/ansible`.
    pub(crate) async fn play_fixture(&self, name: &str, options: &[&str]) -> Played {
        let path = fixture(name).display().to_string();
        self.play(&path, options).await
    }

    /// Lists the inventory that a file of the plugin `machines` makes.
    pub(crate) async fn inventory(&self, text: &str) -> Value {
        let file = self.file("machines.vcpud.yml", text);
        let list = self
            .run("ansible-inventory", &["-i", &file, "--list"])
            .await;
        plain(serde_json::from_str(&list).expect("a JSON document"))
    }
}

impl Played {
    /// Returns the result of the last task of a host.
    pub(crate) fn last(&self, host: &str) -> &Value {
        let results = self.results.get(host).and_then(|results| results.last());
        results.unwrap_or_else(|| panic!("no result of {host}: {self:?}"))
    }

    /// Returns the values of the last task of a host.
    pub(crate) fn values(&self, host: &str, keys: &[&str]) -> Value {
        let result = self.last(host);
        let values = keys
            .iter()
            .map(|key| ((*key).to_owned(), result[*key].clone()));
        Value::Object(values.collect())
    }
}

/// Returns JSON without the marks of texts that are not templates.
fn plain(value: Value) -> Value {
    match value {
        Value::Object(mut object) => match object.remove("__ansible_unsafe") {
            Some(text) => text,
            None => {
                let members = object.into_iter();
                Value::Object(members.map(|(key, value)| (key, plain(value))).collect())
            }
        },
        Value::Array(values) => values.into_iter().map(plain).collect(),
        other => other,
    }
}

/// Returns the block of README.md with `text`.
pub(crate) fn readme_block(text: &str) -> String {
    let readme = fs::read_to_string(source("README.md")).expect("README.md exists");
    let mut blocks = readme.split("\n```").skip(1).step_by(2);
    let block = blocks.find(|block| block.contains(text));
    let (_, block) = block
        .and_then(|block| block.split_once('\n'))
        .expect("README.md has this block");
    block.to_owned()
}
