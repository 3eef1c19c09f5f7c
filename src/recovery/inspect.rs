//! What an operator sees of the recoveries of an address.

use serde::Serialize;
use sqlx::PgExecutor;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{RecoveryId, State};
use crate::clock::{first_id_of, serialize_rfc3339};
use crate::config::{CODE_LIFETIME, RESET_LIFETIME};

/// The maximum number of recoveries that are shown for an address.
const LIMIT: i64 = 20;

/// A recovery, without its token and its code.
#[derive(Clone, Debug, Serialize)]
pub struct SeenRecovery {
    /// The public id, which the client has, too.
    pub id: RecoveryId,
    /// What it waits for, or how it ended.
    pub state: RecoveryState,
    /// When it was started.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it expires or has expired.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub expires_at: OffsetDateTime,
    /// How many attempts at the code are left.
    pub attempts_left: i16,
    /// The id of its row in `recovery_session`, which no client has.
    #[serde(skip)]
    pub session_id: Uuid,
}

/// What a recovery waits for, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, strum::Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RecoveryState {
    /// It waits for its code.
    CodeSent,
    /// The code was entered. It waits for a new password.
    Verified,
    /// It has set a password, or the address left the account after the code was entered.
    Used,
    /// All attempts at its code were wrong.
    Spent,
    /// A new password, another address or an operator has ended it.
    Ended,
    /// Its time has passed.
    Expired,
}

impl RecoveryState {
    fn of(row: &Row, ended: i64, now: OffsetDateTime) -> Self {
        match row.state {
            State::Consumed => Self::Used,
            State::Revoked => Self::Ended,
            _ if row.number <= ended => Self::Ended,
            _ if row.expires_at <= now => Self::Expired,
            State::Verified => Self::Verified,
            State::CodeSent if row.attempts_left == 0 => Self::Spent,
            State::CodeSent => Self::CodeSent,
        }
    }
}

struct Row {
    id: Uuid,
    state: State,
    attempts_left: i16,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    number: i64,
}

/// The recoveries of an address that began within the longest lifetime of a recovery, the newest
/// first, at most 20. Recoveries are numbered. Those up to `ended`, the `recoveries_ended` of the
/// address's account, have ended.
///
/// There is no index on the address, because every start would have to update it. So the statement
/// reads every recovery that began within the longest lifetime, by the primary key, and selects
/// those of the address.
pub async fn of_address(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    email: &str,
    ended: i64,
) -> Result<Vec<SeenRecovery>, sqlx::Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT id, state AS "state: State", attempts_left, created_at, expires_at, number
           FROM recovery_session WHERE id >= $1 AND email = $2 ORDER BY id DESC LIMIT $3"#,
        first_id_of(now - CODE_LIFETIME - RESET_LIFETIME),
        email,
        LIMIT,
    );
    let seen = |row: Row| SeenRecovery {
        id: RecoveryId::of(row.id),
        state: RecoveryState::of(&row, ended, now),
        created_at: row.created_at,
        expires_at: row.expires_at,
        attempts_left: row.attempts_left,
        session_id: row.id,
    };
    Ok(rows.fetch_all(executor).await?.into_iter().map(seen).collect())
}
