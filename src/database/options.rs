//! Reads and checks `DATABASE_URL`.

use std::str::FromStr as _;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use crate::config::ConfigError;

/// The parameters that sqlx knows, besides `options[NAME]`. Others are refused, because sqlx
/// ignores them and logs their values, one of which may be a password.
const KNOWN_PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Reads `DATABASE_URL`. Refuses a URL that would send data over a network without TLS.
///
/// # Errors
///
/// A sentence that names `DATABASE_URL` and, if one is wrong, the parameter's name. It quotes
/// nothing else of the URL, which contains a password.
pub fn options(url: &str) -> Result<PgConnectOptions, ConfigError> {
    read(url).map_err(|why| ConfigError::new("DATABASE_URL", why))
}

fn read(url: &str) -> Result<PgConnectOptions, String> {
    const WRONG_FORM: &str = "does not have the form postgres://USER:PASSWORD@HOST/DATABASE";
    const SEVERAL_HOSTS: &str = "names several hosts: name one that leads to the primary, such as HAProxy on this \
                                 machine (docs/operate/high-availability.md)";
    // sqlx accepts any scheme.
    let Some(("postgres" | "postgresql", rest)) = url.split_once("://") else {
        return Err(WRONG_FORM.into());
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.rsplit('@').next().is_some_and(|hosts| hosts.contains(',')) {
        return Err(SEVERAL_HOSTS.into());
    }
    let parsed = Url::parse(url).map_err(|_| WRONG_FORM)?;
    if parsed
        .query_pairs()
        .any(|(name, value)| ["host", "hostaddr", "port"].contains(&&*name) && value.contains(','))
    {
        return Err(SEVERAL_HOSTS.into());
    }
    refuse_unknown_parameters(&parsed)?;
    let options = PgConnectOptions::from_str(url).map_err(|_| WRONG_FORM)?;
    let local = options.get_socket().is_some()
        || options.get_host().starts_with('/')
        || matches!(options.get_host(), "localhost" | "127.0.0.1" | "::1" | "[::1]");
    if !local && matches!(options.get_ssl_mode(), PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer) {
        return Err("names another machine without TLS: add sslmode=verify-full (or sslmode=require, if its certificate cannot be checked)".into());
    }
    // Statements are not logged, because no log may contain a bound value.
    Ok(options.application_name("vos-auth").disable_statement_logging())
}

fn refuse_unknown_parameters(url: &Url) -> Result<(), String> {
    for part in url.query().unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
        // The part is not quoted: it may be the end of a password that contains an &.
        let Some((name, _)) = part.split_once('=') else {
            return Err("has a parameter without a value: write an & within a value as %26".into());
        };
        if name == "target_session_attrs" {
            return Err(
                "has the parameter target_session_attrs, which is not supported: use HAProxy on this \
                        machine to reach the primary (docs/operate/high-availability.md)"
                    .into(),
            );
        }
        let is_setting = name.starts_with("options[") && name.ends_with(']');
        if !KNOWN_PARAMETERS.contains(&name) && !is_setting {
            return Err(format!(
                "has the parameter {name}, which is not supported. Supported parameters: {}",
                KNOWN_PARAMETERS.join(", ")
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_hosts_and_unknown_parameters_are_refused_and_no_value_is_quoted() {
        let hosts = "names several hosts";
        for (url, why) in [
            ("postgres://u:hunter2@one,two/x?sslmode=require", hosts),
            ("postgres://u:hunter2@one:5432,two:5433/x?sslmode=require", hosts),
            ("postgres://u:hunter2@one:5432,two:5433?sslmode=require", hosts),
            ("postgres://one,two", hosts),
            ("postgres://u:hunter2@one/x?sslmode=require&host=one,two", hosts),
            ("postgres://u:hunter2@one/x?sslmode=require&hostaddr=192.0.2.1%2C192.0.2.2", hosts),
            ("postgres://u:hunter2@one/x?sslmode=require&port=5432,5433", hosts),
            (
                "postgres://u:hunter2@one/x?target_session_attrs=hunter2",
                "the parameter target_session_attrs,",
            ),
            ("postgres://u@one/x?sslmode=require&passwort=hunter2", "the parameter passwort,"),
            ("postgres://u@one/x?sslmode=require&PASSWORD=hunter2", "the parameter PASSWORD,"),
            ("postgres://u@one/x?sslmode=require&connect_timeout=2", "the parameter connect_timeout,"),
            ("postgres://u@one/x?sslmode=require&options[jit=hunter2", "the parameter options[jit,"),
            ("postgres://u@one/x?sslmode=require&password=a&hunter2", "%26"),
            ("postgres://u:hunter2@one/x?sslmode=hunter2", "does not have the form"),
            ("postgres://u:hunter2@one:port/x", "does not have the form"),
            ("mysql://u:hunter2@one/x", "does not have the form"),
            ("hunter2", "does not have the form"),
            ("postgres://u:hunter2@one/x", "without TLS"),
        ] {
            let said = options(url).unwrap_err().to_string();
            assert!(said.starts_with("DATABASE_URL ") && said.contains(why), "{url}: {said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
        let said = options("postgres://one,two/x").unwrap_err().to_string();
        assert!(said.contains("HAProxy"), "{said}");
    }

    #[test]
    fn what_sqlx_knows_is_accepted() {
        for url in [
            "postgres://u:a,b@localhost/x",
            "postgresql://u@one.example/x?sslmode=verify-full&sslrootcert=/a,b.pem",
            "postgres://u:p@localhost/x?",
            "postgres://u:p@localhost/x?&application_name=a",
            "postgres://localhost/x?host=/run/postgresql&port=6432&user=u&password=p&dbname=y",
            "postgres://localhost/x?options[jit]=off&options=-c%20jit%3Doff&statement-cache-capacity=10",
            "postgres://localhost/x?hostaddr=127.0.0.1&ssl-mode=require&ssl-ca=a&ssl-root-cert=a&ssl-cert=b&sslcert=b&ssl-key=c&sslkey=c",
        ] {
            assert!(options(url).is_ok(), "{url}: {:?}", options(url).unwrap_err());
        }
    }
}
