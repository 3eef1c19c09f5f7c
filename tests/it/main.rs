//! The integration tests: one binary, so that the suite links once. Real PostgreSQL (a database per test), real SMTP,
//! real HTTP, the built program where the program matters. Time is moved, never waited for.

mod abuse;
mod accounts;
mod clock;
mod configuration;
mod contract;
mod delivery;
mod deploy;
mod faults;
mod harness;
mod hashing;
mod hostile;
mod hostile_syntax;
mod import;
mod jwt;
mod lockout;
mod login;
mod mail;
mod operator;
mod outage;
mod page;
mod page_trouble;
mod postfix;
mod program;
mod properties;
mod races;
mod readonly;
mod refusals;
mod relays;
mod reset;
mod session;
mod start;
mod traces;
mod verify;
