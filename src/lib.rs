//! vos-auth is the authentication host of Vero OMS. Its main job is password recovery by an emailed
//! one-time code: `POST /api/auth/recovery/start` stores a short-lived session, enqueues an email,
//! and sets a cookie.
//!
//! # Module map
//!
//! A file's name says what it contains. Each table belongs to one module. `docs/architecture.md`
//! has diagrams. `CONTRIBUTING.md` has the steps to add a route, a setting, an error code or a
//! migration.
//!
//! | Looking for | Module | Owns |
//! |---|---|---|
//! | all routes, on one screen | [`http`] | axum, with [`server`] and `cli/dev` |
//! | the handlers of the API; cookies | `http/{recovery,session,cookie}.rs` | |
//! | checks before a handler: request id, client address, rate limits, origin | [`http::guard`] | |
//! | `/recovery`, the page on the API | [`http::page`], `src/http/page/` | |
//! | pages and their files: policy, compression, caching | `http/{files,asset}.rs` | |
//! | health, readiness, metrics endpoints | [`http::health`], [`http::metrics`] | |
//! | OpenAPI documents, JWKS | [`http::well_known`] | |
//! | strict JSON, the client's language | [`http::extract`] | |
//! | client connections: limits, timeouts, eviction of idle ones | [`http::listener`], [`http::stream`] | |
//! | TLS and client certificates of the admin API | [`http::tls`] | der, webpki |
//! | the HTTP status of each error; the error body | [`http::error`] | |
//! | error codes and their messages | [`error`], [`locale`] | |
//! | recovery: `start` (`recovery/start.sql`), `progress`, `verify`, `reset`, `replay` of a lost answer | [`recovery`] | `recovery_session` |
//! | login, refresh, logout, signed-in devices | [`session`] | `session` |
//! | a new password while signed in | [`password_change`] | |
//! | hashing on a bounded pool, the password policy, imported hashes | [`password`] | |
//! | passwords known from breaches: the filter, its file, how it is built | [`password::blocklist`] | xorf |
//! | JWTs, their keys and JWKS | [`jwt`] | |
//! | the cookie of a known browser, the ticket of an operator | [`known_device`] | |
//! | group commit: one flush for many callers | [`group_commit`] | |
//! | rate limits of addresses, devices and networks | [`throttle`] | `throttle` |
//! | who answers 429: for a network | [`http::guard`], `session/login.rs` | |
//! | who answers 429: for an address or an account | `recovery/start.rs`, `session/{login,confirm}.rs` | |
//! | pending emails: claim, lease, what an operator sees | [`outbox`] | `outbox`; its rounds append to `audit_event` |
//! | when an email is retried; what happens to one that is given up | `outbox/finish.rs` | |
//! | which couriers are alive | [`outbox::holder`] | |
//! | the loop that sends pending emails, its pace | [`courier`], `courier/{rounds,pace}.rs` | |
//! | one delivery: delivered, retried or given up | `courier/delivery.rs` | |
//! | relays, in order of preference | [`mail::gateway`] | lettre: all of `mail`, and [`email_address`] |
//! | one relay: its URL, its connections, its probe, one SMTP conversation | `mail/{relay_url,relay,probe,conversation}.rs` | |
//! | one relay checked as far as the recipient, for `doctor` | `mail/check.rs` | |
//! | connecting to a name with several addresses; TLS with relays | `mail/{connect,tls}.rs` | |
//! | signing in at a relay, XOAUTH2 access tokens | `mail/{sign_in,oauth}.rs` | oauth2 |
//! | why an email was not accepted; whether recipient or relay is at fault | [`mail::not_sent`], [`mail::verdict`] | |
//! | relays that refuse emails by policy are tried last | `mail/demotion.rs` | |
//! | DKIM signatures | [`mail::dkim`] | ring |
//! | an email: headers, envelope | [`mail::message`] | |
//! | what an email says, its colors | `mail/content.rs`, `src/mail/templates/` | |
//! | the sender's address, in ASCII | `mail/sender.rs` | |
//! | bounces: signed return paths, reports | [`mail::bounce`], [`mail::report`] | |
//! | webhooks of audit events: order, claims, requests | [`event_hook`] | `event_hook`, `event_delivery`, which a trigger fills |
//! | accounts; the kinds of hashes they have | [`account`] | `account`, `hash_census` |
//! | operations of operators on accounts, for the commands and the admin API | [`admin`] | |
//! | what two operators have to agree on: another address, a protected ticket | `admin/request/` | `operator_request` |
//! | an approved change of the address: stopping it, carrying it out | [`address_change`] | |
//! | operators of the admin API, their roles and tokens | [`operator`] | `operator` |
//! | the admin API at `ADMIN_ADDR`: who may call what, on one screen | [`http::admin`] | |
//! | `/console`, the support desk's page on the admin API | `src/http/admin/console/` | |
//! | moving accounts between systems; Ory Kratos's admin API | [`transfer`] | |
//! | HTTP requests to other services; which addresses they may reach | [`http_client`] | |
//! | the audit log | [`audit`] | `audit_event` |
//! | the client of a request: address, User-Agent, language | [`client`] | |
//! | tokens, keys; where a code is derived ([`secret::Key::code`]) | [`secret`] | all types of secrets |
//! | the time | [`clock`] | the only reader of the system clock |
//! | settings with their defaults, by section (`vos-auth dev` has others: `cli/dev`) | [`config`], `config/*.rs` | |
//! | the look of the page and of emails, from `BRAND_DIR` | [`brand`] | roxmltree |
//! | the parts that settings and secrets describe, read with all problems at once | [`parts`] | |
//! | the parts that all features share, built from them | [`app`] | |
//! | starting and stopping the tasks of a replica | [`server`] | |
//! | connections to PostgreSQL, its health | [`database`] | |
//! | `DATABASE_URL`; which address of the server is used | `database/{options,endpoint}.rs` | |
//! | migrations: locks, tries, unfinished indexes | `database/migration.rs`, `migrations/` | `_sqlx_migrations` |
//! | threads of their own: commits of starts, the courier | [`thread`] | |
//! | deleting expired rows | [`sweeper`] | |
//! | counting kinds of stored hashes and bouncing addresses | [`census`] | |
//! | metrics | [`metrics`] | |
//! | spans and their export | [`traces`] | opentelemetry |
//! | commands; `vos-auth dev` | [`cli`], `cli/dev` | |
//! | what is wrong with an installation: `config check`, `doctor` | `cli/settings.rs`, `cli/doctor` | |
//! | the command line, and all bad values of it at once | `cli/arguments.rs`, `config/problems.rs` | |
//! | output of commands, safe for a terminal | [`terminal`] | |
//!
//! Imports point one way, as CI checks: `cli` → `server` → {`http`, `sweeper`, `census`} →
//! {`transfer`, `address_change`} → `admin` → {`recovery`, `password_change`} → `session` → `app` →
//! {`courier`, `parts`} → {`account`, `event_hook`, `operator`, `throttle`, `outbox`} → {`audit`, `mail`,
//! `jwt`, `password`, `known_device`, `database`, `group_commit`} → {`client`, `secret`, `email_address`,
//! `locale`, `brand`, `clock`, `config`, `error`, `metrics`, `http_client`, `terminal`, `thread`,
//! `traces`}. `transfer` uses no layer above `account`.
//!
//! # The life of one `start`
//!
//! 1. [`http::guard::observe`] assigns a request id and determines the client's address;
//!    [`http::guard::admit`] checks the origin and draws on the network's rate limit.
//! 2. [`http::extract::StrictJson`] parses the body, [`email_address::EmailAddress`] the address.
//! 3. [`recovery::Recovery::start`] checks that a relay is up and hands the start to the
//!    [`group_commit`].
//! 4. One statement commits every start that has arrived: rate limit, session, pending email. The
//!    [`courier`] is woken.
//! 5. The response carries the cookie.
//! 6. Later, the courier claims the row, looks the account up, derives the code, offers the email
//!    to the relays in turn until one accepts it, and deletes the row in its next round.
//!
//! # The life of one `reset-password`
//!
//! 1. [`http::recovery::reset_password`] reads cookie and body; [`recovery::Recovery::reset`] looks
//!    the session up first. Without a session, or if the client names another recovery, the answer
//!    is 401 whatever the body is.
//! 2. [`password::Hasher`] has a free place, or the answer is 503. There the policy is checked and
//!    the hash computed, outside any transaction.
//! 3. One transaction locks the account's row, consumes the recovery, ends other recoveries, sets
//!    the password, revokes every session, opens a new one, enqueues the owner's notice, and
//!    records the event.
//! 4. The response contains token and JWT, clears the recovery cookie, and makes the browser known.
//!
//! # The life of one failed `login`
//!
//! 1. [`http::guard::admit_login`] draws on the network's rate limit. [`session::Login::run`] draws
//!    the rest of the price: one unit for every four of our own hashes that could be computed in
//!    the time of the slowest stored hash.
//! 2. The login waits for the turn of its address ([`throttle::Turns`]), then takes a place of the
//!    [`password::Hasher`] or is refused.
//! 3. It is counted as a failure before `account` is read. The password is then verified against
//!    the account's hash, or against a decoy hash if there is none ([`password::Decoys`]).
//! 4. After `LOGIN_FAILURE_TIME` the answer is 401, and the next login of the address has its turn.
//!    Once the login has its turn, all this happens even if the client disconnects.
//!
//! # Invariants
//!
//! 1. **Blind start.** Before its step 6, a `start` never reads `account`, not even by a foreign
//!    key. `verify` and `progress` read it only after the right code was entered; `progress` never
//!    reads the outbox.
//! 2. **Accepted is kept.** A 200 follows the commit of session and email. A row leaves the outbox
//!    when a relay accepted its email, when the email expires too soon, or when there is no
//!    recipient: no active account has the address, its recovery was used or ended, or every relay
//!    that is up says that the mailbox does not exist ([`mail::verdict`]; a notice is then kept
//!    until it expires). No email is sent inside a transaction.
//! 3. **The code is never at rest.** It is derived from a secret and the session's id
//!    ([`secret::Key::code`]). No table, log or subject contains it.
//! 4. **Guesses are bounded per address**, in PostgreSQL, for all replicas together
//!    ([`throttle::RateLimit`]): an attempt is spent before its code is compared, and every login
//!    counts as failed until its password is found right.
//! 5. **A password is used once at a time.** A transaction that sets a password, or that acts because
//!    a password was right, locks the account's row first ([`account::lock`]). A new password ends
//!    every session and recovery in the same transaction.
//! 6. **Only the probe sets a relay's state.** A send changes nothing that `start` can see; it
//!    changes the order in which the courier tries relays.
//! 7. **One error shape.** Every error of the router is `{error, message, status}`; `start` answers
//!    200, 400, 429 or 502.
//! 8. **Secrets and addresses are never printed.** Their types redact themselves; errors and logs
//!    never quote a relay, a client or a row.

pub mod account;
pub mod address_change;
pub mod admin;
pub mod app;
pub mod audit;
pub mod brand;
pub mod census;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod courier;
pub mod database;
pub mod email_address;
pub mod error;
pub mod event_hook;
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
pub mod parts;
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
