//! The integration tests: one binary, so that the suite links once. Real PostgreSQL (a database per test), real SMTP,
//! real HTTP, the built program where the program matters. Time is moved, never waited for.

mod abuse;
mod clock;
mod contract;
mod delivery;
mod deploy;
mod faults;
mod harness;
mod hashing;
mod jwt;
mod lockout;
mod login;
mod mail;
mod operator;
mod outage;
mod postfix;
mod program;
mod races;
mod refusals;
mod relays;
mod reset;
mod session;
mod start;
mod verify;
