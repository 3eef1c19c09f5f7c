//! The receiver of events in `make chaos`: every event has to reach it, in order for each account.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;
use vos_auth::audit::{self, Event};
use vos_auth::clock::new_id;
use vos_auth_lab::webhook::Call;
use vos_auth_lab::{Failure, now};

/// The number of accounts to which [`appends`] appends events, besides the accounts of the starts.
const ACCOUNTS: usize = 20;
/// The pause between two events that [`appends`] appends.
const PAUSE: Duration = Duration::from_millis(25);

/// Appends events until the future is dropped. If PostgreSQL fails, it connects again.
pub async fn appends(options: PgConnectOptions) {
    let accounts: Vec<_> = (0..ACCOUNTS).map(|_| new_id(now())).collect();
    loop {
        if let Ok(mut connection) = PgConnection::connect_with(&options).await {
            let mut turn = 0;
            while let Ok(()) =
                audit::record(&mut connection, now(), Event::SignedIn, accounts[turn % ACCOUNTS], None).await
            {
                turn += 1;
                tokio::time::sleep(PAUSE).await;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until no event is pending.
pub async fn drains(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    while sqlx::query_scalar::<_, i64>("SELECT count(*) FROM event_delivery")
        .fetch_one(&mut *connection)
        .await?
        > 0
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Compares the audit log with what the receiver accepted, and prints the result.
///
/// # Errors
///
/// If an event was lost or made up, or the events of an account came in the wrong order.
pub async fn are_told(connection: &mut PgConnection, taken: &[Call]) -> Result<(), Failure> {
    let logged = "SELECT id, account_id FROM audit_event ORDER BY created_at, id";
    let logged: Vec<(Uuid, Option<Uuid>)> = sqlx::query_as(logged).fetch_all(connection).await?;
    let mut wanted: BTreeMap<Uuid, Vec<String>> = BTreeMap::new();
    for (id, account) in &logged {
        wanted.entry(account.unwrap_or_default()).or_default().push(id.to_string());
    }
    let (mut seen, mut came) = (HashSet::new(), HashMap::<&str, Vec<&str>>::new());
    for call in taken {
        // Only the first copy of an event counts for the order.
        if seen.insert(call.id()) {
            came.entry(call.subject()).or_default().push(call.id());
        }
    }
    let lost: Vec<_> = logged.iter().filter(|(id, _)| !seen.contains(id.to_string().as_str())).collect();
    let made_up = seen.len() + lost.len() - logged.len();
    let in_disorder = wanted.iter().filter(|(account, events)| {
        let came = came.get(account.to_string().as_str()).map_or(&[][..], Vec::as_slice);
        came.len() == events.len() && !came.iter().eq(events.iter())
    });
    let in_disorder = in_disorder.count();
    println!("events appended                        {}", logged.len());
    println!("  sent again                           {}", taken.len() - seen.len());
    println!("  of no entry of the audit log         {made_up}");
    println!("  lost                                 {}", lost.len());
    println!("accounts whose events came in disorder {in_disorder} of {}", wanted.len());
    if lost.is_empty() && made_up == 0 && in_disorder == 0 {
        Ok(())
    } else {
        Err("a promise to the receiver of events was broken".into())
    }
}
