//! `cargo bench --bench courier`: the benchmark is in `lab/src/benchmarks/courier/mod.rs`.

fn main() -> Result<(), vos_auth_lab::Failure> {
    vos_auth_lab::benchmarks::run(vos_auth_lab::benchmarks::courier::run)
}
