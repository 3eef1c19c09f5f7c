//! Every secret is rotated while users recover through nginx: no request or live code is refused.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection as _, PgConnection, PgPool};
use vos_auth::jwt;

use crate::harness::cluster::Cluster;
use crate::harness::encrypted::Encrypted;
use crate::harness::host::Host;
use crate::harness::load::{Load, Mailbox};
use crate::harness::nginx::is_installed;
use crate::harness::postfix::{Postfix, Setup, can_run};
use crate::harness::relay::Relay;
use crate::harness::{PATIENCE, database, now, program};

/// Secrets of 32 bytes each.
const OLD: &str = "2026-01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const NEW: &str = "2026-11:IB8eHRwbGhkYFxYVFBMSERAPDg0MCwoJCAcGBQQDAgE=";
/// Users whose code is mailed before a rollout and entered during it.
const HELD: usize = 6;
/// The longest life of a pooled connection.
const POOLED: Duration = Duration::from_mins(1);

struct Stage {
    host: Host,
    load: Arc<Load>,
}

impl Stage {
    async fn start(
        accounts: &PgPool,
        database_url: &str,
        relays: &str,
        mailbox: Mailbox,
        changes: &[(&str, &str)],
    ) -> Self {
        let host = Host::start(database_url, relays, changes).await;
        let jwks_life = Duration::from_secs(10);
        let load = Load::new(Arc::clone(&host.nginx), accounts.clone(), mailbox, jwks_life);
        Self { host, load }
    }

    /// Starts a stage with a relay inside the test.
    async fn with_relay(pool: &PgPool, changes: &[(&str, &str)]) -> Self {
        let relay = Relay::start().await;
        Self::start(pool, &database::service_url(pool), &relay.url(), Mailbox::Relay(relay.clone()), changes)
            .await
    }

    /// Rolls out new settings. Users enter older codes while the two replicas differ, and after.
    async fn roll_out(&mut self, changes: &[(&str, &str)]) {
        let held = self.load.have_codes(HELD).await;
        self.host.has(changes);
        let (first, rest) = held.split_at(held.len() / 2);
        for (place, people) in [(0, first), (1, rest)] {
            self.host.replaces(place).await;
            for person in people {
                self.load.gets_in(person).await;
            }
        }
    }

    fn check(self, what: &str) {
        let counts = self.load.counts();
        let (requests, people, refused) = (counts.requests, counts.people, counts.codes_refused);
        eprintln!(
            "{what}: {requests} requests of {people} people, {refused} codes refused, failed: {:?}",
            counts.failures
        );
        assert!(people > 20, "too few people for a load");
        assert_eq!((counts.codes_refused, counts.failures.len()), (0, 0));
    }
}

#[sqlx::test]
async fn recovery_and_device_secrets_rotate_without_refusing_codes_or_known_browsers(pool: PgPool) {
    if !is_installed() {
        return;
    }
    let mut stage = Stage::with_relay(&pool, &[("RECOVERY_SECRETS", OLD), ("DEVICE_SECRETS", OLD)]).await;
    let load = Arc::clone(&stage.load);
    let rotation = async {
        for secrets in [format!("{OLD},{NEW}"), format!("{NEW},{OLD}"), NEW.to_owned()] {
            let known = load.has_code().await.unwrap();
            load.gets_in(&known).await;
            stage.roll_out(&[("RECOVERY_SECRETS", &secrets), ("DEVICE_SECRETS", &secrets)]).await;
            // Attackers empty the address's bucket; a known browser has its own.
            let email = known.email();
            while load.starts_from("stranger", &email).await == 200 {}
            assert_eq!(load.starts_from("stranger", &email).await, 429);
            assert_eq!(load.starts_from(&known.name, &email).await, 200, "{secrets}");
        }
    };
    load.during(rotation).await;
    stage.check("recovery and device secrets");
}

/// The real times divided by 30: a key is published 40 s before it signs, and JWKS are cached for
/// 10 s.
#[sqlx::test]
async fn jwt_keys_rotate_without_a_key_unknown_to_a_cached_jwks(pool: PgPool) {
    if !is_installed() {
        return;
    }
    let published_before_use = Duration::from_secs(40);
    let folder =
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rotated-{}", std::process::id()));
    jwt::generate(&folder, now() - Duration::from_hours(1)).unwrap();
    let mut stage = Stage::with_relay(&pool, &[("JWT_KEYS", folder.to_str().unwrap())]).await;
    let load = Arc::clone(&stage.load);
    let rotation = async {
        let then = now() + published_before_use - jwt::PUBLISHED_BEFORE_USE;
        assert!(jwt::rotate(&folder, then).unwrap().added.is_some());
        stage.roll_out(&[]).await;
        let signs = async {
            while load.keys() < 2 {
                load.person().await;
            }
        };
        tokio::time::timeout(published_before_use + PATIENCE, signs).await.expect("the new key signs");
    };
    load.during(rotation).await;
    load.takes_old_jwts().await;
    assert_eq!(load.keys(), 2);
    stage.check("JWT keys");
    std::fs::remove_dir_all(folder).unwrap();
}

/// Two roles alternate. If the password of the current role were changed, PostgreSQL would refuse
/// its new connections until the rollout ends. Before its first rotation, the service logs in as
/// the group role itself.
#[tokio::test]
async fn the_database_password_rotates_by_a_second_role() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::start().await;
    let root = PgPool::connect_with(cluster.options()).await.unwrap();
    let run = async |sql: &'static str| sqlx::query(sql).execute(&root).await.unwrap();
    let url = |user: &str, password: &str| cluster.url_for(user, password).replace("/postgres?", "/auth?");
    // As in docs/operate/install.md, but vos_auth is this cluster's superuser, not the owner.
    run("CREATE ROLE owner LOGIN PASSWORD 'first'").await;
    run("CREATE DATABASE auth OWNER owner").await;
    migrate(&url("owner", "first"));
    database::grant(&url("vos_auth", ""));
    run("ALTER ROLE vos_auth_serve PASSWORD 'first'").await;
    cluster.asks_for_passwords().await;
    let first = url("vos_auth_serve", "first");
    assert!(PgPool::connect(&url("vos_auth_serve", "other")).await.is_err(), "the cluster checks passwords");
    let pool = PgPool::connect_with(cluster.options().database("auth")).await.unwrap();
    let relay = Relay::start().await;
    let mut stage = Stage::start(&pool, &first, &relay.url(), Mailbox::Relay(relay.clone()), &[]).await;
    let load = Arc::clone(&stage.load);
    let rotation = async {
        run("CREATE ROLE vos_auth_serve_2 LOGIN PASSWORD 'second' IN ROLE vos_auth_serve").await;
        stage.roll_out(&[("DATABASE_URL", &url("vos_auth_serve_2", "second"))]).await;
        let left = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'vos_auth_serve'";
        let gone = async { while sqlx::query_scalar::<_, i64>(left).fetch_one(&root).await.unwrap() > 0 {} };
        tokio::time::timeout(PATIENCE, gone).await.expect("no connection of the first role is left");
        run("ALTER ROLE vos_auth_serve NOLOGIN PASSWORD NULL").await;
        load.person().await;
    };
    load.during(rotation).await;
    stage.check("the database password");
    assert!(PgPool::connect(&first).await.is_err(), "the old password is refused");
    // No replica connects as the owner.
    run("ALTER ROLE owner PASSWORD 'second'").await;
    migrate(&url("owner", "second"));
    for pool in [pool, root] {
        pool.close().await;
    }
}

fn migrate(database_url: &str) {
    let ended = program::run(&["migrate"], &[("DATABASE_URL", database_url)]);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

/// `sslrootcert` is read for each new connection, so that a new CA needs no restart. PostgreSQL has
/// one certificate at a time; pooled connections outlive it by a minute at most.
#[tokio::test]
async fn the_databases_certificate_and_its_ca_rotate() {
    if !is_installed() {
        return;
    }
    let database = Encrypted::start().await;
    let (url, old) = (database.url(), database.ca());
    let plain = PgConnection::connect(&url.replace("verify-full", "disable")).await.unwrap_err();
    assert_eq!(plain.as_database_error().unwrap().code().as_deref(), Some("28000"), "{plain}");
    let relay = Relay::start().await;
    let mailbox = Mailbox::Relay(relay.clone());
    let mut stage = Stage::start(&database.pool, &url, &relay.url(), mailbox, &[]).await;
    let load = Arc::clone(&stage.load);
    let rotation = async {
        let next = database.makes_next_certificate();
        database.service_trusts(&next.both);
        assert!(database.is_trusted_by(&old).await && !database.is_trusted_by(&next.ca).await);
        database.takes(&next).await;
        let in_use = async { while !database.is_trusted_by(&next.ca).await {} };
        tokio::time::timeout(PATIENCE, in_use).await.expect("the new certificate is in use");
        assert!(!database.is_trusted_by(&old).await);
        let renewed = async {
            // The connections for starts and for the courier's lock are in no pool.
            while database.older_connections().await > 4 {
                load.person().await;
            }
        };
        // A pool closes old connections at an interval as long as their life.
        tokio::time::timeout(2 * POOLED + PATIENCE, renewed).await.expect("the pools have new connections");
        database.service_trusts(&next.ca);
        stage.roll_out(&[]).await;
        assert_eq!(database.older_connections().await, 0);
    };
    load.during(rotation).await;
    stage.check("the database's certificate and authority");
    database.pool.close().await;
}

/// The relay accepts one password and has one certificate at a time. During the rotation
/// SMTP_RELAYS has the URL twice, with each password, and the CA file has both CAs.
#[sqlx::test]
async fn the_relays_password_and_its_ca_rotate(pool: PgPool) {
    if !is_installed() || !can_run() {
        return;
    }
    let postfix = Arc::new(Postfix::start(Setup::default()));
    let (old, new) = (postfix.url(), postfix.url_with("another"));
    let mailbox = Mailbox::Postfix(Arc::clone(&postfix));
    let ca = postfix.ca();
    // Between Postfix's change and the next probe an email finds no relay, and waits.
    let settings = [("SMTP_CA_FILE", ca.as_str()), ("SMTP_PROBE_INTERVAL", "1s")];
    let mut stage = Stage::start(&pool, &database::service_url(&pool), &old, mailbox, &settings).await;
    let load = Arc::clone(&stage.load);
    let rotation = async {
        let next = postfix.makes_next_certificate();
        stage.roll_out(&[("SMTP_RELAYS", &format!("{old},{new}")), ("SMTP_CA_FILE", &next.both)]).await;
        postfix.takes(&next, "another");
        stage.roll_out(&[("SMTP_RELAYS", &new), ("SMTP_CA_FILE", &next.ca)]).await;
    };
    load.during(rotation).await;
    stage.check("the relay's password and authority");
}

#[sqlx::test]
async fn nginxs_certificate_rotates(pool: PgPool) {
    if !is_installed() {
        return;
    }
    let stage = Stage::with_relay(&pool, &[]).await;
    let load = Arc::clone(&stage.load);
    let rotation = async {
        for _ in 0..3 {
            stage.host.nginx.has_new_certificate().await;
            for _ in 0..HELD {
                load.person().await;
            }
        }
    };
    load.during(rotation).await;
    stage.check("nginx's certificate");
}
