//! Imports that are interrupted, repeated, or done with a later export; and exports from vos-auth.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};
use sqlx::PgPool;
use vos_auth::password::{Cost, Password};

use super::{
    ARGON2ID, PASSWORD, accounts, count, hash_of, imports, lines, path_of, refusals, traders, vos_auth,
};
use crate::harness::program::Program;
use crate::harness::{Service, database};

const NEW: &str = "night train in autumn rain";

/// An import, the same import again, and an import of a later export. The last one changes only
/// accounts that were not used in vos-auth.
#[sqlx::test]
async fn a_repeated_import_changes_no_account_that_was_used_here(pool: PgPool) {
    let mut all = traders(0..5);
    // A hash at our own cost, so that no sign-in rehashes it.
    let at_our_cost = Password::new(PASSWORD).hash(Cost { memory_kib: 7168, passes: 1, lanes: 1 });
    all[3]["credentials"]["password"]["config"]["hashed_password"] = at_our_cost.into();
    assert!(imports(&pool, &lines(&all), &[]).ok);
    let before = accounts(&pool).await;
    let again = imports(&pool, &lines(&all), &[]);
    assert!(
        again.ok && again.out.starts_with("5 records: 0 new, 0 changed, 5 unchanged, 0 kept"),
        "{}",
        again.out
    );
    assert_eq!(accounts(&pool).await, before);

    let service = Service::start(&pool).await;
    let mut owner = service.verified("trader-0@example.com").await;
    assert!(owner.resets(NEW).await.is_signed_in());
    assert!(service.client().logs_in("trader-1@example.com", PASSWORD).await.is_signed_in());
    assert!(vos_auth(&pool, &["account", "disable", "trader-2@example.com", "--yes"]).ok);
    assert!(service.client().logs_in("trader-3@example.com", PASSWORD).await.is_signed_in());
    let used = accounts(&pool).await;
    // Meanwhile the accounts change in Kratos.
    for identity in &mut all {
        identity["credentials"]["password"]["config"]["hashed_password"] = ARGON2ID.into();
        identity["traits"]["desk"] = json!(7);
    }
    let changed = imports(&pool, &lines(&all), &[]);
    assert!(
        changed.ok && changed.out.starts_with("5 records: 0 new, 1 changed, 0 unchanged, 4 kept"),
        "{}",
        changed.out
    );
    let after = accounts(&pool).await;
    assert_eq!(after[..4], used[..4]);
    assert_eq!(after[4]["traits"]["desk"], 7);
    assert_eq!(hash_of(&pool, "trader-4@example.com").await.as_deref(), Some(ARGON2ID));
    assert!(service.client().logs_in("trader-0@example.com", NEW).await.is_signed_in());
    assert_eq!(service.client().logs_in("trader-0@example.com", PASSWORD).await.status, 401);
    service.stops().await;
}

/// Starts an import from a pipe that stays open, and waits until `rows` accounts are stored.
async fn starts_import(pool: &PgPool, content: String, rows: i64) -> (Program, std::fs::File) {
    let pipe = path_of(pool, "pipe");
    // An earlier run may have left a pipe.
    let _ = std::fs::remove_file(&pipe);
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let url = database::operator_url(pool);
    let program = Program::start(&["account", "import", &pipe], &[("DATABASE_URL", url.as_str())]);
    let writing = tokio::task::spawn_blocking(move || {
        let mut pipe = std::fs::OpenOptions::new().write(true).open(pipe).unwrap();
        pipe.write_all(content.as_bytes()).unwrap();
        pipe
    });
    let pipe = writing.await.unwrap();
    while count(pool, "account").await < rows {
        tokio::task::yield_now().await;
    }
    (program, pipe)
}

/// An import that is killed and repeated stores the same accounts as an uninterrupted one.
#[sqlx::test]
async fn a_killed_import_that_is_repeated_ends_the_same(pool: PgPool) {
    let all = lines(&traders(0..5001));
    assert!(imports(&pool, &all, &[]).ok);
    let uninterrupted = accounts(&pool).await;
    assert_eq!(uninterrupted.len(), 5001);
    sqlx::query("DELETE FROM account").execute(&pool).await.unwrap();

    let (mut program, _pipe) = starts_import(&pool, all.clone(), 4000).await;
    program.is_killed();
    assert_eq!(count(&pool, "account").await, 4000, "it was killed in the middle");
    let again = imports(&pool, &all, &[]);
    assert!(
        again.ok && again.out.starts_with("5001 records: 1001 new, 0 changed, 4000 unchanged"),
        "{}",
        again.out
    );
    assert!(accounts(&pool).await == uninterrupted);
}

#[sqlx::test]
async fn ctrl_c_ends_an_import_after_its_batch(pool: PgPool) {
    let (program, _pipe) = starts_import(&pool, lines(&traders(0..3000)), 2000).await;
    program.signal("-INT");
    let (out, ok) = program.ends();
    assert!(
        !ok && out.iter().any(|line| line.contains("stopped after 2000 records; run the same import again")),
        "{out:?}"
    );
    assert_eq!(count(&pool, "account").await, 2000);
}

/// `import` reads into an empty database what `export` wrote, whatever the traits.
#[sqlx::test]
async fn an_export_can_be_imported_as_the_same_accounts(pool: PgPool) {
    let mut all = traders(0..2100);
    all[1]["state"] = "inactive".into();
    all[2]["metadata_public"] = json!({ "locale": "vi" });
    all[3]["credentials"] = json!({});
    all[4]["traits"] = json!({ "mails": ["trader-4@example.com"] });
    let email_path = ["--email-path", "recovery_addresses.0.value"];
    assert!(imports(&pool, &lines(&all), &email_path).ok);
    let before = accounts(&pool).await;
    let file = path_of(&pool, "export.ndjson");
    // An older file that everybody could read.
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let ended = vos_auth(&pool, &["account", "export", "--out", &file]);
    assert!(ended.ok && ended.err.starts_with("2100 accounts"), "{}", ended.err);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(count(&pool, "audit_event WHERE what = 'accounts_exported' AND account_id IS NULL").await, 1);
    let exported = std::fs::read_to_string(&file).unwrap();
    let first: Value = serde_json::from_str(exported.lines().next().unwrap()).unwrap();
    for pointer in ["/id", "/state", "/traits", "/credentials/password/config/hashed_password", "/created_at"]
    {
        assert_eq!(first.pointer(pointer), all[0].pointer(pointer), "{pointer}");
    }
    sqlx::query("DELETE FROM account").execute(&pool).await.unwrap();
    let ended = imports(&pool, &exported, &email_path);
    assert!(ended.ok, "{}", ended.err);
    assert!(accounts(&pool).await == before);
    sqlx::query("DELETE FROM account WHERE email <> 'trader-0@example.com'").execute(&pool).await.unwrap();
    let printed: Value = serde_json::from_str(&vos_auth(&pool, &["account", "export"]).out).unwrap();
    assert_eq!(printed["credentials"], first["credentials"]);
}

/// An erased account does not come back with an old file.
#[sqlx::test]
async fn an_erased_account_is_not_imported_again(pool: PgPool) {
    let all = lines(&traders(0..2));
    assert!(imports(&pool, &all, &[]).ok);
    assert!(vos_auth(&pool, &["account", "erase", "trader-0@example.com", "--yes"]).ok);
    let ended = imports(&pool, &all, &[]);
    assert!(!ended.ok && ended.out.starts_with("2 records: 0 new, 0 changed, 1 unchanged"), "{}", ended.out);
    assert_eq!(refusals(&pool)[0]["reason"], "the account was erased here");
    assert_eq!(count(&pool, "account").await, 1);
}
