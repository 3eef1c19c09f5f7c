//! The benchmarks. They measure, and compare no result with a bound. They fail if something does
//! not work, for example if a mail is lost. `cargo bench` runs them through the files in
//! `benches/`; `lab start` and `lab courier` run the same code.

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

/// Runs a benchmark with the options of the command line, for the `main` of a file in `benches/`.
pub fn run<O: Args, F>(benchmark: impl FnOnce(O) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    crate::run(benchmark(Bench::parse().options))
}
