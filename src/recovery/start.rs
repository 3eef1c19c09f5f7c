//! `start`: blind (promise 1). It never reads `account` and writes the same rows for any address, so neither its answer
//! nor its time says who has an account. The courier finds out later whether there is somebody to write to.

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
use crate::database::{KeptConnection, OUTAGE_RETRY_AFTER, failures, is_statements_fault};
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::group_commit::{Arrivals, Batch};
use crate::known_device::DeviceId;
use crate::secret::{Token, TokenHash};
use crate::throttle::{self, Key, RateLimit, interval, recovery_key, ticket_key};

/// How long the connection of starts lasts. Rarely less: a request that comes meanwhile waits for the new one's plans.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(10);

/// An accepted start: what the cookie has to hold.
#[derive(Debug)]
pub struct Started {
    /// The session's token: a new one, or the one that was presented if its session goes on.
    pub token: Token,
    /// The session's id.
    pub id: RecoveryId,
    /// How long the session lives from now.
    pub lifetime: Duration,
}

/// A start that waits to be committed.
#[derive(Debug)]
pub(super) struct Start {
    session_id: Uuid,
    outbox_id: Uuid,
    token_hash: TokenHash,
    presented: Option<TokenHash>,
    email: EmailAddress,
    bucket_key: Key,
    client: Client,
}

/// What became of one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    New { expires_at: OffsetDateTime },
    Kept { session_id: Uuid, expires_at: OffsetDateTime },
    Refused { retry_at: OffsetDateTime },
}

/// On whose budget a start draws.
#[derive(Clone, Copy, Debug, Default)]
pub struct StartCredentials {
    /// A browser that has signed in with the address before.
    pub device: Option<DeviceId>,
    /// An operator's ticket for the address.
    pub ticket: Option<DeviceId>,
}

impl Recovery {
    /// Begins a recovery for any address, or goes on with the one that `presented` belongs to: the same address, a
    /// code that was sent, attempts left and at least 3 minutes to live. Then code, attempts and lifetime stay, and one
    /// more mail is owed unless one is unsent. It draws on the budget of the address, or on that of a device that has
    /// signed in with it before; once that is spent, a ticket is good for one. Returns when session and mail are durable.
    ///
    /// # Errors
    ///
    /// `MailUnavailable` if no relay is usable, decided before anything about the address is looked at;
    /// `AddressThrottled` if the budget is spent; `StorageUnavailable` if PostgreSQL does not answer within
    /// 2 s or too many wait for it.
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
                throttle::draw(&self.app.pool, now, &key, RateLimit::of_a_ticket(), refused.problem)
                    .await
                    .map_err(|error| if error.problem == refused.problem { refused } else { error })?;
                let started = self.submit(&email, presented.as_ref(), Some(ticket), &client).await;
                if started.is_err() {
                    // Its holder tries again, and has waited long enough for this answer. While PostgreSQL is away the
                    // ticket stays spent.
                    let pool = self.app.pool.clone();
                    tokio::spawn(
                        async move { throttle::refund(&pool, &key, RateLimit::of_a_ticket()).await },
                    );
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
        let start = Start {
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
            (Some(Outcome::New { expires_at }), _) => {
                Ok(Started { token, id: RecoveryId::of(session_id), lifetime: lifetime(expires_at) })
            }
            (Some(Outcome::Kept { session_id, expires_at }), Some(token)) => {
                let (token, id) = (token.clone(), RecoveryId::of(session_id));
                Ok(Started { token, id, lifetime: lifetime(expires_at) })
            }
            (Some(Outcome::Refused { retry_at }), _) => {
                Err(Error::retry_after(Problem::AddressThrottled, lifetime(retry_at)))
            }
            (Some(Outcome::Kept { .. }) | None, _) => {
                Err(Error::retry_after(Problem::StorageUnavailable, OUTAGE_RETRY_AFTER))
            }
        }
    }
}

/// Commits what arrives, batch after batch, over a connection of its own.
pub(super) async fn commit_starts(app: Arc<App>, mut arrivals: Arrivals<Start, Outcome>) {
    let mut database = KeptConnection::new(&app.database, CONNECTION_LIFETIME);
    while let Some(batch) = arrivals.next().await {
        #[expect(clippy::cast_precision_loss, reason = "a batch has at most 10,000 requests")]
        app.metrics.start_batch.observe(batch.requests.len() as f64);
        let first_pending = batch.requests.iter().map(|start| start.outbox_id).min().unwrap_or_default();
        match commit(&app, &mut database, &batch).instrument(batch.span()).await {
            Ok(outcomes) => batch.answer(outcomes),
            // No row may fail another's start: whichever the statement stumbled over is found one by one.
            Err(error) if is_statements_fault(&error) => {
                failures::note("store starts, then row by row", &error);
                for single in batch.split().filter(Batch::is_awaited) {
                    match commit(&app, &mut database, &single).instrument(single.span()).await {
                        Ok(outcomes) => single.answer(outcomes),
                        Err(error) => {
                            failures::note("store a start", &error);
                            if !is_statements_fault(&error) {
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
    batch: &Batch<Start, Outcome>,
) -> Result<Vec<Outcome>, sqlx::Error> {
    let committed = timeout(STORAGE_DEADLINE, async {
        let clock_moved = || sqlx::Error::Configuration("this machine's clock was moved".into());
        let mut connection = database.take().await?;
        let key_id = app.code_keys.newest().id();
        let now = app.clock.trusted_now().ok_or_else(clock_moved)?;
        let result = insert(&mut connection, now, key_id, app.address_limit, &batch.requests).await;
        // After a failed statement the connection itself is still good if PostgreSQL said so.
        if result.as_ref().map_or_else(is_statements_fault, |_| true) {
            database.put(connection);
        }
        result
    });
    committed.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// Commits all starts of a batch with one statement (`start.sql`): rate limit, session and pending email, all or nothing,
/// one flush.
///
/// This is the only SQL that writes tables of other modules (`throttle`, `outbox`): separate statements would cost three
/// round trips and three flushes. What needs no table is done before it, because each node of the plan costs every batch
/// (docs/decisions/0021): starts are counted and ranked within their bucket, and the keys are ordered, or batches of two
/// replicas would deadlock. The look-up is LATERAL with a LIMIT, so the planner uses the index whatever it believes of
/// the table's size.
async fn insert(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    key_id: &str,
    limit: RateLimit,
    starts: &[Start],
) -> Result<Vec<Outcome>, sqlx::Error> {
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
            _ if !row.admitted => Outcome::Refused { retry_at: row.retry_at },
            Some(session_id) => Outcome::Kept { session_id, expires_at: row.expires_at },
            None => Outcome::New { expires_at: row.expires_at },
        })
        .collect())
}
