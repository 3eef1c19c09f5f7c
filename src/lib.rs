//! vos-auth is the authentication host of Vero OMS. Its main job is password recovery by an emailed one-time code:
//! `POST /api/auth/recovery/start` stores a short-lived session, owes a mail, and sets a cookie.
//!
//! # Where things are
//!
//! A file's name says what it owns, and a table belongs to one file.
//!
//! | Looking for | Module | Owns |
//! |---|---|---|
//! | the routes, all of them | [`http`] | what axum touches, with [`server`] and [`dev`] |
//! | what passes before a handler: request id, client address, budget, origin | [`http::guard`] | |
//! | `/recovery`, the page on the API | [`http::page`], `src/http/page/` | |
//! | strict JSON, the client's language | [`http::extract`] | |
//! | connections of clients: how many, how long, who makes room | [`http::listener`], [`http::stream`] | |
//! | which problem has which status; the error shape | [`http::error`] | the one status map |
//! | what errors there are, and what they say | [`error`], [`locale`] | |
//! | recovery: `start` and its one statement, `progress`, `verify`, `reset` | [`recovery`] | `recovery_session` |
//! | login, refresh, logout, where one is signed in | [`session`] | `session` |
//! | a new password while signed in | [`password_change`] | |
//! | hashing on a bounded pool, the policy, foreign hashes | [`password`] | |
//! | JWTs, their keys and JWKS | [`jwt`] | |
//! | the cookie of a browser that has signed in before, the ticket of an operator | [`known_device`] | |
//! | many callers, one flush | [`group_commit`] | |
//! | budgets of addresses, devices and networks | [`throttle`] | `throttle` |
//! | mails that are owed: claim, lease, retry, give up; which couriers live | [`outbox`], [`outbox::holder`] | `outbox`, and its rounds append to `audit_event` |
//! | the loop that sends them | [`courier`] | |
//! | relays, in order of preference; which takes the next mail | [`mail::gateway`] | what lettre touches: all of `mail`, and [`email_address`] |
//! | one relay: its URL, its connections; whether it is usable; one SMTP conversation | `mail/relay.rs`, `mail/probe.rs`, `mail/conversation.rs` | |
//! | connecting to a name with several addresses; TLS with relays | `mail/connect.rs`, `mail/tls.rs` | |
//! | signing in at a relay by XOAUTH2; the access token for it | `mail/sign_in.rs`, `mail/oauth.rs` | what oauth2 touches |
//! | why a mail was not handed over; whose fault that is | [`mail::not_sent`], [`mail::verdict`] | |
//! | which relay is asked last, because it refuses mails by policy | `mail/standing.rs` | |
//! | DKIM signatures of mails | [`mail::dkim`] | what ring touches |
//! | what a mail says | [`mail::message`], `src/mail/templates/` | |
//! | who it is from, in ASCII | `mail/sender.rs` | |
//! | where a bounce goes, and what one says | [`mail::bounce`], [`mail::report`] | |
//! | accounts; what kinds of hashes they have | [`account`] | `account`, `hash_census` |
//! | what an operator does to one: disable, another address, erase | [`operator`] | |
//! | the move from another system, and back | [`import`], [`export`] | |
//! | Ory Kratos's admin API, for both | [`kratos`] | |
//! | asking other services over HTTP | [`http_client`] | |
//! | what happened | [`audit`] | `audit_event` |
//! | who asks: address, User-Agent, language | [`client`] | |
//! | tokens, codes, keys | [`secret`] | the one place for secrets |
//! | the time | [`clock`] | the one place that reads it |
//! | settings | [`config`] | |
//! | connections to PostgreSQL, its health | [`database`] | |
//! | what `DATABASE_URL` may say; which address of the server is used | `database/options.rs`, `database/endpoint.rs` | |
//! | what has a thread of its own: commits of starts, the courier | [`thread`] | |
//! | deleting what is over | [`sweeper`] | |
//! | counting the kinds of stored hashes, for the decoys, and the addresses that bounce | [`census`] | |
//! | figures | [`metrics`] | |
//! | spans, and the way to their receiver | [`traces`] | what opentelemetry touches |
//! | commands | [`cli`]; `vos-auth dev` in [`dev`] | |
//! | what commands print | [`terminal`] | what a terminal may be shown |
//!
//! Imports point one way, as CI checks: `cli` → {`operator`, `import`, `export`, `dev`} → `server` → {`http`, `sweeper`, `census`} → {`recovery`,
//! `password_change`} → `session` → `app` → `courier` → {`account`, `throttle`, `outbox`} → {`audit`, `mail`, `jwt`, `password`,
//! `known_device`, `database`, `group_commit`, `kratos`} → {`client`, `secret`, `email_address`, `locale`, `clock`, `config`, `error`, `metrics`,
//! `http_client`, `terminal`, `thread`, `traces`}.
//!
//! # The life of one `start`
//!
//! 1. [`http::guard::observe`] gives it an id and finds the client's address; [`http::guard::admit`] counts it against
//!    its network and checks its origin.
//! 2. [`http::extract::StrictJson`] reads the body, [`email_address::EmailAddress`] the address.
//! 3. [`recovery::Recovery::start`] asks whether a relay is up and hands the start to the [`group_commit`].
//! 4. One statement commits every start that has arrived: budget, session, owed mail. The [`courier`] is woken.
//! 5. The answer carries the cookie.
//! 6. Later, the courier claims the row, looks the account up, derives the code, offers the mail to one relay after the
//!    other until one takes it, and deletes the row with its next claim.
//!
//! # The life of one `reset-password`
//!
//! 1. [`http::recovery::reset_password`] reads cookie and body; [`recovery::Recovery::reset`] looks the session up first,
//!    so that without one the answer is 401 whatever the body says, as it is if the client means another recovery.
//! 2. [`password::Hasher`] gives a place or 503; the policy is checked and the hash made there, outside any transaction.
//! 3. One transaction: the account's row is locked, the recovery consumed, the other recoveries ended, the password set,
//!    every session revoked and a new one opened, the owner's mail owed, the event recorded.
//! 4. The answer carries token and JWT, clears the recovery cookie, and makes the browser known.
//!
//! # The life of one failed `login`
//!
//! 1. [`http::guard::admit_login`] counts it against its network, and [`session::Login::run`] charges the rest of its price: a unit
//!    for the time of four hashes of ours that the slowest stored one takes.
//! 2. It waits for the turn of its address ([`throttle::Turns`]), then takes a place of the [`password::Hasher`], or is refused.
//! 3. It is counted as a failure; only then `account` is read, and the password is verified: against the account's hash, or
//!    against the decoy of the address ([`password::Decoys`]).
//! 4. At `LOGIN_FAILURE_TIME` it is answered 401, and the next login of the address has its turn. A client that goes away changes
//!    nothing of this from the second step on.
//!
//! # What must stay true
//!
//! 1. **Blind start.** Nothing of a `start` before its step 6 reads `account`, not even by a foreign key. A `verify`
//!    reads it only after a right code, and so does a `progress`, which never reads the outbox.
//! 2. **Accepted is kept.** A 200 follows the commit of session and mail. A row leaves the outbox when a relay took its
//!    mail, when its code has too little life left, or when there is nobody to write to: every relay that is up says that there
//!    is no such mailbox ([`mail::verdict`]), or the account was erased. No mail is sent inside a transaction.
//! 3. **The code is never at rest.** It is derived from a secret and the session's id ([`secret::Key::code`]), and
//!    stands in no table, no log and no subject.
//! 4. **Guesses are bounded per address**, in PostgreSQL, for every replica together ([`throttle::RateLimit`]): an attempt is
//!    spent before its code is compared, a failed login is counted before its password is verified.
//! 5. **Once.** Whatever changes or uses a password locks the account's row first ([`account::lock`]); a changed password
//!    ends every session and recovery in the same transaction.
//! 6. **The relay's state is the probe's.** A send changes nothing that `start` can see; it changes the courier's order of
//!    the relays.
//! 7. **One error shape.** Whatever the router meets is answered `{error, message, status}`; `start` answers 200, 400,
//!    429 or 502.
//! 8. **Secrets and addresses do not show.** Their types redact themselves; errors and logs never quote a relay, a
//!    client or a row.

pub mod account;
pub mod app;
pub mod audit;
pub mod census;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod courier;
pub mod database;
pub mod email_address;
pub mod error;
pub mod group_commit;
pub mod http;
pub mod http_client;
pub mod jwt;
pub mod known_device;
pub mod locale;
pub mod mail;
pub mod metrics;
pub mod operator;
pub mod outbox;
pub mod password;
pub mod password_change;
pub mod recovery;
pub mod secret;
pub mod server;
pub mod session;
pub mod sweeper;
pub mod terminal;
pub mod thread;
pub mod throttle;
pub mod traces;
pub mod transfer;
