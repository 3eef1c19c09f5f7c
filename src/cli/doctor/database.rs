//! PostgreSQL, step by step: name, connection, sign-in, encryption, schema, rights, settings,
//! clock, disk.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::report::Check;
use crate::clock::{Clock, MAX_SKEW};
use crate::database::health::{Facts, Health, test_write};
use crate::database::{self, Endpoint, MIGRATOR, in_time, with_session_settings};

/// How long the resolver may take, and how long a connection may take until it is signed in.
const DEADLINE: Duration = Duration::from_secs(5);
/// The difference of the clocks above which a warning is shown: machines with NTP differ by less.
const UNUSUAL_SKEW: Duration = Duration::from_millis(250);

/// The role of an operator's commands, as `deploy/grants.sql` names it. It may not read some of
/// what [`contents`] checks, such as the table of migrations.
const OPERATOR: &str = "vos_auth_operator";

const NAME: &str = "database name";
const CONNECTION: &str = "database connection";
const SIGN_IN: &str = "database sign-in";
const TLS: &str = "database TLS";
const SCHEMA: &str = "database schema";
const INDEXES: &str = "database indexes";
const RIGHTS: &str = "database rights";
const SETTINGS: &str = "database settings";
const WRITING: &str = "database writing";
const CLOCK: &str = "clock, PostgreSQL";
const ADMIN: &str = "database, admin API";

const MIGRATE: &str = "Run `vos-auth migrate` with the URL of the database's owner, then deploy/grants.sql.";
const GRANT: &str = "Run deploy/grants.sql in this database as an administrator of PostgreSQL.";
const USE_PRIMARY: &str = "Change DATABASE_URL to lead to the primary.";
const MAKE_ROOM: &str = "Make room on the disk of PostgreSQL's data directory; never delete files in it.";

pub(super) async fn check(options: PgConnectOptions, clock: Clock) -> Vec<Check> {
    let endpoint = Endpoint::new(with_session_settings(&options));
    let mut checks = Vec::new();
    if let Some(name) = name(&endpoint, &options).await {
        let has_failed = name.is_err();
        checks.push(name.unwrap_or_else(|failed| failed));
        if has_failed {
            return checks;
        }
    }
    let connected = timeout(DEADLINE, Box::pin(endpoint.connect())).await;
    let mut connection = match connected {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            checks.push(refused(&error, endpoint.is_networked()));
            return checks;
        }
        Err(_) => {
            let seen = format!("no answer within {} s, while {}", DEADLINE.as_secs(), endpoint.stage());
            checks.push(Check::failed(CONNECTION, seen, action(Health::Unreachable, None)));
            return checks;
        }
    };
    checks.push(connection_found(&endpoint));
    checks.push(encryption(&options, &endpoint));
    if options.get_username() == OPERATOR {
        let seen = format!("{OPERATOR} is the role of an operator's commands, not of the service");
        let action = "Run this command with the URL of the service, as by DATABASE_URL_FILE=/etc/vos-auth/secrets/database-url.";
        checks.push(Check::failed(RIGHTS, seen, action));
        return checks;
    }
    checks.extend(contents(&mut connection, &clock).await);
    checks
}

/// Whether the role of the admin API can sign in and may change accounts. The other checks use the
/// service's role.
pub(super) async fn check_admin(options: PgConnectOptions) -> Vec<Check> {
    let endpoint = Endpoint::new(with_session_settings(&options));
    let failed = |seen: String, health, code: Option<&str>| {
        let action = action(health, code).replace("DATABASE_URL", "ADMIN_DATABASE_URL");
        vec![Check::failed(ADMIN, seen, action)]
    };
    let found = timeout(DEADLINE, async {
        let mut connection = Box::pin(endpoint.connect()).await?;
        let may_change = "SELECT has_table_privilege('account', 'INSERT') AND has_table_privilege('operator', 'SELECT') AND has_table_privilege('operator_request', 'INSERT')";
        sqlx::query_scalar::<_, bool>(may_change).fetch_one(&mut connection).await
    });
    match found.await {
        Ok(Ok(true)) => {
            let role = options.get_username();
            vec![Check::ok(ADMIN, format!("signed in, and the role {role} may change accounts"))]
        }
        Ok(Ok(false)) => {
            let seen = format!("the role {} may not change accounts", options.get_username());
            let action =
                format!("Name the role {OPERATOR} in ADMIN_DATABASE_URL, and run deploy/grants.sql.");
            vec![Check::failed(ADMIN, seen, action)]
        }
        Ok(Err(error)) => {
            let health = Health::of(&error, endpoint.is_networked());
            failed(database::cause(&error), health, sqlstate(&error).as_deref())
        }
        Err(_) => failed(format!("no answer within {} s", DEADLINE.as_secs()), Health::Unreachable, None),
    }
}

/// Resolves the host name. `None` if `DATABASE_URL` has a socket or an IP address.
async fn name(endpoint: &Endpoint, options: &PgConnectOptions) -> Option<Result<Check, Check>> {
    let host = options.get_host();
    if !endpoint.is_networked() || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return None;
    }
    let action = "Correct the host in DATABASE_URL, or DNS and /etc/hosts on this machine.";
    let resolved = timeout(DEADLINE, lookup_host((host, options.get_port()))).await;
    Some(match resolved {
        Ok(Ok(addresses)) => {
            let count = addresses.count();
            Ok(Check::ok(NAME, format!("{host} has {count} address{}", if count == 1 { "" } else { "es" })))
        }
        Ok(Err(error)) => Err(Check::failed(NAME, format!("{host} has no address: {error}"), action)),
        Err(_) => {
            let seen = format!("the resolver did not answer within {} s", DEADLINE.as_secs());
            Err(Check::failed(NAME, seen, action))
        }
    })
}

fn connection_found(endpoint: &Endpoint) -> Check {
    let addresses = endpoint.addresses();
    if addresses.silent == 0 {
        return Check::ok(CONNECTION, "connected and signed in");
    }
    let seen = format!("{} of {} addresses do not answer", addresses.silent, addresses.total);
    Check::warning(CONNECTION, seen, "Start these servers, or remove their addresses from the name.")
}

fn sqlstate(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error()?.code()
}

/// The row of the report for a connection that failed.
fn refused(error: &sqlx::Error, networked: bool) -> Check {
    let health = Health::of(error, networked);
    let check = match health {
        Health::Refused => SIGN_IN,
        Health::Certificate => TLS,
        _ => CONNECTION,
    };
    let code = sqlstate(error);
    Check::failed(check, database::cause(error), action(health, code.as_deref()))
}

/// What to do about a state of PostgreSQL, by the SQLSTATE of the error if that is more specific.
fn action(health: Health, code: Option<&str>) -> &'static str {
    match (code, health) {
        (Some("28P01"), _) => {
            "Correct the password in DATABASE_URL, percent-encoded, or set it in PostgreSQL by ALTER ROLE."
        }
        (Some("28000"), _) => {
            "Correct the user in DATABASE_URL, make the role, or allow it in pg_hba.conf from this machine."
        }
        (Some("3D000"), _) => "Correct the database in DATABASE_URL, or make it by createdb.",
        (Some("42501"), _) => GRANT,
        (Some("53300"), _) => "Raise max_connections of PostgreSQL, or lower DATABASE_CONNECTIONS.",
        (Some("57P03"), _) => "Wait until PostgreSQL has started, then run this command again.",
        (_, Health::Certificate) => {
            "Correct sslmode, sslrootcert or the host in DATABASE_URL, or the certificate of PostgreSQL."
        }
        (_, Health::MigrationsMissing) => MIGRATE,
        (_, Health::ReadOnly) => USE_PRIMARY,
        (_, Health::Full) => MAKE_ROOM,
        _ => "Start PostgreSQL, or correct host and port in DATABASE_URL, or the firewall between.",
    }
}

fn encryption(options: &PgConnectOptions, endpoint: &Endpoint) -> Check {
    match options.get_ssl_mode() {
        _ if !endpoint.is_networked() => Check::ok(TLS, "a Unix socket, which crosses no network"),
        PgSslMode::VerifyFull => Check::ok(TLS, "encrypted, certificate and name are verified"),
        PgSslMode::VerifyCa | PgSslMode::Require => {
            let action = "Write sslmode=verify-full and sslrootcert=FILE into DATABASE_URL if the server has a certificate.";
            Check::warning(TLS, "encrypted, but the server's name is not verified", action)
        }
        // `DATABASE_URL` with such a mode is refused for another machine.
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer => {
            Check::ok(TLS, "not required: PostgreSQL is on this machine")
        }
    }
}

/// What a connection finds: schema, rights, settings, disk and clock.
async fn contents(connection: &mut PgConnection, clock: &Clock) -> Vec<Check> {
    let facts = match in_time(Facts::ask(connection, clock)).await {
        Ok(facts) => facts,
        Err(error) => return vec![unreadable(&error)],
    };
    let mut checks = vec![clocks(&facts)];
    checks.extend(schema(connection, &facts).await);
    checks.push(rights(&facts));
    checks.push(session_settings(&facts));
    checks.push(writing(connection, &facts).await);
    checks
}

/// The row of the report if not even the state of the schema can be read.
fn unreadable(error: &sqlx::Error) -> Check {
    let health = Health::of(error, false);
    let code = sqlstate(error);
    match health {
        Health::MigrationsMissing => Check::failed(SCHEMA, "no migration has been applied", MIGRATE),
        Health::Refused => Check::failed(RIGHTS, "the role may not read the table of migrations", GRANT),
        _ => Check::failed(CONNECTION, database::cause(error), action(health, code.as_deref())),
    }
}

fn clocks(facts: &Facts) -> Check {
    // The server read its clock between question and answer; halfway is the best estimate.
    let ahead = facts.clock_ahead - facts.took / 2;
    let seen = format!(
        "this machine's clock is {} ms {} PostgreSQL's, measured within {} ms",
        ahead.abs().whole_milliseconds(),
        if ahead.is_positive() { "behind" } else { "ahead of" },
        facts.took.as_millis(),
    );
    let action = "Check NTP on both machines by `timedatectl` or `chronyc tracking`, and correct the clock.";
    if facts.is_skewed() {
        let seen = format!("{seen}; the limit is {} s", MAX_SKEW.as_secs());
        Check::failed(CLOCK, seen, action)
    } else if ahead.abs() > UNUSUAL_SKEW {
        Check::warning(CLOCK, seen, action)
    } else {
        Check::ok(CLOCK, seen)
    }
}

async fn schema(connection: &mut PgConnection, facts: &Facts) -> Vec<Check> {
    let mut checks = Vec::new();
    let beyond = in_time(database::beyond(connection)).await;
    let newer = beyond.as_ref().map_or(0, |beyond| beyond.newer);
    checks.push(if facts.missing_versions.is_empty() {
        let newer = if newer == 0 { String::new() } else { format!(", and {newer} of a newer release") };
        Check::ok(SCHEMA, format!("all {} migrations are applied{newer}", MIGRATOR.iter().count()))
    } else {
        let missing: Vec<_> = facts.missing_versions.iter().map(i64::to_string).collect();
        Check::failed(SCHEMA, format!("not applied: migration {}", missing.join(", ")), MIGRATE)
    });
    checks.push(match beyond {
        Ok(beyond) if beyond.unfinished_indexes.is_empty() => Check::ok(INDEXES, "all are finished"),
        Ok(beyond) => {
            let seen = format!("not finished: {}", beyond.unfinished_indexes.join(", "));
            let action = "Wait for a running `vos-auth migrate`; if none runs, run it with the owner's URL.";
            Check::failed(INDEXES, seen, action)
        }
        Err(error) => Check::failed(INDEXES, database::cause(&error), GRANT),
    });
    checks
}

fn rights(facts: &Facts) -> Check {
    let role = &facts.role;
    if facts.missing_rights.is_empty() {
        return Check::ok(RIGHTS, format!("the role {role} has all rights of `serve`"));
    }
    Check::failed(RIGHTS, format!("the role {role} lacks {}", facts.missing_rights.join(", ")), GRANT)
}

fn session_settings(facts: &Facts) -> Check {
    if facts.other_settings.is_empty() {
        return Check::ok(SETTINGS, "sessions have the settings that the service asks for");
    }
    let seen = format!("a pooler drops {}", facts.other_settings.join(", "));
    Check::failed(SETTINGS, seen, format!("As an administrator, run: {}", facts.fix_of_settings()))
}

async fn writing(connection: &mut PgConnection, facts: &Facts) -> Check {
    if facts.read_only {
        return Check::failed(WRITING, "the server is read-only", USE_PRIMARY);
    }
    match in_time(test_write(connection)).await {
        Ok(()) => Check::ok(WRITING, "a temporary file of a megabyte was written and deleted"),
        Err(error) => {
            let code = sqlstate(&error);
            let action = action(Health::of(&error, false), code.as_deref());
            Check::failed(WRITING, database::cause(&error), action)
        }
    }
}
