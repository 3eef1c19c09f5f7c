//! The benchmarks. They measure, and fail only if mails or requests are missing. `cargo bench` runs
//! them by the short files in `benches/`; `lab start` and `lab courier` do the same.

pub mod courier;
pub mod start;

use clap::{Args, Parser};

use crate::Failure;

#[derive(Parser)]
struct Bench<O: Args> {
    #[command(flatten)]
    options: O,
    /// What cargo gives to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// All that a file in `benches/` has to call.
pub fn run<O: Args, F>(benchmark: impl FnOnce(O) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    crate::run(benchmark(Bench::parse().options))
}
