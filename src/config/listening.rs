//! Where the service listens.

use std::net::SocketAddr;

/// Where the service listens.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Listening")]
pub struct ListeningSettings {
    /// Address and port of the public API. Behind a proxy on the same machine the default is right;
    /// in a container set 0.0.0.0:8080
    #[arg(long, env, default_value = "127.0.0.1:8080")]
    pub http_addr: SocketAddr,

    /// Address and port of /metrics. Keep it private: it shows metrics of the whole service
    #[arg(long, env, default_value = "127.0.0.1:9090")]
    pub metrics_addr: SocketAddr,
}
