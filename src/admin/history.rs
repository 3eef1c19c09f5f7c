//! What happened to an account, and what an operator did.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::audit;
pub use crate::audit::AuditEntry;

/// The most events of one page.
pub const MAX_PAGE: i64 = 1000;

/// A page of at most `limit` events of an account (1 to 1000), the newest first, before the event
/// `before`. Events are kept for `AUDIT_RETENTION`, also those of an erased account.
pub async fn of_account(
    connection: &mut PgConnection,
    account: Uuid,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<AuditEntry>, sqlx::Error> {
    audit::of_account(connection, account, before.unwrap_or(Uuid::max()), limit.clamp(1, MAX_PAGE)).await
}

/// A page of at most `limit` events that an operator caused (1 to 1000), the newest first, before
/// the event `before`.
pub async fn of_operator(
    connection: &mut PgConnection,
    operator: &str,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<AuditEntry>, sqlx::Error> {
    audit::of_operator(connection, operator, before.unwrap_or(Uuid::max()), limit.clamp(1, MAX_PAGE)).await
}
