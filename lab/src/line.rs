//! A network for one test: a veth pair between this network namespace and another. Its MTU is that
//! of Ethernet, so that a large request needs many segments and round trips, unlike on loopback.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::needs;

const IP: &str = "/usr/sbin/ip";

pub struct Line {
    /// The name of the namespace at the far end.
    name: String,
    /// The address of this end.
    pub near: Ipv4Addr,
    /// The address of the other end.
    pub far: Ipv4Addr,
}

/// Whether this machine can make a [`Line`], which needs root and `ip`.
pub fn can_lay() -> bool {
    needs::has_root("a network namespace") && needs::has_program(IP)
}

impl Line {
    pub fn lay() -> Self {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let (pid, number) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed) % 60);
        let name = format!("edge{pid}x{number}");
        // From 198.18.0.0/15, the range for network benchmarks (RFC 2544).
        let [.., high, low] = pid.to_be_bytes();
        let address = |host| Ipv4Addr::new(198, 18 + high % 2, low, number * 4 + host);
        let line = Self { name, near: address(1), far: address(2) };
        let Self { name, near, far } = &line;
        ip(&format!("netns add {name}"));
        ip(&format!("link add {name} mtu 1500 type veth peer name far mtu 1500 netns {name}"));
        ip(&format!("address add {near}/30 dev {name}"));
        ip(&format!("link set {name} up"));
        ip(&format!("-n {name} address add {far}/30 dev far"));
        ip(&format!("-n {name} link set far up"));
        ip(&format!("-n {name} link set lo up"));
        line
    }

    /// Sets `/etc/hosts` for programs at the far end.
    pub fn knows(&self, hosts: &str) {
        let folder = self.folder();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("hosts"), hosts).unwrap();
    }

    /// Adds an address to this end.
    pub fn has_address(&self, address: Ipv4Addr) {
        let name = &self.name;
        ip(&format!("address add {address}/32 dev {name}"));
        ip(&format!("-n {name} route add {address}/32 dev far"));
    }

    /// Silently drops what the far end sends to an address of this end, by a MAC address that does
    /// not exist.
    pub fn loses(&self, address: Ipv4Addr) {
        let name = &self.name;
        ip(&format!("-n {name} neighbour replace {address} lladdr 02:00:00:00:00:01 nud permanent dev far"));
    }

    /// Undoes [`Self::loses`].
    pub fn finds(&self, address: Ipv4Addr) {
        ip(&format!("-n {} neighbour delete {address} dev far", self.name));
    }

    fn folder(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }

    /// A command that runs a program at the far end, with the same file system.
    pub fn at_far_end(&self, program: &str) -> Command {
        let [ip, arguments @ ..] = self.under();
        let mut command = Command::new(ip);
        command.args(arguments).arg(program);
        command
    }

    /// The command that runs a program at the far end, without the program. There, the files of
    /// `/etc/netns/NAME` replace those in `/etc`.
    pub fn under(&self) -> [&str; 4] {
        [IP, "netns", "exec", &self.name]
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Changes the network at the far end.
    pub fn far_ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }
}

/// Deleting the namespace deletes the pair, too.
impl Drop for Line {
    fn drop(&mut self) {
        let _ = Command::new(IP).args(["netns", "delete", &self.name]).status();
        let _ = std::fs::remove_dir_all(self.folder());
    }
}

fn ip(arguments: &str) {
    let output = Command::new(IP).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
