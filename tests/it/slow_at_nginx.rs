//! Slow clients at nginx: `deploy/nginx.conf`, with the workers of docs/operate/install.md, leaves
//! room for others.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use sqlx::PgPool;

use crate::harness::nginx::{Nginx, Setup, is_installed};
use crate::harness::raw::Raw;
use crate::harness::{Service, needs};

/// 3,000 clients that never finish their headers block no other, even on the port without TLS.
/// nginx has `deploy/nginx.conf` and the workers of docs/operate/install.md.
#[sqlx::test]
async fn unfinished_headers_at_nginx_block_no_other_client(pool: PgPool) {
    if !(is_installed() && needs::has_program("/usr/bin/curl")) {
        return;
    }
    rlimit::increase_nofile_limit(8192).unwrap();
    let service = Service::start_with_settings(&pool, &["--network-burst=1000000"]).await;
    let setup = Setup { is_documented: true, ..Setup::default() };
    let nginx = Nginx::start([service.address; 2], &setup);
    let plain = SocketAddr::from((Ipv4Addr::LOCALHOST, nginx.plain));
    let mut unfinished = Vec::new();
    for _ in 0..3_000 {
        unfinished.push(Raw::says(plain, "GET / HTTP/1.1\r\nHost:").await);
    }
    let victim = nginx.asks_at_a_rate("/api/auth/session", 20, 10, "header = \"Connection: close\"\n").await;
    assert_eq!(victim, [401; 20], "{}", nginx.log());
    service.stops().await;
}

/// Debian's nginx has its own site on port 80, whose settings apply until the host is known.
#[sqlx::test]
async fn unfinished_headers_time_out_whatever_the_default_server_is(pool: PgPool) {
    if !is_installed() {
        return;
    }
    let service = Service::start(&pool).await;
    let other = "server { listen 127.0.0.1:{plain} default_server; return 404; }\nupstream vos_auth {";
    let changes =
        [("upstream vos_auth {", other), ("client_header_timeout 10s", "client_header_timeout 300ms")];
    let nginx = Nginx::start([service.address; 2], &Setup { changes: &changes, ..Setup::default() });
    let began = Instant::now();
    for port in [nginx.plain, nginx.tls] {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let unfinished = Raw::says(address, "GET / HTTP/1.1\r\nHost:").await;
        assert!(!unfinished.hears_all().await.contains("200"));
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    service.stops().await;
}

/// An address has a limit of parallel requests; above it nginx answers 429 in the service's shape.
#[sqlx::test]
async fn nginx_limits_the_parallel_requests_of_an_address(pool: PgPool) {
    if !(is_installed() && needs::has_program("/usr/bin/curl")) {
        return;
    }
    let service = Service::start_with_settings(&pool, &["--network-burst=1000000"]).await;
    let changes = [("limit_conn vos_auth_clients 4000", "limit_conn vos_auth_clients 1"), (" ssl;", ";")];
    let nginx = Nginx::start([service.address; 2], &Setup { changes: &changes, ..Setup::default() });
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, nginx.tls));
    let request = "POST /api/auth/login HTTP/1.1\r\nHost: platform.verolabs.co\r\nContent-Length: 9\r\n";
    let mut first = Raw::says(address, format!("{request}Expect: 100-continue\r\n\r\n")).await;
    first.hears("100 Continue").await;
    let second = Raw::says(address, format!("{request}Connection: close\r\n\r\n123456789")).await;
    let answer = second.hears_all().await;
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("network_throttled"), "{answer}");
    assert!(answer.contains("Retry-After: 5"), "{answer}");
    service.stops().await;
}
