//! A receiver of traces (OTLP over HTTP) for tests, which decodes them. It runs on a thread of its
//! own, so that it answers while a test waits for the program to end.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

/// How the receiver answers requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Takes,
    /// Answers 503.
    Refuses,
    /// Never answers.
    Hangs,
}

struct State {
    mood: Mood,
    asked: usize,
    taken: Vec<Bytes>,
}

/// A receiver on a free port.
pub struct Receiver {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Receiver {
    pub fn start(mood: Mood) -> Self {
        let state = Arc::new(Mutex::new(State { mood, asked: 0, taken: Vec::new() }));
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&state);
        let take = async move |headers: HeaderMap, body: Bytes| {
            let mood = {
                let mut state = shared.lock().unwrap();
                state.asked += 1;
                if state.mood == Mood::Takes {
                    assert_eq!(headers["content-type"], "application/x-protobuf");
                    state.taken.push(body);
                }
                state.mood
            };
            match mood {
                Mood::Takes => StatusCode::OK,
                Mood::Refuses => StatusCode::SERVICE_UNAVAILABLE,
                Mood::Hangs => std::future::pending().await,
            }
        };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                axum::serve(listener, Router::new().route("/v1/traces", post(take))).await.unwrap();
            });
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn is_in_mood(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    /// The number of requests so far.
    pub fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }

    /// The bodies of all accepted requests, one after the other.
    pub fn octets(&self) -> Vec<u8> {
        self.state.lock().unwrap().taken.concat()
    }

    /// An attribute of the resource that the spans belong to.
    pub fn resource(&self, name: &str) -> String {
        let first = ExportTraceServiceRequest::decode(&self.octets()[..]).unwrap().resource_spans.remove(0);
        value_of(&first.resource.unwrap().attributes, name).expect("the resource says so")
    }

    /// The accepted spans, in the order in which they began.
    pub fn spans(&self) -> Vec<Traced> {
        // Concatenated protobuf messages are decoded as one merged message.
        let request = ExportTraceServiceRequest::decode(&self.octets()[..]).unwrap();
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        let mut spans: Vec<_> = scopes.flat_map(|scope| scope.spans).map(Traced).collect();
        spans.sort_by_key(|span| span.0.start_time_unix_nano);
        spans
    }
}

/// A span as it was received.
#[derive(Clone, Debug)]
pub struct Traced(pub Span);

impl Traced {
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn trace(&self) -> String {
        hex(&self.0.trace_id)
    }

    pub fn id(&self) -> String {
        hex(&self.0.span_id)
    }

    /// The id of the parent span; empty if this span begins a trace.
    pub fn parent(&self) -> String {
        hex(&self.0.parent_span_id)
    }

    /// The ids of the spans that this span links to.
    pub fn links(&self) -> Vec<String> {
        self.0.links.iter().map(|link| hex(&link.span_id)).collect()
    }

    pub fn attribute(&self, name: &str) -> Option<String> {
        value_of(&self.0.attributes, name)
    }
}

fn value_of(attributes: &[KeyValue], name: &str) -> Option<String> {
    let known = attributes.iter().find(|attribute| attribute.key == name)?;
    match known.value.clone() {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => Some(text),
        Some(AnyValue { value: Some(Value::IntValue(number)) }) => Some(number.to_string()),
        other => panic!("{name} is {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + format!("{byte:02x}").as_str())
}
