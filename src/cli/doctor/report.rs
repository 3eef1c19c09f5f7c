//! What `vos-auth doctor` found: a row for each check.

use serde::Serialize;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::cli::Failure;
use crate::terminal;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// The service works, but not as it should.
    Warning,
    Failed,
}

/// One row of the report.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    #[serde(rename = "check")]
    name: String,
    state: State,
    seen: String,
    /// What to do now.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<String>,
}

impl Check {
    pub(super) fn ok(name: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Ok, seen: seen.into(), action: None }
    }

    pub(super) fn warning(
        name: impl Into<String>,
        seen: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        Self { state: State::Warning, action: Some(action.into()), ..Self::ok(name, seen) }
    }

    pub(super) fn failed(
        name: impl Into<String>,
        seen: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        Self { state: State::Failed, ..Self::warning(name, seen, action) }
    }
}

/// The rows so far. They are printed as soon as they are known, but JSON is printed at the end.
pub(super) struct Report {
    checks: Vec<Check>,
    as_json: bool,
}

impl Report {
    pub(super) fn new(as_json: bool) -> Self {
        Self { checks: Vec::new(), as_json }
    }

    pub(super) fn add(&mut self, checks: impl IntoIterator<Item = Check>) {
        for check in checks {
            if !self.as_json {
                print(&check);
            }
            self.checks.push(check);
        }
    }

    /// Waits for a group of checks, and adds their rows. Each check bounds its own time.
    pub(super) async fn wait(&mut self, what: &str, checks: JoinHandle<Vec<Check>>) {
        terminal::progress(&format!("checking {what} …"));
        let found = checks.await.unwrap_or_else(|error| {
            vec![Check::failed(what, format!("the check has ended: {error}"), "Report this as a defect.")]
        });
        terminal::progress("");
        self.add(found);
    }

    /// Prints the summary, or the whole report if it is JSON.
    ///
    /// # Errors
    ///
    /// How many checks failed, if any.
    pub(super) fn finish(self) -> Result<(), Failure> {
        let count = |state| self.checks.iter().filter(|check| check.state == state).count();
        let (failed, warnings) = (count(State::Failed), count(State::Warning));
        if self.as_json {
            let found = json!({ "ok": failed == 0, "checks": self.checks });
            serde_json::to_string_pretty(&found)?.lines().for_each(terminal::line);
        }
        if failed > 0 {
            return Err(format!("{failed} of {} checks failed", self.checks.len()).into());
        }
        if !self.as_json {
            let warned = if warnings == 0 { String::new() } else { format!(", {warnings} with a warning") };
            terminal::line(format_args!("{} checks passed{warned}", self.checks.len()));
        }
        Ok(())
    }
}

fn print(check: &Check) {
    let state = match check.state {
        State::Ok => "ok",
        State::Warning => "warning",
        State::Failed => "FAILED",
    };
    terminal::line(format_args!("{state:8} {:20} {}", check.name, check.seen));
    if let Some(action) = &check.action {
        terminal::line(format_args!("{:29} -> {action}", ""));
    }
}
