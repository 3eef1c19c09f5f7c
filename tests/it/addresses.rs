//! A relay whose name has several addresses, one of them dead. The test runs in a network
//! namespace, where packets to the dead address are lost.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sqlx::PgPool;

use crate::harness::client::Client;
use crate::harness::line::{Line, can_lay};
use crate::harness::program::{Program, has_relay, run_under, serve_environment};
use crate::harness::relay::Relay;
use crate::harness::{Service, database};

/// TEST-NET-3 (RFC 5737): no host has these addresses.
const DEAD: [&str; 2] = ["203.0.113.1", "203.0.113.2"];

/// The far end of a [`Line`], where a test chooses the addresses of `localhost`.
struct FarHost {
    line: Line,
    files: PathBuf,
}

impl FarHost {
    fn create() -> Self {
        let line = Line::lay();
        // The ends share no subnet: a resolver would prefer the near address (RFC 6724 §5, rule 9).
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

    /// The number of connections opened from the far end.
    fn connections_opened(&self) -> usize {
        let counts = self.line.at_far_end("cat").arg("/proc/net/snmp").output().unwrap();
        let counts = String::from_utf8(counts.stdout).unwrap();
        let of_tcp = counts.lines().filter(|line| line.starts_with("Tcp: ")).nth(1).unwrap();
        of_tcp.split(' ').nth(5).unwrap().parse().unwrap()
    }

    fn under(&self) -> [&str; 4] {
        self.line.under()
    }
}

impl Drop for FarHost {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.files);
    }
}

#[sqlx::test]
async fn a_dead_first_address_delays_only_the_first_connection(pool: PgPool) {
    if !can_lay() {
        return;
    }
    let far_host = FarHost::create();
    let near = far_host.line.near.to_string();
    let relay = Relay::start_at(far_host.line.near.into()).await;
    // Only `localhost` may be used without TLS.
    let url = format!("smtp://localhost:{}?tls=none", relay.port());

    let mail_test = async |addresses: &[&str]| {
        far_host.localhost_is(addresses);
        let under = far_host.under().map(str::to_owned);
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
    let (output, without) = mail_test(&[&near]).await;
    assert!(output.contains("accepted the email"), "{output}");
    let (output, with_one) = mail_test(&[DEAD[0], &near]).await;
    assert!(output.contains("accepted the email"), "{output}");
    let (output, with_two) = mail_test(&[DEAD[0], DEAD[1], &near]).await;
    assert!(output.contains("accepted the email"), "{output}");
    eprintln!("mail test: {without:?}; with a dead first address {with_one:?}, with two {with_two:?}");
    assert!(with_one < Duration::from_secs(1), "{with_one:?}");
    assert!(with_one >= Duration::from_millis(250), "the dead address was tried first: {with_one:?}");
    assert!(with_two >= Duration::from_millis(500), "both dead addresses were tried: {with_two:?}");
    let (output, all_dead) = mail_test(&DEAD).await;
    assert!(output.contains("connect (2 addresses tried: no answer within 3 s)"), "{output}");
    assert!(all_dead < Duration::from_secs(5), "{all_dead:?}");
    assert!(!DEAD.iter().any(|dead| output.contains(dead)), "{output}");

    // Each email has its own connection. None waits for the dead address, because the probe has
    // already found it dead.
    far_host.localhost_is(&[DEAD[0], &near]);
    let (database, http) = (database::service_url(&pool), format!("{}:0", far_host.line.far));
    let changes = [("HTTP_ADDR", http.as_str()), ("SMTP_IDLE", "0s")];
    let environment = serve_environment(&database, &url, &changes);
    let mut program = Program::start_under(&far_host.under(), &["serve"], &environment);
    let mut client = Client::new(program.address());
    has_relay(&client).await;
    let (connections_opened, mut took) = (far_host.connections_opened(), Vec::new());
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
    assert_eq!(far_host.connections_opened() - connections_opened, took.len());
}
