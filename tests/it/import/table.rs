//! The table of Kratos's admin calls in docs/operate/moving-from-kratos.md: each of our commands in
//! it is run as written, and each call is made.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use vos_auth::operator::Role;

use super::{lines, path_of, traders};
use crate::admin::{ADDRESS, call, desk, id_of, operator};
use crate::harness::program::{run, serve_environment};
use crate::harness::relay::Mood;
use crate::harness::{Service, database};

/// The code in each row of a column: 2 has the commands, 3 the calls.
fn code(column: usize) -> Vec<Vec<&'static str>> {
    let page = include_str!("../../../docs/operate/moving-from-kratos.md");
    let table = page.split("\n## Kratos's admin calls and ours\n").nth(1).expect("the section");
    let table = table.split("\n## ").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.split('|').nth(column).unwrap());
    cells.map(|cell| cell.split('`').skip(1).step_by(2).collect()).collect()
}

fn commands() -> Vec<String> {
    let code = code(2).concat().into_iter();
    code.filter(|code| code.starts_with("vos-auth ")).map(str::to_owned).collect()
}

#[sqlx::test]
async fn every_call_in_the_table_works(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    let desk = desk(&service, &operator(&service, "alice", Role::Admin).await);
    let mut made = 0;
    for (n, row) in code(3).into_iter().enumerate() {
        let body = row.iter().find(|code| code.starts_with('{')).copied().unwrap_or("null");
        for (method, path) in row.iter().filter_map(|code| code.split_once(" /admin/")) {
            let email = format!("trader-{n}@example.com");
            let (mut id, external_id) = (String::new(), format!("crm-{n}"));
            if path != "accounts" || method == "GET" {
                let new = json!({ "email": &email, "traits": { "external_id": &external_id } });
                let created = call(&desk, "POST", "/admin/accounts", &new).await;
                // The second call of a row is about the same account.
                if created.status == 201 {
                    created.body["id"].as_str().unwrap().clone_into(&mut id);
                } else {
                    id = id_of(&pool, &email).await.to_string();
                }
            }
            let fill = |text: &str| {
                let text = text.replace("EMAIL", &email).replace("NEW", &format!("new-{email}"));
                text.replace("CRM", &external_id).replace("/ID", &format!("/{id}"))
            };
            let body: Value = serde_json::from_str(&fill(body)).unwrap();
            let answer = call(&desk, method, &format!("/admin/{}", fill(path)), &body).await;
            assert!((200..300).contains(&answer.status), "{method} {path}: {}", answer.text);
            let names_it = method != "GET" || path == "outbox" || answer.text.contains(&email);
            assert!(names_it, "{path}: {}", answer.text);
            made += 1;
        }
    }
    assert_eq!(made, 15);
    service.stops().await;
}

#[sqlx::test]
async fn every_command_in_the_table_of_kratoss_calls_works(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    // An email that stays pending.
    service.relay.is_in_mood(Mood::RefusesRecipient("450 4.2.0 later"));
    service.has_account("waiting@example.com").await;
    service.client().starts_recovery("waiting@example.com").await;
    let entry: Uuid = sqlx::query_scalar("SELECT id FROM outbox").fetch_one(&pool).await.unwrap();
    let file = path_of(&pool, "table");
    let (url, address) = (database::operator_url(&pool), service.address.to_string());
    let environment = serve_environment(&url, "", &[("HTTP_ADDR", &address)]);
    let environment: Vec<_> =
        environment.iter().map(|(name, value)| [*name, *value].map(str::to_owned)).collect();

    let mut ran = BTreeSet::new();
    for (n, command) in commands().iter().enumerate() {
        // Each command has an account and a file of its own, because some commands erase the
        // account or replace the file.
        std::fs::write(&file, lines(&traders(100..101))).unwrap();
        let email = format!("trader-{n}@example.com");
        let id = if command.contains(" create ") {
            String::new()
        } else {
            service.has_trader(&email, "night train in autumn rain").await;
            let traits = format!(r#"{{"external_id": "crm-{n}"}}"#);
            let update = "UPDATE account SET traits = $2::text::jsonb WHERE email = $1 RETURNING id";
            let id: Uuid =
                sqlx::query_scalar(update).bind(&email).bind(traits).fetch_one(&pool).await.unwrap();
            assert!(service.client().logs_in(&email, "night train in autumn rain").await.is_signed_in());
            id.to_string()
        };
        let value = |word: &str| match word {
            "EMAIL" => email.clone(),
            "NEW" => format!("new-{n}@example.com"),
            "ID" => id.clone(),
            "ENTRY" => entry.to_string(),
            "CRM" => format!("crm-{n}"),
            "FILE" => file.clone(),
            word => word.to_owned(),
        };
        let words: Vec<_> = command.split(' ').skip(1).map(value).collect();
        let environment = environment.clone();
        // The command runs on another thread, because the service runs on this one.
        let ended = tokio::task::spawn_blocking(move || {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            run(
                &words,
                &environment.iter().map(|[name, value]| (name.as_str(), value.as_str())).collect::<Vec<_>>(),
            )
        });
        let ended = ended.await.unwrap();
        let [out, err] = [ended.stdout, ended.stderr].map(|octets| String::from_utf8(octets).unwrap());
        assert!(ended.status.success(), "{command}: {err}");
        // The output of a command that reads names the account or the pending email.
        if command.ends_with(" --json") {
            let found = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            assert!(found.count() > 0, "{command}");
            let named =
                out.contains(&email) || out.contains(&entry.to_string()) || command.contains("sessions");
            assert!(named, "{command}: {out}");
        }
        ran.insert(command.split(' ').take(3).collect::<Vec<_>>().join(" "));
    }
    for needed in ["account create", "account erase", "account revoke", "account recover", "outbox show"] {
        assert!(ran.contains(&format!("vos-auth {needed}")), "{needed} in {ran:?}");
    }
    service.stops().await;
}
