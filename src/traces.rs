//! Traces: how long the parts of a request, of a commit and of the delivery of an email took,
//! exported as spans to an OTLP receiver.
//!
//! Without `OTEL_EXPORTER_OTLP_ENDPOINT` no span is created. A span says what was done and how it
//! ended, never for whom: it has no address, code, token, cookie, password, client address or
//! requested path. The trace of an email is not linked to the request that enqueued it. Such a link
//! would show readers of traces which addresses have an account (invariant 1).
//!
//! Requests never wait for the receiver. Spans wait in a bounded queue and are sent by a separate
//! thread; spans that do not fit are dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioExecutor;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanContext, TraceContextExt as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::field::Empty;
use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::config::{ConfigError, TraceSettings};

/// How long one delivery to the receiver may take, retries included.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the process waits at its end for the delivery of the last spans.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum length of the receiver's answer, in octets.
const MAX_ANSWER: usize = 64 * 1024;

/// Collects spans into traces and exports them.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// `None` without an endpoint. It does not connect yet.
    ///
    /// # Errors
    ///
    /// A sentence that names `OTEL_EXPORTER_OTLP_ENDPOINT`, if this machine has no root
    /// certificates, or if another variable of OpenTelemetry requests what this program does not
    /// support.
    pub fn new(settings: &TraceSettings, runtime: Handle) -> Result<Option<Self>, ConfigError> {
        let Some(endpoint) = &settings.otel_exporter_otlp_endpoint else { return Ok(None) };
        let unusable = |why: String| {
            ConfigError::new("OTEL_EXPORTER_OTLP_ENDPOINT", format!("cannot receive traces: {why}"))
        };
        let receiver: Arc<dyn HttpClient> = if endpoint.is_https() {
            let tls = HttpsConnectorBuilder::new().with_native_roots();
            let tls = tls.map_err(|error| unusable(error.to_string()))?;
            Arc::new(Receiver::new(tls.https_only().enable_http1().build(), runtime))
        } else {
            Arc::new(Receiver::new(HttpConnector::new(), runtime))
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_shared_http_client(receiver)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint.traces_url())
            .with_timeout(DELIVERY_TIMEOUT)
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let resource = Resource::builder()
            .with_service_name(settings.otel_service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let ratio = Sampler::TraceIdRatioBased(settings.otel_traces_sampler_arg);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::parent_based(ratio))
            .with_resource(resource)
            .build();
        Ok(Some(Self(provider)))
    }

    /// A layer that exports the spans of this program alone: no log lines, and no spans of
    /// libraries, which may quote secrets.
    #[must_use]
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let ours = filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("vos_auth"));
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("vos-auth"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(ours.with_max_level_hint(LevelFilter::INFO))
    }

    /// Exports the remaining spans, for at most two seconds.
    pub async fn shut_down(self) {
        let sent = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(SHUTDOWN_TIMEOUT));
        if !matches!(sent.await, Ok(Ok(()))) {
            tracing::warn!("the last traces could not be delivered");
        }
    }
}

/// The HTTP/1.1 client of the receiver. It logs once when deliveries begin to fail, and once when
/// they succeed again.
#[derive(Debug)]
struct Receiver<C> {
    client: Client<C, Full<Bytes>>,
    runtime: Handle,
    is_failing: AtomicBool,
}

impl<C: Connect + Clone + Send + Sync + 'static> Receiver<C> {
    fn new(connector: C, runtime: Handle) -> Self {
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { client, runtime, is_failing: AtomicBool::new(false) }
    }
}

#[async_trait]
impl<C> HttpClient for Receiver<C>
where
    C: Connect + Clone + Send + Sync + std::fmt::Debug + 'static,
{
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let delivery = async move {
            let response = client.request(request.map(Full::new)).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        // The exporter's thread is outside the runtime, which connections need.
        let delivery = self.runtime.spawn(async { tokio::time::timeout(DELIVERY_TIMEOUT, delivery).await });
        let answer: Result<_, HttpError> = match delivery.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(late)) => Err(late.into()),
            // The runtime is shutting down; `shut_down` logs the loss.
            Err(ended) => return Err(ended.into()),
        };
        let why = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(answer.status().to_string()),
            Err(error) => Some(error.to_string()),
        };
        match (why, self.is_failing.load(Ordering::Relaxed)) {
            (Some(why), false) => {
                tracing::warn!(why, "traces cannot be delivered and are dropped; requests are not affected");
                self.is_failing.store(true, Ordering::Relaxed);
            }
            (None, true) => {
                tracing::info!("traces are delivered again");
                self.is_failing.store(false, Ordering::Relaxed);
            }
            _ => {}
        }
        answer
    }
}

/// The span of a request, by OpenTelemetry's conventions for HTTP servers. It has nothing that a
/// client wrote: the route replaces the path. `traceparent` (W3C Trace Context) comes from a
/// trusted proxy; a malformed one is ignored.
#[must_use]
pub fn request_span(
    method: &'static str,
    route: Option<&str>,
    request_id: &str,
    traceparent: Option<&str>,
) -> Span {
    let span = info_span!(
        "request",
        otel.name = route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}")),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = if method == "other" { "_OTHER" } else { method },
        http.route = route,
        http.response.status_code = Empty,
        "error.type" = Empty,
        request_id,
    );
    if !span.is_disabled()
        && let Some(traceparent) = traceparent
    {
        let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
        // This cannot fail, because the span is new.
        let _ = span.set_parent(parent);
    }
    span
}

/// Records the status of an answer. By the conventions, only a 5xx is an error of the server.
pub fn record_status(span: &Span, status: u16) {
    span.record("http.response.status_code", status);
    if status >= 500 {
        span.record("otel.status_code", "error");
        span.record("error.type", status);
    }
}

/// The id of a span's trace, in hexadecimal. `None` if traces are off.
#[must_use]
pub fn trace_id(span: &Span) -> Option<String> {
    context(span).map(|context| context.trace_id().to_string())
}

/// Whether a span is exported.
#[must_use]
pub fn is_sampled(span: &Span) -> bool {
    context(span).is_some_and(|context| context.is_sampled())
}

fn context(span: &Span) -> Option<SpanContext> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context().span().span_context().clone();
    context.is_valid().then_some(context)
}
