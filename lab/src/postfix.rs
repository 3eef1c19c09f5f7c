//! A Postfix for a test or a program. It accepts every mail for `example.com` and stores it in a
//! maildir. For tests it requires TLS and a password; for programs it accepts all mail from this
//! machine.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::certificate::{self, Next};
use crate::mail::Mail;
use crate::place::{self, free_port, output};
use crate::postfix_files as files;
use crate::small_disk::SmallDisk;
use crate::{PATIENCE, needs};

pub const USER: &str = "courier";
pub const PASSWORD: &str = "a relay's password";

/// Whether Postfix can run. It needs root, because its processes run as several users.
pub fn can_run() -> bool {
    needs::has_root("Postfix") && needs::has_program(files::path("usr/sbin/postfix"))
}

pub struct Postfix {
    home: PathBuf,
    pub port: u16,
    master: Child,
    is_open: bool,
    /// The file system of its queue.
    disk: Option<SmallDisk>,
}

/// How an instance differs from the default, which requires TLS and a password.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    /// The mechanisms that it offers for AUTH.
    pub mechanisms: &'a str,
    /// TLS from the first byte.
    pub implicit: bool,
    /// The name in its certificate.
    pub name: &'a str,
    /// Lines for main.cf.
    pub settings: &'a str,
    /// Requires neither TLS nor a password, and does not log conversations: for programs that send
    /// many mails.
    pub is_open: bool,
    /// Its queue is on a small file system in memory, which can be filled. If it cannot be mounted,
    /// as on some machines, the queue is an ordinary folder.
    pub has_small_queue: bool,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            mechanisms: "PLAIN LOGIN",
            implicit: false,
            name: "localhost",
            settings: "",
            is_open: false,
            has_small_queue: false,
        }
    }
}

impl Postfix {
    pub fn start(setup: Setup<'_>) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Not under target/, because Postfix's users may have no access to that.
        let home = place::folder("postfix");
        for folder in ["etc", "queue", "data", "log", "mail", "etc/sasl", "tls"] {
            fs::create_dir_all(home.join(folder)).unwrap();
        }
        let port = free_port(number);
        if !setup.is_open {
            certificate::make(&home.join("tls"), setup.name);
            make_password(&home.join("etc/sasl"), setup.mechanisms);
        }
        let mount = || SmallDisk::mount_at(home.join("queue"), "mode=755").ok();
        let disk = setup.has_small_queue.then(mount).flatten();
        let owner = output(Command::new("id").args(["-u", "postfix"]));
        fs::write(home.join("etc/main.cf"), main_cf(&home, owner.trim(), &setup)).unwrap();
        fs::write(home.join("etc/master.cf"), master_cf(port, setup.implicit)).unwrap();
        let passwords = (!setup.is_open).then_some("etc/sasl/sasldb2");
        for folder in ["data", "mail"].into_iter().chain(passwords) {
            output(Command::new("chown").arg("postfix").arg(home.join(folder)));
        }
        let master = serve(&home, setup.is_open);
        let postfix = Self { home, port, master, is_open: setup.is_open, disk };
        postfix.is_up();
        postfix
    }

    /// Its URL, with the right password.
    pub fn url(&self) -> String {
        self.url_with(PASSWORD)
    }

    pub fn url_with(&self, password: &str) -> String {
        let scheme = if self.is_implicit() { "smtps" } else { "smtp" };
        let password = password.replace(' ', "%20").replace('\'', "%27");
        format!("{scheme}://{USER}:{password}@localhost:{}", self.port)
    }

    fn is_implicit(&self) -> bool {
        fs::read_to_string(self.home.join("etc/master.cf")).unwrap().contains("wrappermode")
    }

    /// The path of its CA certificate.
    pub fn ca(&self) -> String {
        self.home.join("tls/ca.pem").display().to_string()
    }

    /// Waits until it has stored `count` mails, and returns all stored mails.
    pub fn mails(&self, count: usize) -> Vec<String> {
        until("the mails", || self.kept().count() >= count);
        self.kept().map(|mail| fs::read_to_string(mail).unwrap()).collect()
    }

    /// Waits for a mail to an address.
    pub fn mail_to(&self, address: &str) -> Mail {
        let line = format!("X-Original-To: {address}\n");
        let (mut seen, mut found) = (HashSet::new(), None);
        until("a mail", || {
            let mut new = self.kept().filter(|mail| seen.insert(mail.clone()));
            found = new
                .find_map(|mail| Some(fs::read_to_string(mail).unwrap()).filter(|raw| raw.contains(&line)));
            found.is_some()
        });
        Mail { sender: String::new(), recipients: vec![address.to_owned()], raw: found.unwrap() }
    }

    /// The folder of delivered mails.
    pub fn maildir(&self) -> PathBuf {
        self.home.join("mail/all/new")
    }

    fn kept(&self) -> impl Iterator<Item = PathBuf> {
        let files = fs::read_dir(self.maildir()).into_iter().flatten();
        files.flatten().map(|mail| mail.path())
    }

    pub fn makes_next_certificate(&self) -> Next {
        Next::after(&self.home.join("tls"))
    }

    /// A folder to which Postfix's users have access.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Runs the configuration commands of a document as root. They have effect when Postfix starts
    /// again.
    pub fn is_set_up_by(&self, lines: &str) {
        let programs = format!("{}:{}", files::path("usr/sbin").display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", lines]).envs([files::libraries()]);
        output(shell.env("PATH", programs).env("MAIL_CONFIG", self.home.join("etc")));
    }

    /// From now on, uses the next certificate for new connections and accepts only this password.
    pub fn takes(&self, next: &Next, password: &str) {
        next.replaces(&self.home.join("tls"));
        set_password(&self.home.join("etc/sasl/sasldb2"), password);
        output(files::program("usr/sbin/postfix").arg("-c").arg(self.home.join("etc")).arg("reload"));
    }

    /// Postfix's log. Unless the instance is open, the log has every line that clients sent, with
    /// or without TLS.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.join("log/mail.log")).unwrap_or_default()
    }

    pub fn until_it_logs(&self, part: &str) {
        self.until_log(part, |log| log.contains(part));
    }

    pub fn until_log(&self, what: &str, holds: impl Fn(&str) -> bool) {
        until(what, || holds(&self.log()));
    }

    pub fn is_killed(&mut self) {
        let group = format!("kill -KILL -- -{}", self.master.id());
        let _ = Command::new("bash").args(["-c", &group]).status();
        self.master.wait().unwrap();
    }

    pub fn starts_again(&mut self) {
        self.master = serve(&self.home, self.is_open);
        self.is_up();
    }

    /// Stops all its processes with SIGSTOP, so that clients wait for it.
    pub fn freezes(&self) {
        self.signal("STOP");
    }

    pub fn thaws(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        output(Command::new("bash").args(["-c", &format!("kill -{name} -- -{}", self.master.id())]));
    }

    /// The file system of its queue, if it has a small one.
    pub fn disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    /// The number of mails that it has accepted but not yet delivered to the maildir.
    pub fn pending(&self) -> usize {
        let queue = ["maildrop", "incoming", "active", "deferred"];
        queue.iter().map(|folder| mails_in(&self.home.join("queue").join(folder))).sum()
    }

    fn is_up(&self) {
        until("Postfix is up", || TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok());
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        self.is_killed();
        drop(self.disk.take());
        let _ = fs::remove_dir_all(&self.home);
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// Starts Postfix. The kernel kills the master of an open instance when the thread that started it
/// ends, so that Postfix does not outlive the program. Other instances are for tests, which may
/// start Postfix on a thread that ends before the test.
fn serve(home: &Path, is_open: bool) -> Child {
    // This creates the missing folders of its queue.
    output(files::program("usr/sbin/postfix").arg("-c").arg(home.join("etc")).arg("check"));
    let under: &[&str] = if is_open { &["setpriv", "--pdeathsig", "KILL"] } else { &["env"] };
    let mut master = Command::new(under[0]);
    master.args(&under[1..]).arg(files::path("usr/lib/postfix/sbin/master")).envs([files::libraries()]);
    master.arg("-d").arg("-c").arg(home.join("etc")).process_group(0);
    master.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The number of mails in a folder and its subfolders. Postfix makes the file of a mail executable
/// before it answers 250. Other files are of mails that it did not accept, and it removes them
/// later.
fn mails_in(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_taken = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|file| file.mode() & 0o100 != 0);
    entries
        .map(
            |entry| {
                if entry.path().is_dir() { mails_in(&entry.path()) } else { usize::from(is_taken(&entry)) }
            },
        )
        .sum()
}

fn make_password(folder: &Path, mechanisms: &str) {
    let database = folder.join("sasldb2");
    let config = format!(
        "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {}\nmech_list: {mechanisms}\n",
        database.display()
    );
    fs::write(folder.join("smtpd.conf"), config).unwrap();
    set_password(&database, PASSWORD);
}

fn set_password(database: &Path, password: &str) {
    let script = "printf %s \"$2\" | \"$0\" -p -c -f \"$1\" -u example.com courier";
    let program = files::path("usr/sbin/saslpasswd2");
    output(Command::new("bash").args(["-c", script]).arg(program).arg(database).arg(password));
}

fn main_cf(home: &Path, owner: &str, setup: &Setup<'_>) -> String {
    let access = if setup.is_open { OPEN.to_owned() } else { wants_a_password(home) };
    let (home, files, settings) = (home.display(), files::main_cf(), setup.settings);
    format!(
        "compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
maillog_file = {home}/log/mail.log
maillog_file_prefixes = {home}
{files}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = relay.example.com
mydestination =
virtual_mailbox_domains = example.com
virtual_mailbox_base = {home}/mail
virtual_mailbox_maps = static:all/
virtual_uid_maps = static:{owner}
virtual_gid_maps = static:{owner}
virtual_minimum_uid = 1
{access}
{settings}
"
    )
}

/// The settings of an open instance. It retries a delivery every 3 s.
const OPEN: &str = "smtpd_relay_restrictions = permit_mynetworks, reject
mynetworks = 127.0.0.0/8
virtual_mailbox_limit = 0
message_size_limit = 1048576
queue_run_delay = 3s
minimal_backoff_time = 3s
maximal_backoff_time = 3s
in_flow_delay = 0
notify_classes =";

fn wants_a_password(home: &Path) -> String {
    let home = home.display();
    format!(
        "smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_sasl_auth_enable = yes
cyrus_sasl_config_path = {home}/etc/sasl
smtpd_sasl_local_domain = example.com
smtpd_sasl_authenticated_header = yes
smtpd_tls_security_level = may
smtpd_tls_auth_only = yes
smtpd_tls_received_header = yes
smtpd_tls_cert_file = {home}/tls/cert.pem
smtpd_tls_key_file = {home}/tls/key.pem
debug_peer_list = 127.0.0.1"
    )
}

fn master_cf(port: u16, implicit: bool) -> String {
    let options = if implicit { " -o smtpd_tls_wrappermode=yes" } else { "" };
    format!(
        "127.0.0.1:{port} inet n - n - - smtpd{options}
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
tlsmgr unix - - n 1000? 1 tlsmgr
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
smtp unix - - n - - smtp
anvil unix - - n - 1 anvil
showq unix n - n - - showq
postlog unix-dgram n - n - 1 postlogd
"
    )
}
