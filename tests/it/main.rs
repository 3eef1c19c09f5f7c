//! The integration tests: one binary, so that the suite links once. Real PostgreSQL (a database per test), real SMTP,
//! real HTTP, the built program where the program matters. Time is moved, never waited for.

mod abuse;
mod contract;
mod delivery;
mod harness;
mod mail;
mod outage;
mod program;
mod refusals;
mod start;
