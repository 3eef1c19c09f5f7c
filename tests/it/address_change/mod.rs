//! Another address for an account: two operators, a notice, a wait, and an owner who can stop it.

mod agree;
mod effect;
mod stop;

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection as _, PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;
use vos_auth::address_change::AddressChanges;
use vos_auth::admin::request::ticket::{self, Permit};
use vos_auth::admin::request::{self, Actor, Approved, Asked, Cancelled, State};
use vos_auth::email_address::EmailAddress;

use crate::harness::client::Client;
use crate::harness::mail::Mail;
use crate::harness::{Service, database};

const TRADER: &str = "trader@example.com";
const NEW: &str = "new.mailbox@example.com";
const PASSWORD: &str = "morning boat on a green river";
const ANOTHER: &str = "night train in autumn rain";
const DELAY: Duration = Duration::from_hours(1);
const NOTICE: Duration = Duration::from_hours(7 * 24);
/// Settings that turn the admin API on, whose database role may change an address.
const SETTINGS: [&str; 2] =
    ["--admin-addr=127.0.0.1:0", "--recovery-url=https://platform.verolabs.co/recovery"];

/// Two operators agree that an account gets the address `new`.
pub async fn two_operators_agree(pool: &PgPool, now: OffsetDateTime, account: Uuid, new: &str) -> Uuid {
    let mut connection = pool.acquire().await.unwrap();
    let (actor, new) = (Actor::of_command("alice", "the mailbox is lost"), EmailAddress::parse(new).unwrap());
    let asked = request::ask_address(&mut connection, now, actor, account, &new).await.unwrap();
    let Asked::Asked(id) = asked else { panic!("{asked:?}") };
    let (actor, terms) = (Actor::of_command("bob", "called back"), (DELAY, NOTICE));
    let approved = request::approve(&mut connection, now, actor, id, terms).await.unwrap();
    assert_eq!(approved, Approved::Address(now + DELAY));
    id
}

/// Carol asks for a ticket for an account that needs two operators.
pub async fn asks_for_a_ticket(pool: &PgPool, now: OffsetDateTime, account: Uuid) -> Uuid {
    let mut transaction = pool.begin().await.unwrap();
    let carol = Actor::of_command("carol", "locked out");
    let Permit::Asked(id) = ticket::permit(&mut transaction, now, carol, account).await.unwrap() else {
        panic!("asked")
    };
    transaction.commit().await.unwrap();
    id
}

/// A service with one account, and the connection with which operators change its database.
struct Desk {
    service: Service,
    connection: PgConnection,
    account: Uuid,
}

impl Desk {
    async fn open(pool: &PgPool) -> Self {
        Self::open_with(pool, &SETTINGS).await
    }

    async fn open_with(pool: &PgPool, settings: &[&str]) -> Self {
        let service = Service::start_with_settings(pool, settings).await;
        service.has_trader(TRADER, PASSWORD).await;
        let connection = PgConnection::connect(&database::operator_url(pool)).await.unwrap();
        let account = "SELECT id FROM account WHERE email = $1";
        let account = sqlx::query_scalar(account).bind(TRADER).fetch_one(pool).await.unwrap();
        Self { service, connection, account }
    }

    async fn asks(&mut self, operator: &str, new: &str) -> Asked {
        let (now, actor) = (self.service.app.clock.now(), Actor::of_command(operator, "the mailbox is lost"));
        let new = EmailAddress::parse(new).unwrap();
        let result =
            request::ask_address(&mut self.connection, now, actor, self.account, &new).await.unwrap();
        self.unlocks().await;
        result
    }

    async fn approves(&mut self, operator: &str, id: Uuid) -> Approved {
        let (now, actor) = (self.service.app.clock.now(), Actor::of_command(operator, "called back"));
        let result = request::approve(&mut self.connection, now, actor, id, (DELAY, NOTICE)).await.unwrap();
        self.unlocks().await;
        result
    }

    async fn cancels(&mut self, operator: &str, id: Uuid) -> Cancelled {
        let (now, actor) = (self.service.app.clock.now(), Actor::of_command(operator, "a mistake"));
        let result = request::cancel(&mut self.connection, now, actor, id).await.unwrap();
        self.unlocks().await;
        result
    }

    /// A transaction that was dropped is rolled back when its connection is used again.
    async fn unlocks(&mut self) {
        self.connection.ping().await.unwrap();
    }

    /// Two operators agree on the new address.
    async fn agrees(&self, new: &str) -> Uuid {
        two_operators_agree(&self.service.pool, self.service.app.clock.now(), self.account, new).await
    }

    /// Two operators agree on the new address, and the notice to the owner is sent.
    async fn agrees_and_tells(&self, new: &str) -> Uuid {
        let id = self.agrees(new).await;
        self.service.until_outbox_has(0).await;
        id
    }

    async fn state(&mut self, id: Uuid) -> State {
        let now = self.service.app.clock.now();
        request::find(&mut self.connection, now, id).await.unwrap().unwrap().state
    }

    async fn email(&self) -> String {
        let email = sqlx::query_scalar("SELECT email FROM account WHERE id = $1").bind(self.account);
        email.fetch_one(&self.service.pool).await.unwrap()
    }

    /// One round of the task that carries out due changes. The service runs a round every few
    /// seconds.
    async fn round(&self) {
        AddressChanges::new(Arc::clone(&self.service.app)).round().await;
    }

    async fn passes(&self, time: Duration) {
        self.service.clock.advance(time);
        self.round().await;
    }

    async fn events(&self, what: &str) -> i64 {
        self.service.count(&format!("audit_event WHERE what = '{what}'")).await
    }

    /// The texts of the emails to an address.
    fn emails_to(&self, address: &str) -> Vec<String> {
        let mails = self.service.relay.mails();
        mails.iter().filter(|mail| mail.recipients == [address]).map(Mail::text).collect()
    }

    async fn signed_in(&self, password: &str) -> Client {
        let mut client = self.service.client();
        assert!(client.logs_in(&self.email().await, password).await.is_signed_in());
        client
    }

    async fn closes(self) {
        self.connection.close().await.unwrap();
        self.service.stops().await;
    }
}
