//! aiosmtpd, a third-party SMTP server, as a relay that requires XOAUTH2. The handler in
//! `xoauth2_server.py` asks the token endpoint whether a token is valid.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::tokens::TokenEndpoint;
use crate::{PATIENCE, certificate, needs, place};

/// Whether aiosmtpd is installed. If not, the test is skipped or fails, as [`needs::has`] says.
pub fn is_installed() -> bool {
    needs::has_program("/usr/lib/python3/dist-packages/aiosmtpd")
}

pub struct Aiosmtpd {
    folder: PathBuf,
    port: u16,
    child: Child,
    lines: Receiver<String>,
}

impl Aiosmtpd {
    /// Starts the relay. It accepts the tokens that are valid at `endpoint`.
    pub fn start(endpoint: &TokenEndpoint) -> Self {
        let folder = place::folder("aiosmtpd");
        certificate::make(&folder, "localhost");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/xoauth2_server.py");
        // Debian's own Python, because it finds Debian's package of aiosmtpd.
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .arg(&folder)
            .arg(endpoint.introspection())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let port = lines.recv_timeout(PATIENCE).ok().and_then(|port| port.parse().ok()).expect("a port");
        Self { folder, port, child, lines }
    }

    pub fn url(&self) -> String {
        format!("smtp://courier%40example.com@localhost:{}?auth=xoauth2", self.port)
    }

    /// The path of the relay's CA certificate.
    pub fn ca(&self) -> String {
        self.folder.join("ca.pem").display().to_string()
    }

    /// Waits for the next mail and returns it, with the user who sent it.
    pub fn mail(&self) -> serde_json::Value {
        let line = self.lines.recv_timeout(PATIENCE).expect("a mail comes");
        serde_json::from_str(&line).expect("a mail")
    }
}

impl Drop for Aiosmtpd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
