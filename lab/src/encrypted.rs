//! A PostgreSQL that accepts network connections only with TLS.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use sqlx::{Connection as _, PgConnection, PgPool};

use crate::certificate::{self, Next};
use crate::cluster::Cluster;
use crate::place::free_port;

pub struct Encrypted {
    cluster: Cluster,
    tls: PathBuf,
    name: &'static str,
    port: u16,
    /// Connections of the owner, by the Unix socket.
    pub pool: PgPool,
}

impl Encrypted {
    /// Starts PostgreSQL at `localhost`, with a role for the service.
    pub async fn start() -> Self {
        Self::start_at("localhost", "127.0.0.1").await
    }

    /// Starts PostgreSQL under the host name `name`, at addresses separated by commas.
    pub async fn start_at(name: &'static str, addresses: &str) -> Self {
        // Of the numbers of `free_port`, Postfix instances use those below 18, and `Machine` uses
        // 18.
        let (port, mut tls) = (free_port(19), PathBuf::new());
        let cluster = Cluster::start_at(port, |home| {
            tls = home.join("tls");
            fs::create_dir(&tls).unwrap();
            certificate::make(&tls, name);
            fs::copy(tls.join("ca.pem"), tls.join("trusted.pem")).unwrap();
            let owner = format!("--reference={}", home.display());
            assert!(Command::new("chown").args(["-R", &owner]).arg(&tls).status().unwrap().success());
            let tls = tls.display();
            format!(
                "listen_addresses = '{addresses}'
ssl = on
ssl_cert_file = '{tls}/cert.pem'
ssl_key_file = '{tls}/key.pem'\n"
            )
        });
        let cluster = cluster.await;
        cluster.asks_for_passwords().await;
        let pool = PgPool::connect_with(cluster.options()).await.unwrap();
        let role = "CREATE ROLE vos_auth_1 LOGIN PASSWORD 'first' IN ROLE vos_auth";
        sqlx::query(role).execute(&pool).await.unwrap();
        Self { cluster, tls, name, port, pool }
    }

    /// The URL for a client that trusts the authorities in a file.
    pub fn url_by(&self, authorities: &str) -> String {
        let (name, port) = (self.name, self.port);
        format!(
            "postgres://vos_auth_1:first@{name}:{port}/postgres?sslmode=verify-full&sslrootcert={authorities}"
        )
    }

    /// The URL for the service, which trusts what [`Self::service_trusts`] set last.
    pub fn url(&self) -> String {
        self.url_by(&self.file("trusted.pem"))
    }

    /// The path of the CA certificate of the first server certificate.
    pub fn ca(&self) -> String {
        self.file("ca.pem")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    fn file(&self, name: &str) -> String {
        self.tls.join(name).display().to_string()
    }

    /// Replaces the file of the service's authorities atomically, so that no connection reads half
    /// of it.
    pub fn service_trusts(&self, authorities: &str) {
        let new = self.tls.join("trusted.new");
        fs::copy(authorities, &new).unwrap();
        fs::rename(new, self.tls.join("trusted.pem")).unwrap();
    }

    /// Whether a client that trusts only these authorities can connect.
    pub async fn is_trusted_by(&self, authorities: &str) -> bool {
        PgConnection::connect(&self.url_by(authorities)).await.is_ok()
    }

    pub fn makes_next_certificate(&self) -> Next {
        Next::after(&self.tls)
    }

    /// Uses the next certificate for new connections; open ones continue.
    pub async fn takes(&self, next: &Next) {
        next.replaces(&self.tls);
        sqlx::query("SELECT pg_reload_conf()").execute(&self.pool).await.unwrap();
    }

    /// The number of the service's connections that are older than the present certificate.
    pub async fn older_connections(&self) -> i64 {
        let older = "SELECT count(*) FROM pg_stat_activity
            WHERE application_name = 'vos-auth' AND backend_start < pg_conf_load_time()";
        // On a new connection: `pg_conf_load_time()` is the time at which the connection's own
        // backend loaded the settings.
        sqlx::query_scalar(older).fetch_one(&mut self.cluster.connect().await).await.unwrap()
    }
}
