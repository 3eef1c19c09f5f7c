//! A relay whose name has several addresses, one of them dead. In a network namespace of its own, where packets to that one
//! are sent and lost.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sqlx::PgPool;

use crate::harness::client::Client;
use crate::harness::line::{Line, can_lay};
use crate::harness::program::{Program, has_relay, run_under, serve_environment};
use crate::harness::relay::Relay;
use crate::harness::{Service, database};

/// Of TEST-NET-3 (RFC 5737): nobody has them.
const DEAD: [&str; 2] = ["203.0.113.1", "203.0.113.2"];

/// The far end of a line, where `localhost` has the addresses that a test gives it.
struct Elsewhere {
    line: Line,
    files: PathBuf,
}

impl Elsewhere {
    fn made() -> Self {
        let line = Line::lay();
        // In no common subnet, or the resolver would put the near one first (RFC 6724 §5, rule 9).
        line.far_ip(&format!("address del {}/30 dev far", line.far));
        line.far_ip(&format!("address add {}/32 dev far", line.far));
        line.far_ip(&format!("route add {}/32 dev far", line.near));
        for dead in DEAD {
            line.far_ip(&format!("route add {dead}/32 dev far"));
            line.far_ip(&format!("neighbour add {dead} lladdr 02:00:00:00:00:01 dev far"));
        }
        let files = PathBuf::from("/etc/netns").join(line.name());
        std::fs::create_dir_all(&files).unwrap();
        Self { line, files }
    }

    fn localhost_is(&self, addresses: &[&str]) {
        let name = " localhost\n";
        std::fs::write(self.files.join("hosts"), addresses.join(name) + name).unwrap();
    }

    /// How many connections have been begun there.
    fn begun(&self) -> usize {
        let counts = self.line.at_far_end("cat").arg("/proc/net/snmp").output().unwrap();
        let counts = String::from_utf8(counts.stdout).unwrap();
        let of_tcp = counts.lines().filter(|line| line.starts_with("Tcp: ")).nth(1).unwrap();
        of_tcp.split(' ').nth(5).unwrap().parse().unwrap()
    }

    fn under(&self) -> [&str; 4] {
        self.line.under()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.files);
    }
}

#[sqlx::test]
async fn a_dead_first_address_costs_little_and_once(pool: PgPool) {
    if !can_lay() {
        return;
    }
    let elsewhere = Elsewhere::made();
    let near = elsewhere.line.near.to_string();
    let relay = Relay::start_at(elsewhere.line.near.into()).await;
    // The name of this machine alone may be spoken to without TLS.
    let url = format!("smtp://localhost:{}?tls=none", relay.port());

    let mail_test = async |addresses: &[&str]| {
        elsewhere.localhost_is(addresses);
        let under = elsewhere.under().map(str::to_owned);
        let url = url.clone();
        let began = Instant::now();
        let ended = tokio::task::spawn_blocking(move || {
            let environment = [("SMTP_RELAYS", url.as_str())];
            run_under(
                &under.each_ref().map(|part| &**part),
                &["mail", "test", "--to", "trader@example.com"],
                &environment,
            )
        });
        let ended = ended.await.unwrap();
        (String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap(), began.elapsed())
    };
    let (said, without) = mail_test(&[&near]).await;
    assert!(said.contains("accepted the email"), "{said}");
    let (said, with_one) = mail_test(&[DEAD[0], &near]).await;
    assert!(said.contains("accepted the email"), "{said}");
    let (said, with_two) = mail_test(&[DEAD[0], DEAD[1], &near]).await;
    assert!(said.contains("accepted the email"), "{said}");
    eprintln!("mail test: {without:?}; with a dead first address {with_one:?}, with two {with_two:?}");
    assert!(with_one < Duration::from_secs(1), "{with_one:?}");
    assert!(with_one >= Duration::from_millis(250), "the dead one was tried first: {with_one:?}");
    assert!(with_two >= Duration::from_millis(500), "and the other after it: {with_two:?}");
    let (said, in_vain) = mail_test(&DEAD).await;
    assert!(said.contains("connect (2 addresses tried: no answer within 3 s)"), "{said}");
    assert!(in_vain < Duration::from_secs(5), "{in_vain:?}");
    assert!(!DEAD.iter().any(|dead| said.contains(dead)), "{said}");

    // Each mail on a connection of its own: none pays for the dead one, whose place the probe has found out.
    elsewhere.localhost_is(&[DEAD[0], &near]);
    let (database, http) = (database::service_url(&pool), format!("{}:0", elsewhere.line.far));
    let changes = [("HTTP_ADDR", http.as_str()), ("SMTP_IDLE", "0s")];
    let environment = serve_environment(&database, &url, &changes);
    let mut program = Program::start_under(&elsewhere.under(), &["serve"], &environment);
    let mut client = Client::new(program.address());
    has_relay(&client).await;
    let (begun, mut took) = (elsewhere.begun(), Vec::new());
    for number in 0..5 {
        let email = format!("trader{number}@example.com");
        Service::has_account_at(&pool, &email).await;
        client.cookie = None;
        let began = Instant::now();
        assert!(client.starts_recovery(&email).await.is_code_sent());
        relay.mail_to(&email, 1).await;
        took.push(began.elapsed());
    }
    eprintln!("mails after that: {took:?}");
    assert_eq!(elsewhere.begun() - begun, took.len());
}
