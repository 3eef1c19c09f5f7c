//! Processes that are killed together: when the first process of a PID namespace ends, the kernel
//! kills all others in it. Needs root.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use vos_auth_lab::Failure;

pub struct Namespace {
    unshare: Child,
    /// The id of the namespace's first process, as seen from outside.
    first: String,
}

impl Namespace {
    /// Runs `script` with bash until the value is dropped, or until this process ends in any way.
    /// Its output is appended to `log`.
    pub async fn start(script: &str, log: &Path) -> Result<Self, Failure> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["bash", "-c", script]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut unshare = command.spawn()?;
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        loop {
            let first = std::fs::read_to_string(&children)?.trim().to_owned();
            if !first.is_empty() {
                return Ok(Self { unshare, first });
            }
            if unshare.try_wait()?.is_some() {
                return Err("a PID namespace cannot be made; is this root?".into());
            }
            tokio::task::yield_now().await;
        }
    }

    /// Freezes all processes except the first one, which only waits for the others.
    pub fn falls_silent(&self) -> Result<(), Failure> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first, "--pid", "bash", "-c", "kill -STOP -1"]);
        if command.status()?.success() { Ok(()) } else { Err("a machine cannot be frozen".into()) }
    }

    /// Kills all processes with one signal, and returns when they have ended.
    pub fn is_killed(&mut self) {
        let _ = Command::new("kill").args(["-KILL", &self.first]).stderr(Stdio::null()).status();
        let _ = self.unshare.wait();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.is_killed();
    }
}
