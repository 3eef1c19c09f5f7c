//! Where traces are exported to. The variables have the names of OpenTelemetry's specification.

use std::str::FromStr;

use url::Url;

use super::base_url::base_url;

/// The settings of traces, for `serve` and `dev`.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Traces")]
pub struct TraceSettings {
    /// The receiver of traces: OTLP over HTTP with protobuf, such as http://127.0.0.1:4318;
    /// /v1/traces is appended. Put its token into OTEL_EXPORTER_OTLP_HEADERS (NAME=VALUE), never
    /// here. Unset: no traces
    #[arg(long, env)]
    pub otel_exporter_otlp_endpoint: Option<OtlpEndpoint>,

    /// The name of this service in traces
    #[arg(long, env, default_value = "vos-auth")]
    pub otel_service_name: String,

    /// The share of traces that are kept, from 0 to 1, of those that begin here. For others, the
    /// trusted proxy's traceparent decides
    #[arg(long, env, default_value = "1", value_parser = share)]
    pub otel_traces_sampler_arg: f64,
}

fn share(text: &str) -> Result<f64, &'static str> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or("must be between 0 and 1")
}

/// The base URL of an OTLP receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(Url);

impl OtlpEndpoint {
    /// Whether the receiver uses TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// The URL that receives traces.
    #[must_use]
    pub fn traces_url(&self) -> String {
        format!("{}/v1/traces", self.0.as_str().trim_end_matches('/'))
    }
}

impl FromStr for OtlpEndpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let credentials = "flags are visible to other users: put the token into OTEL_EXPORTER_OTLP_HEADERS";
        base_url(text, "write it like http://127.0.0.1:4318", credentials).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_traces_url_is_the_endpoint_with_a_path() {
        let traces_url = |text: &str| text.parse::<OtlpEndpoint>().map(|endpoint| endpoint.traces_url());
        assert_eq!(traces_url("http://127.0.0.1:4318").unwrap(), "http://127.0.0.1:4318/v1/traces");
        assert_eq!(traces_url("https://otlp.vn/tenant/").unwrap(), "https://otlp.vn/tenant/v1/traces");
        for bad in ["", "127.0.0.1:4318", "grpc://otlp.vn", "https://u:p@otlp.vn", "https://otlp.vn/?key=1"] {
            assert!(traces_url(bad).is_err(), "{bad}");
        }
    }
}
