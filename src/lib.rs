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
//! | strict JSON, the client's language | [`http::extract`] | |
//! | which problem has which status; the error shape | [`http::error`] | the one status map |
//! | what errors there are, and what they say | [`error`], [`locale`] | |
//! | the recovery flow and the one statement of `start` | [`recovery`] | `recovery_session` |
//! | many callers, one flush | [`group_commit`] | |
//! | budgets of addresses and networks | [`throttle`] | `throttle` |
//! | mails that are owed: claim, lease, retry, give up | [`outbox`] | `outbox` |
//! | the loop that sends them | [`courier`] | |
//! | relays, their probe, one SMTP conversation | [`mail::gateway`] | what lettre touches, with [`mail::message`] and [`email_address`] |
//! | what a mail says | [`mail::message`], `src/mail/templates/` | |
//! | accounts | [`account`] | `account` |
//! | what happened | [`audit`] | `audit_event` |
//! | tokens, codes, keys | [`secret`] | the one place for secrets |
//! | the time | [`clock`] | the one place that reads it |
//! | settings | [`config`] | |
//! | connections to PostgreSQL, its health | [`database`] | |
//! | deleting what is over | [`sweeper`] | |
//! | figures | [`metrics`] | |
//! | commands | [`cli`]; `vos-auth dev` in [`dev`] | |
//!
//! Imports point one way: `cli` → `server` → `http` → `recovery` → `app` → {`account`, `throttle`, `audit`, `outbox`,
//! `courier`} → {`mail`, `password`} → {`secret`, `email_address`, `locale`, `clock`, `config`, `error`, `metrics`}.
//!
//! # The life of one `start`
//!
//! 1. [`http::guard::observe`] gives it an id and finds the client's address; [`http::guard::admit`] counts it against
//!    its network and checks its origin.
//! 2. [`http::extract::StrictJson`] reads the body, [`email_address::EmailAddress`] the address.
//! 3. [`recovery::Recovery::start`] asks whether a relay is up and hands the start to the [`group_commit`].
//! 4. One statement commits every start that has arrived: budget, session, owed mail. The [`courier`] is woken.
//! 5. The answer carries the cookie.
//! 6. Later, the courier claims the row, looks the account up, derives the code, sends the mail over a connection of its
//!    own, and deletes the row.
//!
//! # What must stay true
//!
//! 1. **Blind start.** Nothing before step 6 reads `account`, not even by a foreign key. There is no `JOIN account`
//!    outside [`outbox::claim`].
//! 2. **Accepted is kept.** A 200 follows the commit of session and mail. A row leaves the outbox when a relay took its
//!    mail, when its code is too old, or when there is nobody to write to. No mail is sent inside a transaction.
//! 3. **The code is never at rest.** It is derived from a secret and the session's id ([`secret::CodeKey::code`]), and
//!    stands in no table, no log and no subject.
//! 4. **Codes are bounded per address**, in PostgreSQL, for every replica together ([`throttle::Budget`]).
//! 5. **The relay's state is the probe's.** A send changes nothing that `start` can see.
//! 6. **One error shape.** Whatever the router meets is answered `{error, message, status}`; `start` answers 200, 400,
//!    429 or 502.
//! 7. **Secrets and addresses do not show.** Their types redact themselves; errors and logs never quote a relay, a
//!    client or a row.

pub mod account;
pub mod app;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod config;
pub mod courier;
pub mod database;
pub mod dev;
pub mod email_address;
pub mod error;
pub mod group_commit;
pub mod http;
pub mod locale;
pub mod mail;
pub mod metrics;
pub mod outbox;
pub mod password;
pub mod recovery;
pub mod secret;
pub mod server;
pub mod sweeper;
pub mod throttle;
