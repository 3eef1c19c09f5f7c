//! Tests that need what not every machine has: left out with a word, or red where every test has to run.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Whether this test can run. `otherwise` says what is missing, and what to do about it; with `REQUIRE_ALL_TESTS` in the
/// environment, as `.ci/run` has it, the test fails with that.
pub fn has(met: bool, otherwise: &str) -> bool {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let must = std::env::var("REQUIRE_ALL_TESTS").is_ok_and(|value| !value.is_empty());
    assert!(met || !must, "{otherwise}");
    if !met {
        // To standard error itself: cargo keeps what a test prints by macros, unless it fails.
        let _ = writeln!(std::io::stderr(), "left out: {test}: {otherwise}");
    }
    met
}

/// Whether a program is there that `make test` installs.
pub fn has_program(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    has(path.exists(), &format!("{} is missing: `make test` installs it", path.display()))
}

/// Whether this is root, which `what` needs.
pub fn has_root(what: &str) -> bool {
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    has(root, &format!("{what} needs root: run the tests as root"))
}
