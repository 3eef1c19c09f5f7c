//! Password policy, and the cost of hashing.

use std::path::PathBuf;

use super::bounds::{hashing_memory_kib, password_min_chars};

/// Password policy, and the cost of hashing.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Passwords")]
pub struct PasswordSettings {
    /// Minimum length of a new password in characters (Unicode code points). NIST SP 800-63B-4
    /// requires 15 where the password is the only factor
    #[arg(long, env, default_value = "15", value_parser = password_min_chars())]
    pub password_min_chars: u16,

    /// The file of passwords known from breaches that `vos-auth passwords build` writes: new
    /// passwords in it are refused (NIST SP 800-63B-4 §3.1.1.2). It is read into memory at startup:
    /// 2.25 GB for a billion passwords. Default: none
    #[arg(long, env)]
    pub password_blocklist: Option<PathBuf>,

    /// Memory of one Argon2id hash in KiB. After a change, older hashes are replaced at the next
    /// login if they fit into HASHING_MEMORY_KIB
    #[arg(long, env, default_value = "19456", value_parser = clap::value_parser!(u32).range(7168..=1_048_576))]
    pub argon2_memory_kib: u32,

    /// Passes of one Argon2id hash over its memory. Passes times ARGON2_MEMORY_KIB is at most
    /// 4194304, about 100 times the default
    #[arg(long, env, default_value = "2", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub argon2_passes: u32,

    /// Lanes of one Argon2id hash
    #[arg(long, env, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub argon2_lanes: u32,

    /// Passwords that are hashed at once. Default: one for each core. One more thread computes only
    /// hashes of the configured cost, so that they do not wait for imported ones
    #[arg(long, env, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub hashing_threads: Option<u16>,

    /// Memory in KiB that all imported hashes together may take while they are verified. A hash
    /// that needs more is not imported, and an account that has one cannot sign in until it is
    /// recovered
    #[arg(long, env, default_value = "262144", value_parser = hashing_memory_kib())]
    pub hashing_memory_kib: u32,

    /// Requests that may wait for a hash; further ones are answered 503 at once. At 20 ms a hash
    /// and 2 threads, the last of 32 waits 320 ms
    #[arg(long, env, default_value = "32", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub hashing_queue: u16,
}
