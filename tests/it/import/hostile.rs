//! A Kratos that answers what it should not.

use std::io::Read as _;

use axum::http::Method;
use serde_json::json;
use sqlx::PgPool;

use super::kratos::{carries_back, failed, present, resets, takes_over};
use super::{imports, lines, path_of, traders, vos_auth};
use crate::harness::Service;
use crate::harness::kratos::Kratos;

/// The tokens of its pages go round: three of them, so that no page names itself.
#[sqlx::test]
async fn a_list_that_never_ends_is_noticed(pool: PgPool) {
    let kratos = Kratos::start(&traders(0..1201));
    kratos.never_ends();
    let ended = takes_over(&pool, &kratos, &[]);
    assert!(!ended.well && ended.why.contains("it returns to an earlier page"), "{}", ended.why);
    assert!(kratos.asked(&Method::GET) < 10);
    assert!(ended.said.contains("1201 new"), "{}", ended.said);
}

/// Asked for one identity, it answers with another one, whose traits would be put in the place of the first.
#[sqlx::test]
async fn an_identity_that_was_not_asked_for_is_not_put(pool: PgPool) {
    let all = traders(0..2);
    let kratos = Kratos::start(&all);
    assert!(takes_over(&pool, &kratos, &[]).well);
    let since = present();
    let service = Service::start(&pool).await;
    resets(&service, 0..1).await;
    service.stops().await;
    kratos.changes(all[0]["id"].as_str().unwrap(), "/id", all[1]["id"].clone());
    let ended = carries_back(&pool, &kratos, &since, &[]);
    assert!(!ended.well, "{}", ended.said);
    assert_eq!(kratos.asked(&Method::PUT), 0);
    let list = failed(&pool);
    assert_eq!(list[0]["id"], all[0]["id"]);
    assert!(list[0]["reason"].as_str().unwrap().contains("not the requested identity"), "{list:?}");
}

/// Who had a file of that name open before reads nothing of what is written now.
#[sqlx::test]
async fn an_export_is_read_by_nobody_who_had_its_file_open(pool: PgPool) {
    assert!(imports(&pool, &lines(&traders(0..1)), &[]).well);
    let file = path_of(&pool, "export.ndjson");
    std::fs::write(&file, "").unwrap();
    let mut earlier = std::fs::File::open(&file).unwrap();
    assert!(vos_auth(&pool, &["account", "export", "--out", &file]).well);
    let mut seen = String::new();
    earlier.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "");
    let exported: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(exported["traits"]["email"], json!("trader-0@example.com"));
}
