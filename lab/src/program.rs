//! The built program as an operator runs it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::PATIENCE;
use crate::client::Client;
use crate::place;
pub use crate::place::built;

/// A secret for tests: the key's id, and 32 bytes in base64.
pub const SECRET: &str = "test:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

const ORIGIN: (&str, &str) = ("PUBLIC_ORIGIN", "https://platform.verolabs.co");
const SIGN_IN: (&str, &str) = ("SIGN_IN_URL", "/login");
const ANY_PORTS: [(&str, &str); 2] = [("HTTP_ADDR", "127.0.0.1:0"), ("METRICS_ADDR", "127.0.0.1:0")];

/// A folder with a key for JWTs. The built program makes it once for each test process.
pub fn keys_folder() -> &'static str {
    static FOLDER: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        let folder = place::temporary(&format!("jwt-keys-{}", std::process::id()));
        let made = run(&["key", "generate", "--jwt-keys", &folder], &[]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        folder
    });
    &FOLDER
}

/// The complete environment of `serve`, with the changes of a test. An empty value removes a
/// variable.
pub fn serve_environment<'a>(
    database_url: &'a str,
    relay: &'a str,
    changes: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let mut environment = vec![
        ORIGIN,
        SIGN_IN,
        ("DATABASE_URL", database_url),
        ("RECOVERY_SECRETS", SECRET),
        ("DEVICE_SECRETS", SECRET),
        ("JWT_KEYS", keys_folder()),
        ("SMTP_RELAYS", relay),
        ("DRAIN_DELAY", "0s"),
        ("LOG_FORMAT", "json"),
    ];
    environment.extend(ANY_PORTS);
    for (name, value) in changes {
        environment.retain(|(known, _)| known != name);
        if !value.is_empty() {
            environment.push((name, value));
        }
    }
    environment
}

/// A command for the program. It gets only this environment, and nothing of the test suite's.
/// `under` is a command that runs the program, such as `prlimit --nofile=600`; mostly it is empty.
fn command(under: &[&str], arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let program = built().to_str().expect("a path in UTF-8");
    let mut line = under.iter().copied().chain([program]).chain(arguments.iter().copied());
    let mut command = Command::new(line.next().expect("the program at least"));
    command.args(line).env_clear().envs(environment.iter().copied());
    command
}

pub fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    run_with_input(arguments, environment, "")
}

pub fn run_under(under: &[&str], arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    run_to_completion(command(under, arguments, environment), "")
}

pub fn run_with_input(arguments: &[&str], environment: &[(&str, &str)], input: &str) -> Output {
    run_to_completion(command(&[], arguments, environment), input)
}

/// Runs the program on a terminal, where `typed` is typed. Returns what the terminal shows, and
/// whether the program succeeded.
pub fn run_on_terminal(arguments: &[&str], environment: &[(&str, &str)], typed: &str) -> (String, bool) {
    let program = built().to_str().expect("a path in UTF-8");
    let quoted = |argument: &&str| format!("'{}'", argument.replace('\'', "'\\''"));
    let line: Vec<_> = [program].iter().chain(arguments).map(quoted).collect();
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &line.join(" "), "/dev/null"]).env_clear().envs(environment.iter().copied());
    terminal.env("PATH", "/usr/bin:/bin");
    let ended = run_to_completion(terminal, typed);
    (String::from_utf8_lossy(&ended.stdout).replace("\r\n", "\n"), ended.status.success())
}

/// Runs the command to completion. Kills it after [`PATIENCE`], so that its status is a failure.
fn run_to_completion(mut command: Command, input: &str) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program whose output is not read blocks when the pipe is full, at 64 KiB.
    let stdout = read_in_background(child.stdout.take().unwrap());
    let stderr = read_in_background(child.stderr.take().unwrap());
    // The error is ignored: a program that does not read its input may have ended already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
        }
        std::thread::yield_now();
    }
    let status = child.wait().unwrap();
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn read_in_background(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut output = Vec::new();
        from.read_to_end(&mut output).unwrap();
        output
    })
}

/// Waits until the program has found its relay usable. Async, because that relay may be a task of
/// the test.
pub async fn has_relay(client: &Client) {
    let found = async { while client.get("/readyz").await.body["parts"]["mail"] != "ok" {} };
    tokio::time::timeout(PATIENCE, found).await.expect("a usable relay");
}

/// A running program. Killed when dropped.
pub struct Program {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Program {
    /// Starts the program and reads its standard output and standard error.
    pub fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_under(&[], arguments, environment)
    }

    /// Like [`Self::start`], but the command `under` runs the program.
    pub fn start_under(under: &[&str], arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::follow(command(under, arguments, environment))
    }

    /// Like [`Self::start`], with another release, whose binary is `program`.
    pub fn start_of(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(environment.iter().copied());
        Self::follow(command)
    }

    /// Starts the program and discards its outputs, so that reading them does not disturb a
    /// measurement.
    pub fn start_unheard(under: &[&str], arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = command(under, arguments, environment);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { child, lines: channel().1, seen: Vec::new() }
    }

    fn follow(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in outputs {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits for a line that contains `part`, and returns it. Earlier lines count too, because the
    /// two outputs have no common order.
    pub fn line_with(&mut self, part: &str) -> String {
        self.line_if_any(part).unwrap_or_else(|seen| panic!("no line with {part:?} in:\n{seen}"))
    }

    /// Like [`Self::line_with`]. If the program ends without such a line, or writes none within
    /// [`PATIENCE`], the error is everything that it wrote.
    pub fn line_if_any(&mut self, part: &str) -> Result<String, String> {
        if let Some(line) = self.seen.iter().find(|line| line.contains(part)) {
            return Ok(line.clone());
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.map_err(|_| self.seen.join("\n"))?;
            self.seen.push(line.clone());
            if line.contains(part) {
                return Ok(line);
            }
        }
    }

    /// From now on, prints the program's output on standard error.
    pub fn is_printed(&mut self) {
        let lines = std::mem::replace(&mut self.lines, channel().1);
        std::thread::spawn(move || lines.iter().for_each(|line| eprintln!("{line}")));
    }

    /// The address of the API, from the program's log in JSON.
    pub fn address(&mut self) -> std::net::SocketAddr {
        self.address_of("http_addr")
    }

    /// The address of the metrics.
    pub fn metrics_address(&mut self) -> std::net::SocketAddr {
        self.address_of("metrics_addr")
    }

    /// The address of the admin API.
    pub fn admin_address(&mut self) -> std::net::SocketAddr {
        self.address_of("admin_addr")
    }

    fn address_of(&mut self, name: &str) -> std::net::SocketAddr {
        let line: serde_json::Value = serde_json::from_str(&self.line_with("\"serving\"")).unwrap();
        line[name].as_str().unwrap().parse().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the program with SIGKILL.
    pub fn is_killed(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, name: &str) {
        let status =
            Command::new("bash").args(["-c", &format!("kill {name} {}", self.child.id())]).status().unwrap();
        assert!(status.success());
    }

    /// Waits until the program ends. Returns all lines that it wrote, and whether it succeeded.
    pub fn ends(mut self) -> (Vec<String>, bool) {
        let well = self.child.wait().unwrap().success();
        self.seen.extend(self.lines.iter());
        (std::mem::take(&mut self.seen), well)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
