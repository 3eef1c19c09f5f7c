//! An nginx in front of two replicas, one for each test: `deploy/nginx.conf` with changed addresses
//! and certificate.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::Value;

use crate::line::Line;
use crate::place::{self, free_port};
use crate::{PATIENCE, needs};

const PROGRAM: &str = "/usr/sbin/nginx";
/// The address of the clients, which is not nginx's own.
pub const CLIENT: &str = "127.0.0.2";

/// How this nginx differs from `deploy/nginx.conf`.
#[derive(Default)]
pub struct Setup<'a> {
    /// The network at whose far end nginx runs, instead of loopback.
    pub line: Option<&'a Line>,
    /// Replacements in the text of `deploy/nginx.conf`. Each must match. `{plain}` stands for the
    /// port without TLS.
    pub changes: &'a [(&'a str, &'a str)],
    /// Whether the worker settings are Debian's, changed by the command of docs/operate/install.md.
    /// Otherwise they are nginx's defaults.
    pub is_documented: bool,
}

pub struct Nginx {
    home: PathBuf,
    host: Ipv4Addr,
    /// The address of its clients.
    client: Ipv4Addr,
    pub tls: u16,
    pub plain: u16,
    process: Child,
}

/// Whether nginx is installed.
pub fn is_installed() -> bool {
    needs::has_program(PROGRAM)
}

impl Nginx {
    pub fn before(replicas: [SocketAddr; 2]) -> Self {
        Self::start(replicas, &Setup::default())
    }

    pub fn start(replicas: [SocketAddr; 2], setup: &Setup<'_>) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let home = place::folder("nginx");
        make_certificate(&home);
        let host = setup.line.map_or(Ipv4Addr::LOCALHOST, |line| line.far);
        let client = setup.line.map_or(CLIENT.parse().unwrap(), |line| line.near);
        // Other servers use the numbers of `free_port` below 40.
        let (tls, plain) = (free_port(40 + number % 5 * 2), free_port(41 + number % 5 * 2));
        let site = place::text("deploy/nginx.conf");
        let site = with_own_addresses(&site, host, [tls, plain], replicas);
        let site = with_changes(site, setup.changes).replace("{plain}", &plain.to_string());
        fs::write(home.join("site.conf"), site).unwrap();
        let page = "recovery-unavailable.html";
        fs::copy(place::file("deploy").join(page), home.join(page)).unwrap();
        fs::write(home.join("nginx.conf"), main_context(&home, setup.is_documented)).unwrap();
        let mut nginx = match setup.line {
            Some(line) => line.at_far_end(PROGRAM),
            None => Command::new(PROGRAM),
        };
        nginx.arg("-p").arg(&home).arg("-c").arg(home.join("nginx.conf")).stdin(Stdio::null());
        let process = nginx.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        while TcpStream::connect((host, tls)).is_err() {
            let log = fs::read_to_string(home.join("error.log")).unwrap_or_default();
            assert!(began.elapsed() < PATIENCE, "nginx is not up: {log}");
            std::thread::yield_now();
        }
        Self { home, host, client, tls, plain, process }
    }

    /// Installs a new certificate as an operator does: replaces the files, then reloads nginx.
    /// Returns when nginx serves it.
    pub async fn has_new_certificate(&self) {
        make_certificate(&self.home);
        let reload = format!("kill -HUP {}", self.process.id());
        assert!(Command::new("bash").args(["-c", &reload]).status().unwrap().success());
        let probe = self.transfer("/recovery", "%{http_code}").replace("ca.pem", "cert.pem");
        let served = async { while self.curl(probe.clone(), &["-o", "/dev/null"]).await != "200" {} };
        tokio::time::timeout(PATIENCE, served).await.expect("the new certificate is served");
    }

    /// Sends a request by curl over TLS, with the cookies of a named browser. Returns status and
    /// body.
    pub async fn asks(&self, browser: &str, path: &str, more: &[&str]) -> (u16, Value) {
        let jar = self.home.join(browser).display().to_string();
        let cookies = format!("cookie = \"{jar}\"\ncookie-jar = \"{jar}\"\n");
        let output = self.curl(self.transfer(path, "\\n%{http_code}") + cookies.as_str(), more).await;
        let (body, status) = output.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// Posts all bodies in parallel, and returns the statuses.
    pub async fn posts_at_once(&self, path: &str, bodies: &[String]) -> Vec<u16> {
        let transfers = bodies.iter().map(|body| {
            let (transfer, body) = (self.transfer(path, "%{http_code}\\n"), body.replace('"', "\\\""));
            format!("{transfer}output = \"/dev/null\"\njson = \"{body}\"\n")
        });
        let lines = format!("parallel\n{}", transfers.collect::<Vec<_>>().join("next\n"));
        let output = self.curl(lines, &[]).await;
        output.lines().map(|status| status.parse().unwrap()).collect()
    }

    /// nginx's error log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.join("error.log")).unwrap_or_default()
    }

    /// Requests `path` this many times at a constant rate, and returns the statuses. `more` has
    /// further lines of curl's configuration.
    pub async fn asks_at_a_rate(&self, path: &str, times: usize, a_second: usize, more: &str) -> Vec<u16> {
        let one = format!("{}output = \"/dev/null\"\n{more}", self.transfer(path, "%{http_code}\\n"));
        let lines = format!("rate = \"{a_second}/s\"\n{}", vec![one; times].join("next\n"));
        let output = self.curl(lines, &[]).await;
        output.lines().map(|status| status.parse().unwrap()).collect()
    }

    /// One transfer, as lines of curl's configuration.
    fn transfer(&self, path: &str, write_out: &str) -> String {
        let Self { tls: port, host, client, .. } = self;
        let home = self.home.display();
        format!(
            "silent\nshow-error\npath-as-is\ninterface = \"{client}\"\ncacert = \"{home}/ca.pem\"
resolve = \"platform.verolabs.co:{port}:{host}\"
url = \"https://platform.verolabs.co:{port}{path}\"\nwrite-out = \"{write_out}\"\n"
        )
    }

    /// Runs curl outside the test's own thread, which must not block.
    async fn curl(&self, lines: String, more: &[&str]) -> String {
        let more: Vec<String> = more.iter().map(ToString::to_string).collect();
        let asking = tokio::task::spawn_blocking(move || {
            let mut curl = Command::new("curl");
            curl.args(["-K", "-"]).args(more).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut curl = curl.stderr(Stdio::piped()).spawn().unwrap();
            curl.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
            let output = curl.wait_with_output().unwrap();
            // A request without an answer has no status; only curl's message says why.
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        });
        String::from_utf8(asking.await.unwrap()).unwrap()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGTERM, because SIGKILL would end the master alone and leave its workers running.
        let _ = Command::new("bash").args(["-c", &format!("kill {}", self.process.id())]).status();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.home);
    }
}

fn main_context(home: &Path, is_documented: bool) -> String {
    let workers = if is_documented { documented_workers(home) } else { "events {}".to_owned() };
    format!(
        "daemon off;
pid nginx.pid;
error_log error.log;
{workers}
http {{
  access_log access.log;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  include site.conf;
}}
"
    )
}

/// The worker settings of Debian's nginx.conf, changed by the command of docs/operate/install.md.
fn documented_workers(home: &Path) -> String {
    let debian = home.join("debian.conf");
    let lines = "worker_processes auto;\nevents {\n\tworker_connections 768;\n\t# multi_accept on;\n}\n";
    fs::write(&debian, lines).unwrap();
    let page = place::text("docs/operate/install.md");
    let (before, _) = page.split_once(" /etc/nginx/nginx.conf\n").expect("the command");
    let command = &before[before.rfind("sed -i").expect("it is sed's")..];
    let script = format!("{command} {}", debian.display());
    // The command runs twice, because its second run must change nothing.
    for _ in 0..2 {
        assert!(Command::new("bash").args(["-c", &script]).status().unwrap().success(), "{script}");
    }
    fs::read_to_string(debian).unwrap()
}

fn with_own_addresses(
    site: &str,
    host: Ipv4Addr,
    [tls, plain]: [u16; 2],
    [first, second]: [SocketAddr; 2],
) -> String {
    let changes = [
        ("listen 80;", format!("listen {host}:{plain};")),
        ("listen [::]:80;", String::new()),
        ("listen 443 ", format!("listen {host}:{tls} ")),
        ("listen [::]:443 ssl;", String::new()),
        ("root /etc/nginx/vos-auth;", "root .;".to_owned()),
        ("10.0.0.11:8080", first.to_string()),
        ("10.0.0.12:8080", second.to_string()),
        ("/etc/nginx/tls/platform.verolabs.co.pem", "cert.pem".to_owned()),
        ("/etc/nginx/tls/platform.verolabs.co.key", "key.pem".to_owned()),
    ];
    with_changes(site.to_owned(), &changes.each_ref().map(|(from, to)| (*from, to.as_str())))
}

/// Applies the replacements, each of which must match.
fn with_changes(site: String, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(site, |site, (from, to)| {
        assert!(site.contains(from), "{from}");
        site.replace(from, to)
    })
}

/// Makes a new certificate. Clients trust this one and all earlier ones.
fn make_certificate(home: &Path) {
    let script = "set -e; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
        -subj /CN=platform.verolabs.co -addext subjectAltName=DNS:platform.verolabs.co -keyout new.key -out new.pem
        cat new.pem >>ca.pem; mv new.key key.pem; mv new.pem cert.pem";
    let made = Command::new("bash").args(["-c", script]).current_dir(home).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
