//! What an import leaves behind, files that begin with a byte order mark, and errors that quote no
//! record.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};
use sqlx::PgPool;

use super::kratos::import_from;
use super::{BCRYPT, Outcome, count, identity, imports, lines, path_of, traders, vos_auth};
use crate::harness::kratos::Kratos;

/// The list of what is left behind. It has nothing of a record but its id.
fn left_behind(pool: &PgPool) -> Vec<Value> {
    let file = path_of(pool, "import.left-behind.ndjson");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains('@') && !text.contains("crm-"), "{text}");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Four identities: one is imported completely, two leave something behind, and one is refused.
fn identities() -> Vec<Value> {
    let mut all = traders(0..4);
    let credential = |kind: &str| json!({ "type": kind, "identifiers": ["x"], "config": { "secret": "x" } });
    for kind in ["totp", "lookup_secret", "webauthn", "passkey"] {
        all[1]["credentials"][kind] = credential(kind);
    }
    all[1]["recovery_addresses"] =
        json!([{ "value": "trader-1@example.com" }, { "value": "second@example.com" }]);
    all[1]["verifiable_addresses"] = json!([{ "value": "second@example.com", "verified": false }]);
    all[2]["credentials"]["totp"] = credential("totp");
    all[2]["metadata_public"] = json!({ "locale": "en", "desk": 7 });
    all[2]["metadata_admin"] = json!({ "limit": 1 });
    all[2]["external_id"] = "crm-2".into();
    all[3]["credentials"]["totp"] = credential("totp");
    all[3]["traits"]["email"] = "no address".into();
    all
}

/// The import reads a running Kratos, which shows the kind of a second factor and not its secret.
/// A refused identity is not counted.
#[sqlx::test]
async fn what_is_left_behind_is_counted_by_kind_and_listed_by_id(pool: PgPool) {
    let all = identities();
    let kratos = Kratos::start(&all);
    for more in [&["--dry-run"][..], &[]] {
        let ended = import_from(&pool, &kratos, more);
        assert!(ended.out.contains(", 1 refused"), "{}", ended.out);
        let (_, listed) = ended.out.split_once("left behind, as ").expect(&ended.out);
        let counts: Vec<_> = listed.lines().skip(1).take_while(|line| line.starts_with("  ")).collect();
        let expected = [
            "  1 have a second recovery address; codes are sent to the email alone",
            "  1 have another address that Kratos has not verified",
            "  2 have one-time codes of an app (TOTP)",
            "  1 have backup codes (lookup secrets)",
            "  1 have security keys (WebAuthn)",
            "  1 have passkeys",
            "  1 have public metadata besides the language",
            "  1 have admin metadata",
            "  1 have an external id",
        ];
        assert_eq!(counts, expected);
        let list = left_behind(&pool);
        let first =
            ["recovery_address", "unverified_address", "totp", "lookup_secret", "webauthn", "passkey"];
        let second = ["totp", "metadata_public", "metadata_admin", "external_id"];
        assert_eq!(
            list,
            [
                json!({ "id": all[1]["id"], "left_behind": first }),
                json!({ "id": all[2]["id"], "left_behind": second }),
            ]
        );
    }
    assert_eq!(count(&pool, "account").await, 3, "what is left behind stops no import");
}

/// After the import of a file, the list also has line numbers. If nothing is left behind, no list
/// is written.
#[sqlx::test]
async fn a_file_is_listed_by_line_and_a_whole_one_not_at_all(pool: PgPool) {
    let mut all = identities();
    all.pop();
    let ended = imports(&pool, &lines(&all), &[]);
    assert!(ended.ok, "{}", ended.err);
    let numbers: Vec<_> = left_behind(&pool).iter().map(|one| one["line"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [2, 3]);
    let ended = imports(&pool, &lines(&traders(0..1)), &[]);
    assert!(ended.ok && !ended.out.contains("left behind"), "{}", ended.out);
    assert!(!std::fs::exists(path_of(&pool, "import.left-behind.ndjson")).unwrap());

    let export = path_of(&pool, "export.ndjson");
    assert!(vos_auth(&pool, &["account", "export", "--out", &export]).ok);
    let again = vos_auth(&pool, &["account", "import", &export]);
    assert!(again.ok && !again.out.contains("left behind"), "an export of ours is whole: {}", again.out);
}

/// Run by root, an import must not delete /dev/null because nothing was left behind.
#[sqlx::test]
async fn a_list_without_records_deletes_only_a_regular_file(pool: PgPool) {
    let null = path_of(&pool, "null");
    // An earlier run has left it.
    let _ = std::fs::remove_file(&null);
    std::os::unix::fs::symlink("/dev/null", &null).unwrap();
    let ended =
        imports(&pool, &json!(traders(0..1)).to_string(), &["--refused", &null, "--left-behind", &null]);
    assert!(ended.ok, "{}", ended.err);
    assert!(std::path::Path::new(&null).is_symlink());
}

/// Windows PowerShell and some editors begin UTF-8 with a byte order mark. UTF-16 is refused as
/// UTF-16, and not read as CSV.
#[sqlx::test]
async fn a_file_with_a_byte_order_mark_is_read_as_what_it_is(pool: PgPool) {
    let all = traders(0..2);
    for content in [
        Value::Array(all.clone()).to_string(),
        format!("\n{}", lines(&all)),
        format!("email,id\ntrader-0@example.com,{}\ntrader-1@example.com,{}\n", all[0]["id"], all[1]["id"])
            .replace('"', ""),
    ] {
        let ended = imports(&pool, &format!("\u{feff}{content}"), &[]);
        assert!(ended.ok && ended.out.starts_with("2 records: 2 new"), "{}{}", ended.out, ended.err);
        sqlx::query("DELETE FROM account").execute(&pool).await.unwrap();
    }
    let file = path_of(&pool, "import");
    for utf16 in [u16::to_le_bytes, u16::to_be_bytes] {
        let octets: Vec<u8> = format!("\u{feff}{}", lines(&all)).encode_utf16().flat_map(utf16).collect();
        std::fs::write(&file, octets).unwrap();
        let ended = vos_auth(&pool, &["account", "import", &file]);
        assert!(!ended.ok && ended.err.contains("it is UTF-16: save it as UTF-8"), "{}", ended.err);
    }
}

/// Whatever is wrong in a file, no output has an address, a name or a hash from it.
#[sqlx::test]
async fn an_error_quotes_no_record(pool: PgPool) {
    let one = identity(1, "private@example.com", BCRYPT).to_string();
    for content in [
        // A string, a number or an object where an array is expected.
        format!("[{one}]\"private@example.com\""),
        format!("[{one}] {one}"),
        format!("[{one} \"private@example.com\"]"),
        format!("[\"private@example.com\", {one}"),
        // No JSON, and no CSV with headers.
        format!("\"private@example.com\"\n{one}"),
        format!("private@example.com,{BCRYPT}\n"),
        format!("id;private@example.com;{BCRYPT}\n"),
        // Malformed JSON lines and CSV rows.
        format!("{}\n{{\"traits\": \"private@example.com\"}}\n", &one[..one.len() / 2]),
        "{\"id\": \"private@example.com\", \"traits\": {\"email\": \"private@example.com\"}}\n".to_owned(),
        "email,traits\nprivate@example.com,\"private\"\n\"private@example\"x.com,{}\n".to_owned(),
        "email,state\nprivate@example.com,private\n".to_owned(),
    ] {
        let Outcome { out, err, ok } = imports(&pool, &content, &[]);
        assert!(!ok, "{content}: {out}");
        let list = std::fs::read_to_string(path_of(&pool, "import.refused.ndjson")).unwrap_or_default();
        for said in [out, err, list] {
            assert!(!said.contains("private") && !said.contains(BCRYPT), "{content}: {said}");
        }
    }
}
