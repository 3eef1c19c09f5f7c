//! Whether the service can work with PostgreSQL, and why it cannot: asked by the service itself all the time, and by
//! `/readyz`. The log, the metrics and `/readyz` say the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::Mutex;

use super::{KeptConnection, MIGRATOR, cause, in_time, settings};
use crate::clock::{Clock, MAX_SKEW};
use crate::metrics::Metrics;

/// How long the connection of the health check lasts. A new one soon meets a changed password or certificate.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(1);

/// What keeps the service from working, by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It works.
    Ok,
    /// PostgreSQL does not answer in time.
    Unreachable,
    /// PostgreSQL answers, but only reads: a standby, or a former primary.
    ReadOnly,
    /// The schema is older than this program: run `vos-auth migrate`.
    MigrationsMissing,
    /// The clocks of this machine and of PostgreSQL are more than a second apart.
    ClockSkewed,
    /// The session lacks settings that the service relies on, as behind a connection pooler.
    Settings,
}

impl Health {
    /// The name in `/readyz`, in metrics and in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unreachable => "unreachable",
            Self::ReadOnly => "read_only",
            Self::MigrationsMissing => "migrations_missing",
            Self::ClockSkewed => "clock_skewed",
            Self::Settings => "settings",
        }
    }

    /// What an error says of PostgreSQL.
    fn of(error: &sqlx::Error) -> Self {
        match error {
            // 42P01: the table of migrations is not there, so none has run.
            sqlx::Error::Database(error) if error.code().as_deref() == Some("42P01") => {
                Self::MigrationsMissing
            }
            _ => Self::Unreachable,
        }
    }

    /// What an operator should know, and do.
    const fn advice(self) -> &'static str {
        match self {
            Self::Ok => "PostgreSQL can be worked with again",
            Self::Unreachable => {
                "PostgreSQL does not answer: check the server, the network, and host and port of DATABASE_URL"
            }
            Self::ReadOnly => "PostgreSQL only reads: DATABASE_URL has to lead to the primary",
            Self::MigrationsMissing => "the schema is older than this program: run `vos-auth migrate`",
            Self::ClockSkewed => {
                "this machine's clock is over a second from PostgreSQL's: check NTP on both machines"
            }
            Self::Settings => {
                "the database session lacks settings that the service relies on: run the statements in `fix`"
            }
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    health: Health,
    /// Why, for the log: nothing of a row, of a client, of a secret.
    cause: String,
    /// Statements that an administrator of the database can run against it.
    fix: String,
}

impl Finding {
    fn just(health: Health) -> Self {
        Self { health, cause: String::new(), fix: String::new() }
    }

    fn of(error: &sqlx::Error) -> Self {
        Self { cause: cause(error), ..Self::just(Health::of(error)) }
    }
}

/// Checks PostgreSQL over a connection of its own, and says what changes.
#[derive(Debug)]
pub struct Monitor {
    clock: Clock,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    kept: KeptConnection,
    found: Finding,
    /// When the check began that found it.
    asked: Option<Instant>,
}

impl Monitor {
    /// Connects when it is first asked.
    #[must_use]
    pub fn new(options: &PgConnectOptions, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let kept = KeptConnection::new(options, CONNECTION_LIFETIME);
        let state = State { kept, found: Finding::just(Health::Ok), asked: None };
        Self { clock, metrics, state: Mutex::new(state) }
    }

    /// Asks PostgreSQL how it is, and compares its clock with this machine's. Who comes while others are asking shares the
    /// answer of the next check.
    pub async fn check(&self) -> Health {
        let came = Instant::now();
        let mut state = self.state.lock().await;
        if state.asked.is_some_and(|asked| asked >= came) {
            return state.found.health;
        }
        state.asked = Some(Instant::now());
        let found = in_time(look(&mut state.kept, &self.clock)).await;
        let found = found.unwrap_or_else(|error| Finding::of(&error));
        self.metrics.clock_skewed.set(i64::from(found.health == Health::ClockSkewed));
        if found != state.found {
            say(&found);
        }
        state.found = found;
        state.found.health
    }

    /// Asks a question over the connection of the health check.
    ///
    /// # Errors
    ///
    /// What PostgreSQL answers; `PoolTimedOut` if it does not in time.
    pub async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let mut state = self.state.lock().await;
        in_time(async {
            let mut connection = state.kept.take().await?;
            let answer = question(&mut connection).await?;
            state.kept.put(connection);
            Ok(answer)
        })
        .await
    }
}

fn say(found: &Finding) {
    let Finding { health, cause, fix } = found;
    let (health, advice) = (health.as_str(), health.advice());
    match found.health {
        Health::Ok => tracing::info!(health, "{advice}"),
        Health::Settings => tracing::warn!(health, cause, fix, "{advice}"),
        _ => tracing::warn!(health, cause, "{advice}"),
    }
}

/// Reads the schema's version, the server's time and the session's settings, and tells `clock` whether the two clocks agree.
/// The one statement that reads the server's time.
async fn look(kept: &mut KeptConnection, clock: &Clock) -> Result<Finding, sqlx::Error> {
    let mut connection = kept.take().await?;
    let (names, values): (Vec<_>, Vec<_>) = settings().into_iter().unzip();
    let (now, asked) = (clock.now(), Instant::now());
    let row = sqlx::query!(
        r#"SELECT max(version) AS version, clock_timestamp() AS "clock!",
            current_setting('transaction_read_only') = 'on' AS "read_only!", quote_ident(session_user) AS "role!",
            ARRAY(SELECT name FROM unnest($1::text[], $2::text[]) AS wanted (name, value)
                WHERE current_setting(name) <> value) AS "other_settings!"
           FROM _sqlx_migrations WHERE success"#,
        &names as _,
        &values,
    )
    .fetch_one(&mut connection)
    .await?;
    let skewed = (row.clock - now).abs() - asked.elapsed() > MAX_SKEW;
    clock.was_compared(now, asked, !skewed);
    let found = if skewed {
        Finding::just(Health::ClockSkewed)
    } else if row.read_only {
        Finding::just(Health::ReadOnly)
    } else if row.version < MIGRATOR.iter().map(|step| step.version).max() {
        Finding::just(Health::MigrationsMissing)
    } else if !row.other_settings.is_empty() {
        other_settings(&row.other_settings, &row.role)
    } else {
        Finding::just(Health::Ok)
    };
    // A session in which something is wrong is closed: the next may lead to another server, or have what was changed.
    if found.health == Health::Ok {
        kept.put(connection);
    }
    Ok(found)
}

/// Names the settings that differ, and how the role gets them in every session.
fn other_settings(names: &[String], role: &str) -> Finding {
    let wanted = settings().into_iter().filter(|(name, _)| names.iter().any(|other| other == name));
    let fix = wanted.map(|(name, value)| format!("ALTER ROLE {role} SET {name} = '{value}';"));
    Finding { health: Health::Settings, cause: names.join(", "), fix: fix.collect::<Vec<_>>().join(" ") }
}
