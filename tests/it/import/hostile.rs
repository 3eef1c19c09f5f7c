//! A Kratos that gives wrong answers.

use std::io::Read as _;

use axum::http::Method;
use serde_json::json;
use sqlx::PgPool;

use super::kratos::{export_to, failed, import_from, present, resets};
use super::{imports, lines, path_of, traders, vos_auth};
use crate::harness::Service;
use crate::harness::kratos::Kratos;

/// Kratos's page tokens form a cycle of three, so that no page names itself.
#[sqlx::test]
async fn an_endless_list_is_detected(pool: PgPool) {
    let kratos = Kratos::start(&traders(0..1201));
    kratos.never_ends();
    let ended = import_from(&pool, &kratos, &[]);
    assert!(!ended.ok && ended.err.contains("it returns to an earlier page"), "{}", ended.err);
    assert!(kratos.asked(&Method::GET) < 10);
    assert!(ended.out.contains("1201 new"), "{}", ended.out);
}

/// Kratos answers with another identity, whose traits would replace those of the requested one.
#[sqlx::test]
async fn an_identity_that_was_not_requested_is_not_written(pool: PgPool) {
    let all = traders(0..2);
    let kratos = Kratos::start(&all);
    assert!(import_from(&pool, &kratos, &[]).ok);
    let since = present();
    let service = Service::start(&pool).await;
    resets(&service, 0..1).await;
    service.stops().await;
    kratos.changes(all[0]["id"].as_str().unwrap(), "/id", all[1]["id"].clone());
    let ended = export_to(&pool, &kratos, &since, &[]);
    assert!(!ended.ok, "{}", ended.out);
    assert_eq!(kratos.asked(&Method::PUT), 0);
    let list = failed(&pool);
    assert_eq!(list[0]["id"], all[0]["id"]);
    assert!(list[0]["reason"].as_str().unwrap().contains("not the requested identity"), "{list:?}");
}

/// A process that opened an older file of the same name cannot read the new export.
#[sqlx::test]
async fn an_export_is_not_readable_through_an_earlier_open_file(pool: PgPool) {
    assert!(imports(&pool, &lines(&traders(0..1)), &[]).ok);
    let file = path_of(&pool, "export.ndjson");
    std::fs::write(&file, "").unwrap();
    let mut earlier = std::fs::File::open(&file).unwrap();
    assert!(vos_auth(&pool, &["account", "export", "--out", &file]).ok);
    let mut seen = String::new();
    earlier.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "");
    let exported: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(exported["traits"]["email"], json!("trader-0@example.com"));
}
