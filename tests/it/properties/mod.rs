//! Property tests: random sequences of calls, compared with a plain model. Each sequence has its
//! own addresses in a shared service, so that thousands are cheap. `PROPTEST_CASES` sets the number
//! per property. proptest shrinks failures.

mod non_interference;
mod recovery;
mod throttle;

use std::fmt::Debug;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Handle;

/// Settings under which the network's rate limit does not interfere.
const BUSY: &[&str] =
    &["--network-burst=1000000", "--network-per-minute=1000000", "--outbox-poll-interval=200ms"];

/// Runs a property on `PROPTEST_CASES` random values, or on `cases`. proptest blocks, so it runs
/// outside the test's async runtime.
async fn holds<S>(values: S, cases: u32, property: impl AsyncFn(S::Value) + Send + 'static)
where
    S: Strategy<Value: Debug> + Send + 'static,
{
    let runtime = Handle::current();
    let checked = tokio::task::spawn_blocking(move || {
        let of_environment = std::env::var_os("PROPTEST_CASES").map(|_| Config::default().cases);
        let cases = of_environment.unwrap_or(cases);
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
        let outcome = runner.run(&values, |value| {
            runtime.block_on(property(value));
            Ok(())
        });
        outcome.map_err(|error| error.to_string())
    });
    if let Err(error) = checked.await.unwrap() {
        panic!("{error}");
    }
}
