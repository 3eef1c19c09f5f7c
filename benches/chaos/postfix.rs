//! A Postfix of one's own: takes every mail for `chaos.test` and keeps it in a maildir. Its queue is a small file system
//! in memory, so that it can be full.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "../../tests/it/harness/postfix_files.rs"]
#[allow(clippy::duplicate_mod, reason = "`make chaos` has it in the tests' harness, too")]
mod files;

use crate::Failure;

/// How the folders of all runs begin.
const PREFIX: &str = "vos-auth-chaos-postfix-";
/// What the queue holds at most, in MiB.
const QUEUE_MIB: usize = 48;
/// How long it may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Postfix {
    home: PathBuf,
    pub port: u16,
    master: Child,
    /// Whether its disk can be filled: mounting takes rights that not everybody has.
    pub can_be_full: bool,
}

impl Postfix {
    /// Needs root, as Postfix does.
    pub fn start() -> Result<Self, Failure> {
        remove_leftovers()?;
        let home = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        for folder in ["etc", "queue", "data", "log", "mail"] {
            fs::create_dir_all(home.join(folder))?;
        }
        let port = free_port();
        let queue = home.join("queue");
        let size = format!("size={QUEUE_MIB}m,mode=755");
        let can_be_full =
            runs(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&queue)).is_ok();
        let owner = String::from_utf8(Command::new("id").args(["-u", "postfix"]).output()?.stdout)?;
        fs::write(home.join("etc/main.cf"), main_cf(&home, owner.trim()))?;
        fs::write(home.join("etc/master.cf"), master_cf(port))?;
        for folder in ["data", "mail"] {
            runs(Command::new("chown").arg("postfix").arg(home.join(folder)))?;
        }
        let master = serve(&home)?;
        let postfix = Self { home, port, master, can_be_full };
        postfix.is_up()?;
        Ok(postfix)
    }

    /// Where it keeps what it has delivered.
    pub fn mails(&self) -> PathBuf {
        self.home.join("mail/all/new")
    }

    /// Kills every process of it at once.
    pub fn is_killed(&mut self) {
        let _ = self.signal("KILL");
        let _ = self.master.wait();
    }

    /// Freezes every process of it: who talks to it waits.
    #[allow(dead_code, reason = "`make failover` does it")]
    pub fn stands_still(&self) -> Result<(), Failure> {
        self.signal("STOP")
    }

    #[allow(dead_code, reason = "`make failover` does it")]
    pub fn goes_on(&self) -> Result<(), Failure> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Result<(), Failure> {
        runs(Command::new("bash").args(["-c", &format!("kill -{name} -- -{}", self.master.id())]))
    }

    pub fn starts_again(&mut self) -> Result<(), Failure> {
        self.master = serve(&self.home)?;
        self.is_up()
    }

    pub fn disk_is_full(&self) -> Result<(), Failure> {
        // Fails when nothing more fits, which is the aim.
        let _ = runs(Command::new("dd").args(["if=/dev/zero", "bs=64k"]).arg(self.filler()));
        if self.filler_path().exists() { Ok(()) } else { Err("the relay's disk could not be filled".into()) }
    }

    pub fn disk_has_room(&self) -> Result<(), Failure> {
        Ok(fs::remove_file(self.filler_path())?)
    }

    fn filler(&self) -> String {
        format!("of={}", self.filler_path().display())
    }

    fn filler_path(&self) -> PathBuf {
        self.home.join("queue/filler")
    }

    /// How many mails it still owes its mailbox; it tries again every 3 s.
    pub fn owes(&self) -> usize {
        let queue = ["maildrop", "incoming", "active", "deferred"];
        queue.iter().map(|folder| mails(&self.home.join("queue").join(folder))).sum()
    }

    fn is_up(&self) -> Result<(), Failure> {
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            if began.elapsed() > PATIENCE {
                return Err("Postfix does not come up; is it installed, and is this root?".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        self.is_killed();
        remove(&self.home);
    }
}

/// What runs that were killed have left: their processes have ended with them.
fn remove_leftovers() -> Result<(), Failure> {
    for entry in fs::read_dir(std::env::temp_dir())?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
    Ok(())
}

/// Below the ports that the kernel gives to those who ask for any: between this look and Postfix's own, nobody is given
/// it.
fn free_port() -> u16 {
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let first = 10_000 + u16::try_from(std::process::id() % 200).unwrap_or_default() * 100;
    (first..32_000).find(is_free).expect("a free port")
}

fn serve(home: &Path) -> Result<Child, Failure> {
    // It makes what its queue lacks.
    runs(files::program("usr/sbin/postfix").arg("-c").arg(home.join("etc")).arg("check"))?;
    let mut master = Command::new("setpriv");
    master.args(["--pdeathsig", "KILL"]).arg(files::path("usr/lib/postfix/sbin/master"));
    master.args(["-d", "-c"]).arg(home.join("etc")).envs([files::libraries()]);
    Ok(master.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

fn runs(command: &mut Command) -> Result<(), Failure> {
    let ended = command.output()?;
    if ended.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&ended.stderr).into()) }
}

fn remove(home: &Path) {
    let _ = Command::new("umount").arg("--lazy").arg(home.join("queue")).stderr(Stdio::null()).status();
    let _ = fs::remove_dir_all(home);
}

/// Mails in a folder and its folders. One whose file cannot be executed was never taken: Postfix sets that bit before it
/// answers 250, and leaves the others to be removed some day.
fn mails(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_taken = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|file| file.mode() & 0o100 != 0);
    entries
        .map(|entry| if entry.path().is_dir() { mails(&entry.path()) } else { usize::from(is_taken(&entry)) })
        .sum()
}

fn main_cf(home: &Path, owner: &str) -> String {
    let (home, files) = (home.display(), files::main_cf());
    format!(
        "compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
maillog_file = {home}/log/mail.log
maillog_file_prefixes = {home}
{files}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = relay.chaos.test
mydestination =
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
virtual_mailbox_domains = chaos.test
virtual_mailbox_base = {home}/mail
virtual_mailbox_maps = static:all/
virtual_uid_maps = static:{owner}
virtual_gid_maps = static:{owner}
virtual_minimum_uid = 1
virtual_mailbox_limit = 0
message_size_limit = 1048576
queue_run_delay = 3s
minimal_backoff_time = 3s
maximal_backoff_time = 3s
in_flow_delay = 0
notify_classes =
"
    )
}

fn master_cf(port: u16) -> String {
    format!(
        "127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
showq unix n - n - - showq
postlog unix-dgram n - n - 1 postlogd
"
    )
}
