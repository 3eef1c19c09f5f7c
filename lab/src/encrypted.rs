//! A PostgreSQL that takes nobody over the network without TLS.

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
    /// For its owner, who comes by its socket.
    pub pool: PgPool,
}

impl Encrypted {
    /// With a role for the service.
    pub async fn start() -> Self {
        Self::start_at("localhost", "127.0.0.1").await
    }

    /// The same under a name, at addresses with commas between them.
    pub async fn start_at(name: &'static str, addresses: &str) -> Self {
        // Behind those of the Postfixes.
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

    /// For who trusts the authorities in a file.
    pub fn url_by(&self, authorities: &str) -> String {
        let (name, port) = (self.name, self.port);
        format!(
            "postgres://vos_auth_1:first@{name}:{port}/postgres?sslmode=verify-full&sslrootcert={authorities}"
        )
    }

    /// For the service, which trusts what `trusts` last said.
    pub fn url(&self) -> String {
        self.url_by(&self.file("trusted.pem"))
    }

    /// The certificate of its first authority.
    pub fn ca(&self) -> String {
        self.file("ca.pem")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    fn file(&self, name: &str) -> String {
        self.tls.join(name).display().to_string()
    }

    /// Changes the file of the service's authorities at once: a connection that is made meanwhile reads it whole.
    pub fn service_trusts(&self, authorities: &str) {
        let new = self.tls.join("trusted.new");
        fs::copy(authorities, &new).unwrap();
        fs::rename(new, self.tls.join("trusted.pem")).unwrap();
    }

    /// Whether who trusts these authorities alone can connect.
    pub async fn is_trusted_by(&self, authorities: &str) -> bool {
        PgConnection::connect(&self.url_by(authorities)).await.is_ok()
    }

    pub fn makes_next_certificate(&self) -> Next {
        Next::after(&self.tls)
    }

    /// New connections see it; open ones continue.
    pub async fn takes(&self, next: &Next) {
        next.replaces(&self.tls);
        sqlx::query("SELECT pg_reload_conf()").execute(&self.pool).await.unwrap();
    }

    /// How many of the service's connections are older than the certificate that is shown now.
    pub async fn older_connections(&self) -> i64 {
        let older = "SELECT count(*) FROM pg_stat_activity
            WHERE application_name = 'vos-auth' AND backend_start < pg_conf_load_time()";
        // A new connection says when the server itself has read its files.
        sqlx::query_scalar(older).fetch_one(&mut self.cluster.connect().await).await.unwrap()
    }
}
