//! A real sshd on the loopback interface: another host, as far as its clients know. Its sessions have the system bus of
//! a world, and a PATH with vcpuctl. Also the configuration of ssh to connect to it.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};

use super::process::{Process, command};
use super::program::script;
use super::wait::within;
use super::world::World;

/// sshd executes itself again, and needs its path for that.
const SSHD: &str = "/usr/sbin/sshd";

/// A running sshd, to which only the key of [`Keys`] gives access.
pub(crate) struct Sshd {
    _process: Process,
}

/// The key of the client, the host key of all hosts, and a directory for programs that use the hosts.
pub(crate) struct Keys<'a>(pub(crate) &'a Path);

impl Keys<'_> {
    /// Generates the keys, and a program `ssh` that knows the hosts.
    pub(crate) async fn generate(&self) {
        for key in ["client", "host"] {
            let mut command = command("ssh-keygen");
            command
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(self.0.join(key));
            let status = within("ssh-keygen", command.status()).await;
            assert!(status.expect("tests/setup installs it").success());
        }
        let bin = self.bin();
        fs::create_dir(&bin).expect("the directory is writable");
        let ssh = format!("exec /usr/bin/ssh -F {} \"$@\"", self.config().display());
        script(&bin.join("ssh"), &ssh);
    }

    /// The directory of the program `ssh`.
    pub(crate) fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }

    fn config(&self) -> PathBuf {
        self.0.join("ssh_config")
    }

    /// Lets `ssh` find the host `name` at a port.
    fn add(&self, name: &str, port: u16) {
        let directory = self.0.display();
        let config = fs::read_to_string(self.config()).unwrap_or_default();
        let host = format!(
            "Host {name}
               HostName 127.0.0.1
               Port {port}
               User root
               IdentityFile {directory}/client
               IdentitiesOnly yes
               UserKnownHostsFile {directory}/known_hosts
               GlobalKnownHostsFile none
               HostKeyAlias host
               StrictHostKeyChecking yes
               BatchMode yes\n"
        );
        fs::write(self.config(), config + &host).expect("the directory is writable");
        let key = fs::read_to_string(self.0.join("host.pub")).expect("it was generated");
        fs::write(self.0.join("known_hosts"), format!("host {key}")).expect("it is writable");
    }
}

impl Sshd {
    /// Starts the host `name`, with the bus of `world`.
    pub(crate) async fn start(world: &World, name: &str, keys: &Keys<'_>) -> Self {
        // The package creates it for the service of the host.
        fs::create_dir_all("/run/sshd").expect("the test is root");
        let bin = world.bus.directory().join("bin");
        fs::create_dir(&bin).expect("the directory is writable");
        symlink(env!("CARGO_BIN_EXE_vcpuctl"), bin.join("vcpuctl")).expect("it is writable");
        // That of systemd 252 does not read the environment.
        let bridge = "exec /usr/bin/systemd-stdio-bridge --bus-path=\"$DBUS_SYSTEM_BUS_ADDRESS\"";
        script(&bin.join("systemd-stdio-bridge"), bridge);

        let port = free_port();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}
             HostKey {keys}/host
             AuthorizedKeysFile {keys}/client.pub
             PermitRootLogin prohibit-password
             PasswordAuthentication no
             UsePAM no
             StrictModes no
             PidFile none
             SetEnv DBUS_SYSTEM_BUS_ADDRESS={bus} PATH={bin}:/usr/bin:/bin\n",
            keys = keys.0.display(),
            bus = world.bus.address(),
            bin = bin.display(),
        );
        let file = world.bus.directory().join("sshd_config");
        fs::write(&file, config).expect("the directory is writable");
        let mut command = command(SSHD);
        command
            .args(["-D", "-e", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = Process::spawn("sshd", &mut command);
        let stderr = process.child.stderr.take().expect("it is piped");
        let mut lines = BufReader::new(stderr).lines();
        let ready = async {
            let mut log = Vec::new();
            while let Some(line) = lines.next_line().await.expect("sshd writes UTF-8") {
                if line.starts_with("Server listening on") {
                    return;
                }
                log.push(line);
            }
            panic!("sshd does not start; run tests/setup to install it: {log:#?}");
        };
        within("sshd to listen", ready).await;
        // sshd must not wait for a reader of its log.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        keys.add(name, port);
        Self { _process: process }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}
