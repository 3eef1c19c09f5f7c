//! `cargo bench --bench start`: the benchmark is in `lab/src/benchmarks/start/mod.rs`.

fn main() -> Result<(), vos_auth_lab::Failure> {
    vos_auth_lab::benchmarks::run(vos_auth_lab::benchmarks::start::run)
}
