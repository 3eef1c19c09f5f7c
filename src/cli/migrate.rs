//! `vos-auth migrate`: brings the schema to this version while the previous release serves.

use super::Failure;
use crate::{config, database, terminal};

pub(super) async fn run() -> Result<(), Failure> {
    let options = database::options(&config::database_url()?)?;
    Ok(database::migrate(&options, database::MIGRATOR.iter().as_slice(), |line| terminal::line(line)).await?)
}
