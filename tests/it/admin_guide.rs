//! The commands of `docs/operate/admin-api.md` work as written.

use std::process::Command;

use sqlx::PgPool;
use vos_auth::http::admin::OPERATIONS;
use vos_auth::operator::Role;

use crate::admin::{ADDRESS, operator};
use crate::harness::{Service, place};

fn guide() -> String {
    std::fs::read_to_string(place::file("docs/operate/admin-api.md")).unwrap()
}

#[sqlx::test]
async fn the_guides_curl_lines_work_as_written(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    service.has_account("trader.en@example.com").await;
    let token = operator(&service, "alice", Role::Admin).await;
    let guide = guide();
    let blocks: Vec<_> =
        guide.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap()).collect();
    let script = blocks.concat();
    assert!(script.matches("curl ").count() >= 9, "{script}");
    let folder = place::temporary("admin-guide");
    std::fs::create_dir_all(&folder).unwrap();
    let admin = format!("http://{}", service.admin_address.unwrap());
    let ran = tokio::task::spawn_blocking(move || {
        let mut bash = Command::new("bash");
        bash.args(["-euc", &script])
            .current_dir(folder)
            .env("ADMIN", admin)
            .env("TOKEN", token)
            .output()
            .unwrap()
    });
    let ran = ran.await.unwrap();
    let (said, why) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{said}\n{why}");
    for part in
        ["trader.en@example.com", "\"ticket\":", "\"lifted\":", "\"changed\":true", "desk 4711, new phone"]
    {
        assert!(said.contains(part), "{part} in {said}");
    }
    service.stops().await;
}

#[test]
fn the_guide_names_every_call_with_its_role() {
    let guide = guide();
    for operation in OPERATIONS {
        let rest = operation.path.rsplit('/').next().unwrap();
        let row = guide.lines().find(|line| {
            let named = format!("`{} {}`", operation.method, operation.path);
            line.contains(&named)
                || (line.contains(operation.method) && line.contains(&format!("`…/{rest}`")))
        });
        let by_hand = operation.name == "operator.events" && guide.contains("/admin/operators/alice/events");
        let named = row.is_some_and(|row| row.ends_with(&format!("| `{}` |", operation.role)));
        assert!(named || by_hand, "{} {}", operation.method, operation.path);
    }
}
