//! This machine: NTP, file descriptors, and the ports of the service.

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::{Request, Uri};
use serde_json::Value;

use super::report::Check;
use crate::config::ListeningSettings;
use crate::http::listener::descriptors_for;
use crate::http_client::{Bounds, HttpClient};

/// How long `timedatectl` may take.
const NTP_DEADLINE: Duration = Duration::from_secs(2);
/// How long a port may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
const ADMIN: &str = "ADMIN_ADDR";
/// Bounds of an answer. `/readyz` checks PostgreSQL, which takes up to 2 s.
const ANSWER: Bounds = Bounds { time: Duration::from_secs(4), octets: 4 * 1024 * 1024 };

/// Whether the kernel's clock is synchronized, if systemd can tell.
pub(super) async fn ntp() -> Vec<Check> {
    const NAME: &str = "clock, NTP";
    let action = "Start chrony or systemd-timesyncd on this machine, and wait until it is synchronized.";
    vec![match ask_systemd().await {
        Ok(answer) if answer.trim() == "yes" => Check::ok(NAME, "synchronized"),
        Ok(answer) if answer.trim() == "no" => Check::warning(NAME, "not synchronized", action),
        _ => Check::ok(NAME, "not visible here: only the comparison with PostgreSQL counts"),
    }]
}

async fn ask_systemd() -> io::Result<String> {
    let mut timedatectl = Command::new("timedatectl");
    let timedatectl = timedatectl.args(["show", "--property=NTPSynchronized", "--value"]);
    let mut child = timedatectl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let began = Instant::now();
    while child.try_wait()?.is_none() {
        if began.elapsed() > NTP_DEADLINE {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut answer = String::new();
    child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The hard limit of file descriptors in this shell. The service raises its own soft limit to its
/// hard limit.
pub(super) fn descriptors(max_connections: u32) -> Check {
    const NAME: &str = "file descriptors";
    let needed = descriptors_for(max_connections);
    let Ok((_, hard)) = rlimit::Resource::NOFILE.get() else {
        return Check::ok(NAME, "the limit is not visible here");
    };
    if hard >= needed {
        return Check::ok(NAME, format!("{hard} allowed here, MAX_CONNECTIONS needs {needed}"));
    }
    let seen = format!("{hard} allowed in this shell, MAX_CONNECTIONS needs {needed}");
    let action = format!(
        "Start the service with a limit of {needed} (LimitNOFILE in its unit), or lower MAX_CONNECTIONS."
    );
    Check::warning(NAME, seen, action)
}

/// Whether each port is free, or a running service answers there.
pub(super) async fn ports(settings: ListeningSettings, admin: Option<SocketAddr>) -> Vec<Check> {
    // Without TLS the client needs no root certificates, so creating it does not fail.
    let Ok(client) = HttpClient::new(false, CONNECT_DEADLINE) else { return Vec::new() };
    let (api, metrics) =
        tokio::join!(api(&client, settings.http_addr), metrics(&client, settings.metrics_addr));
    // The admin API may require a client certificate, so this check sends it no request. The port
    // counts as the service's if HTTP_ADDR is in use, too.
    let runs = TcpListener::bind(settings.http_addr).is_err();
    let admin = admin.map(|address| match TcpListener::bind(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && runs => {
            Check::ok(ADMIN, format!("{address} is in use, and so is HTTP_ADDR, as while the service runs"))
        }
        _ => free(ADMIN, address),
    });
    [api, metrics].into_iter().chain(admin).collect()
}

async fn api(client: &HttpClient, address: SocketAddr) -> Check {
    const NAME: &str = "HTTP_ADDR";
    match get(client, address, "/healthz").await {
        Some((200, body)) if body.contains("\"status\":\"ok\"") => {}
        Some(_) => return taken(NAME, address),
        None => return free(NAME, address),
    }
    match get(client, address, "/readyz").await {
        Some((200, body)) if mail_is_ok(&body) => Check::ok(NAME, "a running service is alive and ready"),
        Some((status, body)) => {
            let seen = format!("the running service answers {status} to /readyz: {}", parts(&body));
            let action = "Do what the failed rows above say; without one, read the log of the service.";
            Check::failed(NAME, seen, action)
        }
        None => {
            let action = "Read the log of the service, and start it again.";
            Check::failed(NAME, "the running service does not answer /readyz", action)
        }
    }
}

async fn metrics(client: &HttpClient, address: SocketAddr) -> Check {
    const NAME: &str = "METRICS_ADDR";
    match get(client, address, "/metrics").await {
        Some((200, body)) if body.contains("vos_auth_") => {
            Check::ok(NAME, "a running service has metrics there")
        }
        Some(_) => taken(NAME, address),
        None => free(NAME, address),
    }
}

/// Sends a GET request, and returns the status and body of the answer. `None` if none arrives.
async fn get(client: &HttpClient, address: SocketAddr, path: &str) -> Option<(u16, String)> {
    if address.port() == 0 {
        return None;
    }
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let uri: Uri = format!("http://{}{path}", SocketAddr::new(host, address.port())).parse().ok()?;
    let request = Request::get(uri).body(Full::default()).ok()?;
    let answer = client.send(request, ANSWER).await.ok()?;
    Some((answer.status().as_u16(), String::from_utf8_lossy(answer.body()).into_owned()))
}

/// The row of an address where nothing answers: whether the service could listen there.
fn free(check: &str, address: SocketAddr) -> Check {
    let Err(error) = TcpListener::bind(address) else {
        return Check::ok(check, format!("{address} is free"));
    };
    match error.kind() {
        io::ErrorKind::AddrInUse => taken(check, address),
        io::ErrorKind::AddrNotAvailable => {
            let seen = format!("{address} is not an address of this machine");
            Check::failed(check, seen, format!("Change {check} to an address of this machine, or 0.0.0.0."))
        }
        _ => {
            let seen = format!("{address} cannot be used: {error}");
            Check::failed(check, seen, format!("Change {check}: ports below 1024 need a privilege."))
        }
    }
}

fn taken(check: &str, address: SocketAddr) -> Check {
    let seen = format!("another program listens at {address}");
    Check::failed(check, seen, format!("Find the program by `ss -ltnp`, and stop it or change {check}."))
}

fn mail_is_ok(body: &str) -> bool {
    serde_json::from_str::<Value>(body).is_ok_and(|body| body["parts"]["mail"] == "ok")
}

/// The parts of `/readyz` that are not ready.
fn parts(body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    let parts = body["parts"].as_object().into_iter().flatten();
    let parts = parts.filter(|(_, state)| state.is_string() && *state != "ok");
    let parts: Vec<_> =
        parts.map(|(name, state)| format!("{name} is {}", state.as_str().unwrap_or_default())).collect();
    if parts.is_empty() { "no part is named".into() } else { parts.join(", ") }
}
