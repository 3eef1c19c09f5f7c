//! The parts that settings and secrets describe. Each is read even if another cannot be, so that
//! all problems are found at once.

use sqlx::postgres::PgConnectOptions;

use crate::config::{Config, ConfigError, ConfigErrors, Secrets};
use crate::database;
use crate::event_hook::Receivers;
use crate::jwt::KeyRing;
use crate::mail::gateway::Gateway;
use crate::mail::message::Composer;
use crate::password::Cost;
use crate::password::blocklist::Blocklist;
use crate::secret::{Key, Keys};

/// The parts. `None` is one that cannot be used; its problem says why.
pub struct Parts {
    /// How PostgreSQL is reached.
    pub database: Option<PgConnectOptions>,
    /// How the admin API reaches PostgreSQL; also `None` without `ADMIN_ADDR`.
    pub admin_database: Option<PgConnectOptions>,
    /// The relays.
    pub gateway: Option<Gateway>,
    /// Builds emails.
    pub composer: Option<Composer>,
    /// `RECOVERY_SECRETS`.
    pub code_keys: Option<Keys>,
    /// `DEVICE_SECRETS`.
    pub device_keys: Option<Keys>,
    /// `FACTOR_SECRETS`; also `None` without them.
    pub factor_keys: Option<Keys>,
    /// Keys that sign JWTs. Without `JWT_KEYS`, a key that exists as long as the process.
    pub jwt_keys: Option<KeyRing>,
    /// `PASSWORD_BLOCKLIST`; also `None` without one.
    pub blocklist: Option<Blocklist>,
    /// The receivers of events.
    pub receivers: Option<Receivers>,
}

/// All parts.
#[expect(missing_docs, reason = "as in Parts")]
pub struct CompleteParts {
    pub database: PgConnectOptions,
    pub admin_database: Option<PgConnectOptions>,
    pub gateway: Gateway,
    pub composer: Composer,
    pub code_keys: Keys,
    pub device_keys: Keys,
    pub factor_keys: Option<Keys>,
    pub jwt_keys: KeyRing,
    pub blocklist: Option<Blocklist>,
    pub receivers: Receivers,
}

impl Parts {
    /// Reads all parts and opens no connection. Adds what is wrong to `problems`.
    pub fn read(config: &Config, secrets: Secrets, problems: &mut ConfigErrors) -> Self {
        let Secrets {
            database_url,
            admin_database_url,
            code_keys,
            device_keys,
            factor_keys,
            smtp_relays,
            smtp_oauth,
            event_hooks,
        } = secrets;
        if !Cost::of(&config.passwords).is_verifiable() {
            let why = "times ARGON2_MEMORY_KIB is over 4194304: no login could verify such a hash; lower one of them";
            problems.add(ConfigError::new("ARGON2_PASSES", why));
        }
        // Without device keys, the settings of emails can still be checked.
        let bounce_key =
            device_keys.as_ref().map_or_else(|| Key::random("none"), |keys| keys.newest().clone());
        let jwt_keys = match &config.jwt.jwt_keys {
            Some(folder) => problems.take(
                KeyRing::read(folder)
                    .map_err(|why| ConfigError::new("JWT_KEYS", format!("({}) {why}", folder.display()))),
            ),
            None => Some(KeyRing::ephemeral()),
        };
        let blocklist = config.passwords.password_blocklist.as_deref().map(Blocklist::read);
        let database = database_url.and_then(|url| problems.take(database::options(&url)));
        let admin_database = match (problems.take(config.admin.address()).flatten(), admin_database_url) {
            (Some(_), Some(url)) => problems.take(
                database::options(&url)
                    .map_err(|problem| ConfigError::new("ADMIN_DATABASE_URL", problem.why())),
            ),
            (Some(_), None) => {
                let why = "is missing: set it to the URL of the operator's role, which may change accounts";
                problems.add(ConfigError::new("ADMIN_DATABASE_URL", why));
                None
            }
            (None, _) => None,
        };
        Self {
            database,
            admin_database,
            gateway: problems.take(Gateway::new(
                &config.relays,
                &smtp_relays.unwrap_or_default(),
                &smtp_oauth,
            )),
            composer: problems.take(Composer::new(&config.mail, &bounce_key)),
            code_keys,
            device_keys,
            factor_keys,
            jwt_keys,
            blocklist: blocklist.and_then(|read| problems.take(read)),
            receivers: problems.take(Receivers::read(&event_hooks, &config.event_hooks)),
        }
    }

    /// `None` if a part is missing.
    #[must_use]
    pub fn complete(self) -> Option<CompleteParts> {
        let Self {
            database,
            admin_database,
            gateway,
            composer,
            code_keys,
            device_keys,
            factor_keys,
            jwt_keys,
            blocklist,
            receivers,
        } = self;
        Some(CompleteParts {
            database: database?,
            admin_database,
            gateway: gateway?,
            composer: composer?,
            code_keys: code_keys?,
            device_keys: device_keys?,
            factor_keys,
            jwt_keys: jwt_keys?,
            blocklist,
            receivers: receivers?,
        })
    }
}
