//! Properties: random sequences of calls beside a plain model of what they do. A sequence has addresses of its own in one
//! service and one database, so that thousands are cheap; `PROPTEST_CASES` says how many each property runs. What fails is
//! shown in its shortest form.

mod non_interference;
mod recovery;
mod throttle;

use std::fmt::Debug;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Handle;

/// Settings under which no budget of a network comes in between.
const BUSY: &[&str] =
    &["--network-burst=1000000", "--network-per-minute=1000000", "--outbox-poll-interval=200ms"];

/// Runs a property with as many made-up values as `PROPTEST_CASES` says, or `cases`. proptest waits for its verdict, so
/// that is done beside the runtime of the test.
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
