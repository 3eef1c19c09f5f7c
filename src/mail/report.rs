//! Reads bounce messages: the addresses that they were delivered to, and whether they report a
//! failed delivery (RFC 3464).
//!
//! The input is untrusted, so it is read in one pass and without recursion. Nested messages are not
//! opened, because the report is always a direct part of the message (RFC 6522 §3).

use std::sync::LazyLock;

use mail_parser::{ContentType, HeaderName, Message, MessageParser, MimeHeaders as _};

/// The header fields that a mail server adds on delivery, and the one that the sender of a bounce
/// writes.
const RECIPIENTS: [&str; 4] = ["Delivered-To", "X-Original-To", "Envelope-To", "To"];

/// The unparsed values of the header fields that name a recipient of the message.
#[must_use]
pub fn recipients(message: &[u8]) -> Vec<String> {
    let (head, _) = split_head(message);
    let Some(fields) = fields(head) else { return Vec::new() };
    let named = RECIPIENTS.into_iter().flat_map(|name| values(&fields, name));
    named.map(str::to_owned).collect()
}

/// Whether the message is a delivery status notification with a recipient whose `Action` is
/// `failed`, a permanent failure (RFC 3464 §2.3.3). The actions delayed, relayed, expanded and
/// delivered are no failures.
#[must_use]
pub fn reports_failure(message: &[u8]) -> bool {
    let (head, body) = split_head(message);
    let fields = fields(head);
    let content_type = fields.as_ref().and_then(|fields| fields.content_type());
    let report = content_type.filter(|content_type| is_type(content_type, "multipart", &["report"]));
    let Some(boundary) = report.and_then(|report| report.attribute("boundary")) else { return false };
    parts(body, boundary.as_bytes()).any(|part| {
        let (head, status) = split_head(part);
        let subtypes = ["delivery-status", "global-delivery-status"];
        let is_status = self::fields(head)
            .and_then(|fields| Some(is_type(fields.content_type()?, "message", &subtypes)))
            .unwrap_or(false);
        is_status && groups(status).any(|group| self::fields(group).is_some_and(|fields| has_failed(&fields)))
    })
}

fn is_type(content_type: &ContentType<'_>, main_type: &str, subtypes: &[&str]) -> bool {
    let subtype = content_type.subtype().unwrap_or_default();
    content_type.ctype().eq_ignore_ascii_case(main_type)
        && subtypes.iter().any(|name| subtype.eq_ignore_ascii_case(name))
}

fn has_failed(fields: &Message<'_>) -> bool {
    // A comment may follow the word.
    let word = |value: &str| value.split([' ', '\t', '(', ';']).next().map(str::to_ascii_lowercase);
    values(fields, "Action").any(|value| word(value).as_deref() == Some("failed"))
}

/// The values of the fields with this name, in upper or lower case.
fn values<'a>(fields: &'a Message<'_>, name: &str) -> impl Iterator<Item = &'a str> {
    let fields = fields.headers().iter().filter(move |field| field.name.as_str().eq_ignore_ascii_case(name));
    fields.filter_map(|field| field.value.as_text())
}

/// Parses the fields of a block. It parses the value of `Content-Type` and leaves the others as
/// they are.
fn fields(block: &[u8]) -> Option<Message<'_>> {
    static PARSER: LazyLock<MessageParser> = LazyLock::new(|| {
        MessageParser::new().header_content_type(HeaderName::ContentType).default_header_raw()
    });
    PARSER.parse_headers(block)
}

/// Splits off the first block of fields, with the empty line that ends it.
fn split_head(text: &[u8]) -> (&[u8], &[u8]) {
    let mut end = 0;
    for line in text.split_inclusive(|octet| *octet == b'\n') {
        end += line.len();
        if matches!(line, b"\n" | b"\r\n") {
            break;
        }
    }
    text.split_at(end)
}

/// The blocks of fields. The first is about the message, each other one about a recipient (RFC 3464
/// §2.1).
fn groups(mut text: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let group;
        (group, text) = split_head(text);
        (!group.is_empty()).then_some(group)
    })
}

/// The parts of a multipart body. Lines with two hyphens and the boundary separate them (RFC 2046
/// §5.1.1).
fn parts<'a>(body: &'a [u8], boundary: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    let is_delimiter = move |line: &[u8]| {
        let rest = line.strip_prefix(b"--").and_then(|line| line.strip_prefix(boundary));
        rest.is_some_and(|rest| matches!(rest.trim_ascii_end(), b"" | b"--"))
    };
    let mut rest = body;
    let mut next = move || {
        let mut end = 0;
        for line in rest.split_inclusive(|octet| *octet == b'\n') {
            if is_delimiter(line) {
                let part = &rest[..end];
                rest = &rest[end + line.len()..];
                return Some(part);
            }
            end += line.len();
        }
        // A message that was truncated when it was read may end inside a part.
        let part = std::mem::take(&mut rest);
        (!part.is_empty()).then_some(part)
    };
    // The text before the first delimiter is not a part.
    next();
    std::iter::from_fn(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report as Postfix writes it, shortened.
    fn report(status: &str) -> String {
        format!(
            "Received: by relay.example.com (Postfix)\r\n\tid 4Q; Mon, 23 Nov 2026 18:05:09 +0000 (UTC)\r\n\
             From: MAILER-DAEMON@relay.example.com (Mail Delivery System)\r\nTo: signed@bounces.example.com\r\n\
             Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"4Q.1/relay.example.com\"\r\n\r\n\
             This is a MIME-encapsulated message.\r\n\r\n--4Q.1/relay.example.com\r\n\
             Content-Description: Notification\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n\
             I'm sorry. Action: failed\r\n\r\n--4Q.1/relay.example.com\r\nContent-Type: message/delivery-status\r\n\r\n\
             Reporting-MTA: dns; relay.example.com\r\nX-Postfix-Queue-ID: 4Q\r\n\r\n{status}\r\n\
             --4Q.1/relay.example.com\r\nContent-Type: message/rfc822\r\n\r\n\
             Subject: Your code\r\nAction: failed\r\n\r\nAction: failed\r\n\r\n--4Q.1/relay.example.com--\r\n"
        )
    }

    fn failed() -> String {
        report("Final-Recipient: rfc822; trader@example.com\r\nAction: failed\r\nStatus: 5.1.1\r\n")
    }

    #[test]
    fn a_report_of_a_failure_is_a_bounce_however_it_is_written() {
        let unix = failed().replace("\r\n", "\n");
        let cut_off = failed().split_once("Status: 5.1.1").unwrap().0.to_owned();
        for message in [
            failed(),
            unix,
            cut_off,
            failed().replace("Action: failed", "ACTION:FAILED"),
            failed().replace("Action: failed", "action:\r\n\tFailed (for good)"),
            failed()
                .replace("multipart/report", "Multipart/Report")
                .replace("message/delivery", "Message/DELIVERY"),
            failed().replace("message/delivery-status", "message/global-delivery-status"),
            failed().replace("\"4Q.1/relay.example.com\"", "4Q.1/relay.example.com"),
            failed().replace("--4Q.1/relay.example.com\r\n", "--4Q.1/relay.example.com  \r\n"),
            // Two recipients: the email was relayed to one, and failed for the other.
            report(
                "Final-Recipient: rfc822; a\r\nAction: relayed\r\n\r\nFinal-Recipient: rfc822; b\r\nAction: failed\r\n",
            ),
        ] {
            assert!(reports_failure(message.as_bytes()), "{message}");
        }
    }

    /// The order of fields, the boundary and the charset are those of Amazon SES.
    #[test]
    fn a_forwarded_report_is_a_bounce() {
        let message = "From: MAILER-DAEMON@eu-west-1.amazonses.com\r\nTo: signed@bounces.example.com\r\n\
            Subject: Delivery Status Notification (Failure)\r\nMIME-Version: 1.0\r\n\
            Content-Type: multipart/report; \r\n\tboundary=\"----=_Part_1_2.3\"; \r\n\treport-type=delivery-status\r\n\r\n\
            ------=_Part_1_2.3\r\nContent-Type: text/plain; charset=us-ascii\r\nContent-Transfer-Encoding: 7bit\r\n\
            Content-Description: Notification\r\n\r\nAn error occurred while trying to deliver the mail\r\n\r\n\
            ------=_Part_1_2.3\r\nContent-Type: message/delivery-status\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\
            Reporting-MTA: dns; a1-2.smtp-out.eu-west-1.amazonses.com\r\n\r\nAction: failed\r\n\
            Final-Recipient: rfc822; trader@example.com\r\nDiagnostic-Code: smtp; 550 5.1.1 user unknown\r\n\
            Status: 5.1.1\r\n\r\n------=_Part_1_2.3\r\nContent-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\n\
            ------=_Part_1_2.3--\r\n";
        assert!(reports_failure(message.as_bytes()));
        assert_eq!(recipients(message.as_bytes()), ["signed@bounces.example.com"]);
    }

    #[test]
    fn no_other_message_is_a_bounce() {
        for action in
            ["delayed", "relayed", "delivered", "expanded", "failed-not", "x-failed", "", "not failed"]
        {
            let message =
                failed().replace("Action: failed\r\nStatus", &format!("Action: {action}\r\nStatus"));
            assert!(!reports_failure(message.as_bytes()), "{message}");
        }
        for message in [
            String::new(),
            "\r\n".into(),
            "Action: failed\r\n\r\nAction: failed\r\n".into(),
            // An automatic reply that quotes the whole report.
            failed().replace("multipart/report", "multipart/mixed"),
            failed().replace("message/delivery-status", "text/plain"),
            failed().replace("message/delivery-status", "message/disposition-notification"),
            failed().replace("boundary=\"4Q", "boundary=\"other"),
            failed().replace("boundary=", "bound="),
            format!("Content-Type: message/rfc822\r\n\r\n{}", failed()),
        ] {
            assert!(!reports_failure(message.as_bytes()), "{message}");
        }
    }

    #[test]
    fn recipients_are_read_from_the_message_header_only() {
        let message = format!(
            "delivered-to: a@x.example\r\nX-ORIGINAL-TO: b@x.example\nEnvelope-To: c@x.example,\r\n d@x.example\r\nCc: no@x.example\r\n{}",
            failed()
        );
        let named = recipients(message.as_bytes());
        assert_eq!(
            named,
            ["a@x.example", "b@x.example", "c@x.example,\r\n d@x.example", "signed@bounces.example.com"]
        );
        assert_eq!(recipients(b"\r\nTo: late@x.example\r\n"), Vec::<String>::new());
        assert_eq!(recipients(b""), Vec::<String>::new());
    }

    /// Nested or repeated input does not take quadratic time.
    #[test]
    fn a_megabyte_of_any_input_is_read_fast() {
        let began = std::time::Instant::now();
        for pattern in [
            "Content-Type: message/rfc822\n\n",
            "Content-Type: multipart/report; boundary=a\n\n--a\n",
            "To: a\n",
            "\n",
            "--4Q.1/relay.example.com\n",
            "Content-Type: multipart/report; boundary=\"",
            "((((((((",
            "To: =?utf-8?q?",
        ] {
            let message = pattern.repeat((1 << 20) / pattern.len());
            assert!(!reports_failure(message.as_bytes()));
            assert!(recipients(message.as_bytes()).len() <= message.len() / 5);
            let message = report(&pattern.repeat((1 << 20) / pattern.len()));
            assert!(!reports_failure(message.as_bytes()));
        }
        assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
    }
}
