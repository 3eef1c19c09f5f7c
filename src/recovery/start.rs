//! `start`: blind (invariant 1 of the crate). It never reads `account` and writes the same rows for
//! every address, so neither its answer nor its time shows who has an account. The courier looks up
//! later whether there is a recipient.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::timeout;
use tracing::Instrument as _;
use uuid::Uuid;

use super::{Recovery, RecoveryId, TOKEN_LABEL};
use crate::app::App;
use crate::client::Client;
use crate::clock::new_id;
use crate::config::{CODE_LIFETIME, RESEND_LIFE, STORAGE_DEADLINE};
use crate::database::{KeptConnection, OUTAGE_RETRY_AFTER, failures, is_statement_error};
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::group_commit::{Arrivals, Batch};
use crate::known_device::DeviceId;
use crate::secret::{Token, TokenHash};
use crate::throttle::{self, BucketKey, RateLimit, interval, recovery_key, ticket_key};

/// How long the connection for starts is kept. Replacing it is costly: a request that arrives then
/// waits while the new connection plans its statements.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(10);

/// An accepted start: the values for the cookie.
#[derive(Debug)]
pub struct Started {
    /// The session's token: a new one, or the presented one if its session continues.
    pub token: Token,
    /// The session's id.
    pub id: RecoveryId,
    /// How long the session lives from now.
    pub lifetime: Duration,
}

/// A start that waits for its commit.
#[derive(Debug)]
pub(super) struct PendingStart {
    session_id: Uuid,
    outbox_id: Uuid,
    token_hash: TokenHash,
    presented: Option<TokenHash>,
    email: EmailAddress,
    bucket_key: BucketKey,
    client: Client,
}

/// The result of one start.
#[derive(Clone, Copy, Debug)]
pub(super) enum StartOutcome {
    Opened { expires_at: OffsetDateTime },
    Continued { session_id: Uuid, expires_at: OffsetDateTime },
    Refused { retry_at: OffsetDateTime },
}

/// What decides from which rate-limit bucket a start draws.
#[derive(Clone, Copy, Debug, Default)]
pub struct StartCredentials {
    /// The browser, if it has signed in with the address before.
    pub device: Option<DeviceId>,
    /// An operator's ticket for the address, if the client has one.
    pub ticket: Option<DeviceId>,
}

impl Recovery {
    /// Begins a recovery for any address, or continues the one that `presented` belongs to. The
    /// presented recovery continues if it has the same address, still waits for its code, and has
    /// attempts and at least 3 minutes left. Code, attempts and end then stay the same, and one
    /// more email is enqueued unless the previous one is unsent.
    ///
    /// A start draws from the bucket of the address, or of a device that has signed in with it
    /// before. Once that bucket is empty, a ticket admits one more start. Returns after session and
    /// email are durable.
    ///
    /// # Errors
    ///
    /// `MailUnavailable` if no relay is usable, decided before the address is considered;
    /// `AddressThrottled` if the bucket is empty; `StorageUnavailable` if PostgreSQL does not
    /// answer within 2 s or too many requests wait for it.
    pub async fn start(
        &self,
        email: EmailAddress,
        presented: Option<Token>,
        credentials: StartCredentials,
        client: Client,
    ) -> Result<Started, Error> {
        if !self.app.gateway.is_up() {
            return Err(Error::retry_after(Problem::MailUnavailable, OUTAGE_RETRY_AFTER));
        }
        let started = self.submit(&email, presented.as_ref(), credentials.device, &client).await;
        match (started, credentials.ticket) {
            (Err(refused), Some(ticket)) if refused.problem == Problem::AddressThrottled => {
                let (now, key) = (self.app.time()?, ticket_key(ticket));
                throttle::draw(&self.app.pool, now, &key, RateLimit::for_ticket(), refused.problem)
                    .await
                    .map_err(|error| if error.problem == refused.problem { refused } else { error })?;
                let started = self.submit(&email, presented.as_ref(), Some(ticket), &client).await;
                if started.is_err() {
                    // Refunds the ticket without delaying this answer. During an outage of
                    // PostgreSQL the ticket stays spent.
                    let pool = self.app.pool.clone();
                    tokio::spawn(async move { throttle::refund(&pool, &key, RateLimit::for_ticket()).await });
                }
                started
            }
            (started, _) => started,
        }
    }

    async fn submit(
        &self,
        email: &EmailAddress,
        presented: Option<&Token>,
        device: Option<DeviceId>,
        client: &Client,
    ) -> Result<Started, Error> {
        let now = self.app.time()?;
        let token = Token::issue(self.app.code_keys.newest(), TOKEN_LABEL, now);
        let session_id = new_id(now);
        let start = PendingStart {
            session_id,
            outbox_id: new_id(now),
            token_hash: token.hash(),
            presented: presented.map(Token::hash),
            bucket_key: recovery_key(email, device),
            email: email.clone(),
            client: client.clone(),
        };
        let outcome = timeout(STORAGE_DEADLINE, self.starts.submit(start)).await.ok().and_then(Result::ok);
        let answered = self.app.clock.now();
        let lifetime = |end: OffsetDateTime| Duration::try_from(end - answered).unwrap_or_default();
        match (outcome, presented) {
            (Some(StartOutcome::Opened { expires_at }), _) => {
                Ok(Started { token, id: RecoveryId::of(session_id), lifetime: lifetime(expires_at) })
            }
            (Some(StartOutcome::Continued { session_id, expires_at }), Some(token)) => {
                let (token, id) = (token.clone(), RecoveryId::of(session_id));
                Ok(Started { token, id, lifetime: lifetime(expires_at) })
            }
            (Some(StartOutcome::Refused { retry_at }), _) => {
                Err(Error::retry_after(Problem::AddressThrottled, lifetime(retry_at)))
            }
            (Some(StartOutcome::Continued { .. }) | None, _) => {
                Err(Error::retry_after(Problem::StorageUnavailable, OUTAGE_RETRY_AFTER))
            }
        }
    }
}

/// Commits arriving starts, batch by batch, over a connection of its own.
pub(super) async fn commit_starts(app: Arc<App>, mut arrivals: Arrivals<PendingStart, StartOutcome>) {
    let mut database = KeptConnection::new(&app.database, CONNECTION_LIFETIME);
    while let Some(batch) = arrivals.next().await {
        #[expect(clippy::cast_precision_loss, reason = "a batch has at most 10,000 requests")]
        app.metrics.start_batch.observe(batch.requests.len() as f64);
        let first_pending = batch.requests.iter().map(|start| start.outbox_id).min().unwrap_or_default();
        match commit(&app, &mut database, &batch).instrument(batch.span()).await {
            Ok(outcomes) => batch.answer(outcomes),
            // One bad row must not make the others fail, so the starts are committed one by one.
            Err(error) if is_statement_error(&error) => {
                failures::note("store starts, then row by row", &error);
                for single in batch.split().filter(Batch::is_awaited) {
                    match commit(&app, &mut database, &single).instrument(single.span()).await {
                        Ok(outcomes) => single.answer(outcomes),
                        Err(error) => {
                            failures::note("store a start", &error);
                            if !is_statement_error(&error) {
                                break;
                            }
                        }
                    }
                }
            }
            Err(error) => failures::note("store starts", &error),
        }
        app.wakeup.wake(first_pending);
    }
}

async fn commit(
    app: &App,
    database: &mut KeptConnection,
    batch: &Batch<PendingStart, StartOutcome>,
) -> Result<Vec<StartOutcome>, sqlx::Error> {
    let committed = timeout(STORAGE_DEADLINE, async {
        let clock_moved = || sqlx::Error::Configuration("this machine's clock was moved".into());
        let mut connection = database.take().await?;
        let key_id = app.code_keys.newest().id();
        let now = app.clock.trusted_now().ok_or_else(clock_moved)?;
        let result = insert(&mut connection, now, key_id, app.address_limit, &batch.requests).await;
        // After success, or an error that the statement caused, the connection is still usable.
        if result.as_ref().map_or_else(is_statement_error, |_| true) {
            database.put(connection);
        }
        result
    });
    committed.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// Commits all starts of a batch with one statement (`start.sql`): rate limit, session and pending
/// email, all or nothing, in one flush.
///
/// This SQL writes tables of other modules (`throttle`, `outbox`), because separate statements
/// would cost three round trips and three flushes. Work that needs no table happens here first,
/// because each node of the plan costs every batch (docs/decisions/0021): starts are counted and
/// ranked within their bucket. The keys are ordered, because batches of two replicas could
/// otherwise deadlock. The look-up is LATERAL with a LIMIT, so that the planner uses the index
/// whatever its estimate of the table's size.
async fn insert(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    key_id: &str,
    limit: RateLimit,
    starts: &[PendingStart],
) -> Result<Vec<StartOutcome>, sqlx::Error> {
    let mut asked = BTreeMap::<&[u8], i32>::new();
    let mut rank = |key| {
        let count = asked.entry(key).or_default();
        *count += 1;
        *count
    };
    let ranks: Vec<_> = starts.iter().map(|start| rank(&start.bucket_key[..])).collect();
    let (keys, wanted): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
    let session_ids: Vec<_> = starts.iter().map(|start| start.session_id).collect();
    let outbox_ids: Vec<_> = starts.iter().map(|start| start.outbox_id).collect();
    let token_hashes: Vec<_> = starts.iter().map(|start| start.token_hash.as_bytes()).collect();
    let presented: Vec<_> =
        starts.iter().map(|start| start.presented.as_ref().map(TokenHash::as_bytes)).collect();
    let emails: Vec<_> = starts.iter().map(|start| start.email.as_str()).collect();
    let bucket_keys: Vec<_> = starts.iter().map(|start| &start.bucket_key[..]).collect();
    let locales: Vec<_> = starts.iter().map(|start| start.client.locale.map(<&str>::from)).collect();
    let client_ips: Vec<_> = starts.iter().map(|start| start.client.ip).collect();
    let user_agents: Vec<_> = starts.iter().map(|start| start.client.user_agent.as_str()).collect();
    let expires_at = now + CODE_LIFETIME;
    let mut rows = sqlx::query_file!(
        "src/recovery/start.sql",
        &keys as _,
        &wanted,
        &session_ids,
        &outbox_ids,
        &token_hashes as _,
        &presented as _,
        &emails as _,
        &bucket_keys as _,
        &ranks,
        &locales as _,
        &client_ips as _,
        &user_agents as _,
        i64::from(limit.short_burst),
        interval(limit.short_refill) as _,
        i64::from(limit.long_burst),
        interval(limit.long_refill) as _,
        now,
        now + RESEND_LIFE,
        expires_at,
        key_id,
    )
    .fetch_all(connection)
    .await?;
    rows.sort_unstable_by_key(|row| row.place);
    Ok(rows
        .into_iter()
        .map(|row| match row.kept_id {
            _ if !row.admitted => StartOutcome::Refused { retry_at: row.retry_at },
            Some(session_id) => StartOutcome::Continued { session_id, expires_at: row.expires_at },
            None => StartOutcome::Opened { expires_at: row.expires_at },
        })
        .collect())
}
