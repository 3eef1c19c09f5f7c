//! Requirements of tests that not every machine meets. A test whose requirement is missing is
//! skipped with a message, or fails where every test has to run.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Whether this test can run. If not, prints `otherwise`, which says what is missing and how to get
/// it.
///
/// If `REQUIRE_ALL_TESTS` is set, as `.ci/run` does for root, the test fails with `otherwise` as
/// its message.
pub fn has(met: bool, otherwise: &str) -> bool {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let must = std::env::var("REQUIRE_ALL_TESTS").is_ok_and(|value| !value.is_empty());
    assert!(met || !must, "{otherwise}");
    if !met {
        // Not by `eprintln!`: cargo shows its output only if the test fails.
        let _ = writeln!(std::io::stderr(), "left out: {test}: {otherwise}");
    }
    met
}

/// Whether a program that `make test` installs is at `path`.
pub fn has_program(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    has(path.exists(), &format!("{} is missing: `make test` installs it", path.display()))
}

/// Whether the tests run as root, which `what` needs.
pub fn has_root(what: &str) -> bool {
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    has(root, &format!("{what} needs root: run the tests as root"))
}
