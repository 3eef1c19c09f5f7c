//! The body of a webhook request: a CloudEvent 1.0 in structured JSON mode.
//!
//! The body identifies an account only by its id. It has no email address and nothing about the
//! client: a receiver may keep what it gets for longer than this service may.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

/// The media type of the body.
pub(super) const MEDIA_TYPE: &str = "application/cloudevents+json; charset=utf-8";
/// What precedes the kind of an event in its type.
const TYPE_PREFIX: &str = "co.verolabs.vos-auth.";

/// An event as its receiver gets it.
#[derive(Debug)]
pub(super) struct CloudEvent<'a> {
    /// The id of the event; the same in every attempt.
    pub(super) id: Uuid,
    /// The service that it happened at.
    pub(super) source: &'a str,
    /// Its kind, as in the audit log.
    pub(super) kind: &'a str,
    /// The account; `None` if it is about many accounts.
    pub(super) account_id: Option<Uuid>,
    /// When it happened.
    pub(super) at: OffsetDateTime,
    /// Its place in the order of events.
    pub(super) seq: i64,
    /// How many events of the account before it were given up and not announced yet.
    pub(super) gap: i64,
}

#[derive(Serialize)]
struct Attributes<'a> {
    specversion: &'static str,
    id: Uuid,
    source: &'a str,
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Uuid>,
    #[serde(with = "time::serde::rfc3339")]
    time: OffsetDateTime,
    sequence: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    gap: Option<i64>,
}

impl CloudEvent<'_> {
    /// The body of the request.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Attributes {
            specversion: "1.0",
            id: self.id,
            source: self.source,
            r#type: format!("{TYPE_PREFIX}{}", self.kind),
            subject: self.account_id,
            time: self.at,
            // The same length for every number: the CloudEvents extension `sequence` is compared as
            // text.
            sequence: format!("{:019}", self.seq),
            gap: (self.gap > 0).then_some(self.gap),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_the_attributes_of_cloud_events_and_no_others() {
        let event = CloudEvent {
            id: Uuid::from_u128(1),
            source: "https://platform.verolabs.co",
            kind: "password_reset",
            account_id: Some(Uuid::from_u128(2)),
            at: OffsetDateTime::UNIX_EPOCH,
            seq: 7,
            gap: 0,
        };
        let json = String::from_utf8(event.to_json().unwrap()).unwrap();
        let expected = r#"{"specversion":"1.0","id":"00000000-0000-0000-0000-000000000001",
            "source":"https://platform.verolabs.co","type":"co.verolabs.vos-auth.password_reset",
            "subject":"00000000-0000-0000-0000-000000000002","time":"1970-01-01T00:00:00Z",
            "sequence":"0000000000000000007"}"#;
        assert_eq!(json, expected.lines().map(str::trim).collect::<String>());
        let event = CloudEvent { account_id: None, gap: 3, ..event };
        let json = String::from_utf8(event.to_json().unwrap()).unwrap();
        assert!(json.ends_with(r#""gap":3}"#) && !json.contains("subject"), "{json}");
    }
}
