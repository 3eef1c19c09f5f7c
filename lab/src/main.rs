//! `lab`: trials, which pass or fail, and benchmarks, which measure. `lab/README.md` says what each
//! needs and how long it takes.

mod trials;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use vos_auth_lab::{Failure, benchmarks, place, run};

use self::trials::{blind, chaos, cost, failover, hostile, import, upgrade};

/// Trials and benchmarks of vos-auth, on real parts
#[derive(Parser)]
#[command(name = "lab")]
struct Lab {
    /// The service's binary. Default: the one beside this program
    #[arg(long)]
    service: Option<PathBuf>,
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    Start(benchmarks::start::Options),
    Courier(benchmarks::courier::Options),
    Cost(cost::Options),
    Import(import::Options),
    Chaos(chaos::Options),
    Failover(failover::Options),
    Upgrade(upgrade::Options),
    Hostile(hostile::Options),
    Blind(blind::Options),
}

fn main() -> Result<(), Failure> {
    let Lab { service, program } = Lab::parse();
    if let Some(service) = service {
        place::uses(service.canonicalize()?);
    }
    match program {
        Program::Start(options) => run(benchmarks::start::run(options)),
        Program::Courier(options) => run(benchmarks::courier::run(options)),
        Program::Cost(options) => run(cost::run(options)),
        Program::Import(options) => run(import::run(options)),
        Program::Chaos(options) => run(chaos::run(options)),
        Program::Failover(options) => run(failover::run(options)),
        Program::Upgrade(options) => run(upgrade::run(options)),
        Program::Hostile(options) => run(hostile::run(options)),
        Program::Blind(options) => run(blind::run(options)),
    }
}
