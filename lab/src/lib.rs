//! The lab of vos-auth: the code that the integration tests (`tests/it`), the trials and the
//! benchmarks share.
//!
//! Components are real where possible: PostgreSQL, Postfix, nginx, PgBouncer, Chromium and the
//! built program. The test doubles are servers that must fail when a test tells them to, such as
//! the SMTP relay. A value that has started processes stops them when it is dropped. Code that
//! cannot do its work panics or returns an error; then the test fails, or the program ends with an
//! error.
//!
//! | Looking for | Module |
//! |---|---|
//! | the service in this process, with a clock and a relay that the test controls | [`service`] |
//! | the built program: run to completion, or followed line by line | [`program`] |
//! | the same as one replica under load; two replicas behind nginx | [`replica`], [`host`] |
//! | the one SMTP double; a mail that it accepted | [`relay`], [`mail`] |
//! | real relays: Postfix, and aiosmtpd for XOAUTH2 | [`postfix`], [`aiosmtpd`] |
//! | the token endpoint for XOAUTH2 | [`tokens`] |
//! | the database of a test, its roles and URLs | [`database`] |
//! | a PostgreSQL cluster that may be killed | [`cluster`] |
//! | a PostgreSQL that requires TLS | [`encrypted`] |
//! | a PostgreSQL that is set up by the documents | [`machine`] |
//! | poolers: PgBouncer; one that drops settings | [`pgbouncer`], [`pooler`] |
//! | the one proxy that misbehaves, before PostgreSQL and before a relay | [`proxy`] |
//! | a connection to PostgreSQL that breaks at a given message | [`tripwire`] |
//! | nginx with `deploy/nginx.conf` | [`nginx`] |
//! | clients: HTTP, raw octets, a browser | [`client`], [`raw`], [`browser`] |
//! | the whole recovery flow of a client | [`journey`] |
//! | load: `start` at a constant rate; people who walk the whole flow | [`starts`], [`load`] |
//! | pending mails that an outage left | [`backlog`] |
//! | the comparison of every 200 with every mail | [`ledger`] |
//! | a double of Kratos | [`kratos`] |
//! | receivers of traces, and of events | [`receiver`], [`webhook`] |
//! | a network, a full disk, certificates | [`mod@line`], [`small_disk`], [`certificate`] |
//! | what a machine lacks; folders, ports and commands | [`needs`], [`place`] |
//! | the benchmarks | [`benchmarks`] |
//!
//! The trials are in `main.rs` and `trials/`, which only the binary `lab` compiles.

#![expect(
    missing_docs,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::return_self_not_must_use,
    reason = "the callers are tests: a panic fails them, and the names say the rest"
)]

pub mod aiosmtpd;
pub mod backlog;
pub mod benchmarks;
pub mod browser;
pub mod certificate;
pub mod client;
pub mod cluster;
pub mod database;
pub mod encrypted;
pub mod host;
pub mod journey;
pub mod kratos;
pub mod ledger;
pub mod line;
pub mod load;
pub mod machine;
pub mod mail;
pub mod needs;
pub mod nginx;
pub mod pgbouncer;
pub mod place;
pub mod pooler;
pub mod postfix;
pub mod postfix_files;
pub mod program;
pub mod proxy;
pub mod raw;
pub mod receiver;
pub mod relay;
pub mod replica;
pub mod service;
pub mod small_disk;
pub mod starts;
pub mod tokens;
pub mod tripwire;
pub mod webhook;

use std::time::Duration;

use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};

pub use self::service::{Service, Setup, metric};

/// Why a program ended with an error.
pub type Failure = Box<dyn std::error::Error>;

/// The longest time to wait for anything. After that, the test fails.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The real time, for values that PostgreSQL and Postfix compare with their own clocks.
#[expect(clippy::disallowed_methods, reason = "tests begin at the present")]
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// Runs a program to completion, or until SIGTERM or SIGINT. In both cases, everything that it
/// started is stopped.
pub fn run(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(async {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            ended = work => ended,
            _ = terminate.recv() => Err("stopped".into()),
            _ = interrupt.recv() => Err("stopped".into()),
        }
    });
    runtime.shutdown_background();
    ended
}
