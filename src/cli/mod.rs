//! The command line: `serve`, `dev`, `config`, `doctor`, `migrate`, `account`, `request`,
//! `operator`, `key`, `passwords`, `outbox`, `event`, `mail`, `bounce`, `healthcheck`,
//! `completions`, `man`.

mod account;
mod arguments;
mod bounce;
mod confirm;
mod dev;
mod doctor;
mod event;
mod generate;
mod key;
mod mail;
mod migrate;
mod operator;
mod outbox;
mod passwords;
mod progress;
mod request;
mod settings;

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgMatches, Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use sqlx::PgConnection;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt, registry};

use self::arguments::Arguments;
use crate::app::{App, Limits};
use crate::clock::Clock;
use crate::config::{self, Config, ConfigError, ConfigErrors, Secrets, TraceSettings};
use crate::database::Endpoint;
use crate::http::tls::Tls;
use crate::parts::Parts;
use crate::password::Password;
use crate::server::Server;
use crate::traces::Traces;
use crate::{database, terminal};

type Failure = Box<dyn std::error::Error>;

/// The authentication host of Vero OMS: password recovery by a one-time code.
///
/// Secrets are read from the environment, or from a file that NAME_FILE names: DATABASE_URL,
/// RECOVERY_SECRETS and DEVICE_SECRETS (ID:BASE64 of 32 random bytes, the newest first, separated
/// by commas), SMTP_RELAYS (URLs in order of preference: smtp://USER:PASSWORD@HOST:587 for
/// STARTTLS, smtps://… for TLS from the first byte).
#[derive(Debug, Parser)]
#[command(name = "vos-auth", version, about, long_about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service
    Serve {
        #[command(flatten)]
        config: Box<Config>,
        #[command(flatten)]
        log: Log,
        #[command(flatten)]
        traces: TraceSettings,
    },
    /// Run the service on this machine with demo accounts, secrets and a mailbox. Needs only
    /// DATABASE_URL
    Dev {
        /// The port of the API on localhost
        #[arg(long, env, default_value = "8080")]
        port: u16,
        /// Turn off all rate limits, for tools that send many requests
        #[arg(long, env, value_parser = BoolishValueParser::new())]
        dev_no_limits: bool,
        #[command(flatten)]
        config: Box<Config>,
        #[command(flatten)]
        log: Log,
        #[command(flatten)]
        traces: TraceSettings,
    },
    /// Check the settings
    #[command(subcommand)]
    Config(settings::ConfigCommand),
    /// Check settings, keys, PostgreSQL, relays, clock and ports, and say what to do about each
    /// problem. Takes the settings and secrets of `serve`. Sends no email and changes nothing
    Doctor(Box<doctor::Doctor>),
    /// Migrate the database of DATABASE_URL to the schema of this version. Can be interrupted and
    /// run again
    Migrate,
    /// Manage accounts
    #[command(subcommand)]
    Account(account::AccountCommand),
    /// List, approve and cancel what needs two operators: another address, the ticket of a protected
    /// account
    #[command(subcommand)]
    Request(request::RequestCommand),
    /// Manage the operators of the admin API
    #[command(subcommand)]
    Operator(operator::OperatorCommand),
    /// Manage the keys that sign JWTs
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Make the filter of passwords known from breaches
    #[command(subcommand)]
    Passwords(passwords::PasswordsCommand),
    /// List pending emails, and send notices again
    #[command(subcommand)]
    Outbox(outbox::OutboxCommand),
    /// List events that webhooks did not get, and send them again
    #[command(subcommand)]
    Event(event::EventCommand),
    /// Test the relays, and preview emails
    #[command(subcommand)]
    Mail(mail::MailCommand),
    /// Read a returned message (bounce) from standard input, as Postfix, procmail and Sieve pass
    /// it, and mark the account whose address bounces. Needs DATABASE_URL and DEVICE_SECRETS
    Bounce(bounce::Bounce),
    /// Check that the service at HTTP_ADDR is alive, for the health check of a container
    Healthcheck {
        /// The address where `serve` listens
        #[arg(long, env, default_value = "127.0.0.1:8080")]
        http_addr: SocketAddr,
    },
    /// Print a script that completes this command line in a shell
    Completions(generate::Completions),
    /// Write a man page of each command, for packages
    #[command(hide = true)]
    Man(generate::Man),
}

#[derive(Clone, Debug, Args)]
struct Log {
    /// The format of log lines. Default: pretty on a terminal, json elsewhere
    #[arg(long, env, help_heading = "Log")]
    log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as
    /// info,vos_auth::courier=debug
    #[arg(long, env, default_value = "info", help_heading = "Log", value_parser = log_filter)]
    log_level: String,
}

fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Json,
    Pretty,
}

/// Parses the command line and runs the command. A failure prints one sentence to standard error,
/// or one for each setting that cannot be used. The exit code is then 1; 2 for a bad command line
/// or a setting that cannot be parsed (but 1 for `config check` and `doctor`); 75 for a `bounce`
/// that the mail server should run again.
#[must_use]
pub fn main() -> ExitCode {
    let Arguments { cli, matches, problems } = match arguments::read() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let failure = match cli.command {
        Command::Bounce(_) => ExitCode::from(bounce::EX_TEMPFAIL),
        Command::Serve { .. } if !problems.is_empty() => ExitCode::from(arguments::BAD_ARGUMENTS),
        _ => ExitCode::FAILURE,
    };
    let reports_all = matches!(cli.command, Command::Serve { .. } | Command::Config(_) | Command::Doctor(_));
    if !reports_all && !problems.is_empty() {
        return arguments::print(&problems);
    }
    match run(cli.command, &matches, problems) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<ConfigErrors>() {
                Some(problems) => {
                    arguments::print(problems);
                }
                None => terminal::error_line(format_args!("vos-auth: {error}")),
            }
            failure
        }
    }
}

fn run(command: Command, matches: &ArgMatches, mut problems: ConfigErrors) -> Result<(), Failure> {
    match command {
        Command::Serve { config, log, traces } => run_to_completion(async {
            let traces = problems.take(log.install(&traces)).flatten();
            // Boxed, because the future is large.
            traced(traces, Box::pin(serve(*config, problems))).await
        }),
        Command::Dev { port, dev_no_limits, config, log, traces } => run_to_completion(async {
            let traces = log.install(&traces)?;
            let limits = if dev_no_limits { Limits::Off } else { Limits::On };
            traced(traces, Box::pin(dev::run(*config, port, limits, stop_signal()?))).await
        }),
        Command::Config(settings::ConfigCommand::Check(check)) => {
            run_to_completion(async { settings::check(&check, matches, problems) })
        }
        Command::Doctor(doctor) => {
            let runtime = runtime()?;
            let found = runtime.block_on(async {
                let stop = stop_signal()?;
                let checks = Box::pin(doctor::run(*doctor, problems));
                stop.run_until_cancelled(checks).await.unwrap_or_else(|| {
                    terminal::progress("");
                    Err("stopped before all checks have ended".into())
                })
            });
            // `shutdown_background` does not wait for a name look-up that has timed out.
            runtime.shutdown_background();
            found
        }
        Command::Migrate => run_to_completion(migrate::run()),
        Command::Account(command) => run_to_completion(account::run(command)),
        Command::Request(command) => run_to_completion(request::run(command)),
        Command::Operator(command) => run_to_completion(operator::run(command)),
        Command::Passwords(command) => run_to_completion(passwords::run(command)),
        Command::Outbox(command) => run_to_completion(outbox::run(command)),
        Command::Event(command) => run_to_completion(event::run(command)),
        Command::Mail(mail::MailCommand::Test(test)) => run_to_completion(mail::test(&test)),
        Command::Mail(mail::MailCommand::Preview(preview)) => mail::preview(&preview),
        Command::Mail(mail::MailCommand::DkimRecord(record)) => mail::dkim_record(&record),
        Command::Bounce(bounce) => run_to_completion(bounce::run(bounce)),
        Command::Key(command) => key::run(command),
        Command::Healthcheck { http_addr } => healthcheck(http_addr),
        Command::Completions(completions) => generate::completions(&completions),
        Command::Man(man) => generate::man(&man),
    }
}

/// Runs a command on one thread for each core but one. `serve` leaves that core to group commits
/// and the courier (docs/decisions/0021).
fn run_to_completion(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    runtime()?.block_on(work)
}

fn runtime() -> std::io::Result<Runtime> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let workers = (cores - 1).max(1);
    tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()
}

/// Runs a command, then exports its last spans.
async fn traced<T>(traces: Option<Traces>, work: impl Future<Output = T>) -> T {
    let done = work.await;
    if let Some(traces) = traces {
        traces.shut_down().await;
    }
    done
}

async fn serve(config: Config, mut problems: ConfigErrors) -> Result<(), Failure> {
    let parts = read_parts(&config, &mut problems);
    let parts = problems.or(parts.complete())?;
    let (app, courier) = App::of_parts(config, parts, Clock::system(), Limits::On);
    let server = Server::bind(app, courier)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        http_addr = %server.address()?,
        metrics_addr = %server.metrics_address()?,
        admin_addr = server.admin_address()?.map(tracing::field::display),
        "serving"
    );
    Ok(server.run(stop_signal()?).await?)
}

/// Reads everything that `serve` needs, and adds what is missing or wrong to `problems`.
fn read_parts(config: &Config, problems: &mut ConfigErrors) -> Parts {
    config.require(problems);
    let secrets = Secrets::from_environment(problems);
    problems.take(Tls::read(&config.admin));
    Parts::read(config, secrets, problems)
}

async fn connect() -> Result<PgConnection, Failure> {
    connect_to(&Endpoint::new(database::options(&config::database_url()?)?)).await
}

async fn connect_to(endpoint: &Endpoint) -> Result<PgConnection, Failure> {
    endpoint
        .connect()
        .await
        .map_err(|error| ConfigError::new("DATABASE_URL", format!("cannot be connected to: {error}")).into())
}

/// Reads a password from the first line of standard input.
fn password_from_stdin() -> Result<Password, Failure> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let typed = line.trim_end_matches(['\r', '\n']);
    if typed.is_empty() {
        return Err("--password-stdin found no password on standard input".into());
    }
    Ok(Password::new(typed))
}

/// Prints a JSON value on one line.
fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    terminal::line(serde_json::to_string(value)?);
    Ok(())
}

/// Sends one request over a plain socket, because a health check needs no HTTP client.
fn healthcheck(address: SocketAddr) -> Result<(), Failure> {
    let timeout = Duration::from_secs(3);
    let host = if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
    let address = SocketAddr::new(host, address.port());
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    match &status[9..] {
        b"200" => Ok(()),
        other => Err(format!("/healthz at {address} answered {}", String::from_utf8_lossy(other)).into()),
    }
}

/// A token that SIGTERM or Ctrl-C cancels.
fn stop_signal() -> Result<CancellationToken, Failure> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        stopping.cancel();
    });
    Ok(stop)
}

impl Log {
    /// Sets up log lines and traces. Lines contain no fields of spans, and without traces no span
    /// is created.
    fn install(&self, traces: &TraceSettings) -> Result<Option<Traces>, ConfigError> {
        let filter = EnvFilter::try_new(&self.log_level)
            .map_err(|error| ConfigError::new("LOG_LEVEL", format!("cannot be read: {error}")))?;
        let lines = fmt::layer().with_writer(std::io::stderr);
        let terminal = std::io::stderr().is_terminal();
        let lines =
            match self.log_format.unwrap_or(if terminal { LogFormat::Pretty } else { LogFormat::Json }) {
                LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
                LogFormat::Pretty => lines.with_ansi(terminal).boxed(),
            };
        let not_span = filter_fn(|metadata| !metadata.is_span()).with_max_level_hint(LevelFilter::TRACE);
        let quotes_no_rows = filter_fn(|metadata| {
            !database::QUOTING_TARGETS.iter().any(|target| metadata.target().starts_with(target))
        });
        let quotes_no_rows = quotes_no_rows.with_max_level_hint(LevelFilter::TRACE);
        let lines = registry().with(lines.with_filter(filter.and(not_span).and(quotes_no_rows)));
        let traces = Traces::new(traces, Handle::current())?;
        match &traces {
            Some(traces) => lines.with(traces.layer()).init(),
            None => lines.init(),
        }
        Ok(traces)
    }
}
