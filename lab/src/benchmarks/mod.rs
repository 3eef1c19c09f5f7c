//! The benchmarks: they measure, and pass or fail nothing but their own accounts. `cargo bench` runs them by the thin files in
//! `benches/`, and `lab start` and `lab courier` do the same.

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

/// The whole of a file in `benches/`.
pub fn run<O: Args, F>(benchmark: impl FnOnce(O) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    crate::run(benchmark(Bench::parse().options))
}
