//! Checks each relay, from connecting to RCPT. No email is sent.

use std::sync::Arc;

use time::OffsetDateTime;
use tokio::task::JoinSet;

use super::report::Check;
use crate::config::MailSettings;
use crate::email_address::EmailAddress;
use crate::locale::Locale;
use crate::mail::gateway::Gateway;
use crate::mail::message::{Composer, Mail, MailKind};
use crate::mail::not_sent::{NotSent, Stage};
use crate::mail::verdict::Verdict;

/// The test email that is offered to each relay. `None` if there is no composer, or if no email to
/// the address can be built.
pub(super) fn sample(
    composer: Option<&Composer>,
    settings: &MailSettings,
    to: Option<&EmailAddress>,
    now: OffsetDateTime,
) -> Option<Mail> {
    let to = to.map_or(settings.mail_support.trim(), EmailAddress::as_str);
    composer?.sample(MailKind::Test, Locale::En, to, now).ok()
}

/// Checks all relays concurrently. Each takes at most `SMTP_DEADLINE` and a second.
pub(super) async fn check(gateway: Gateway, mail: Mail) -> Vec<Check> {
    let (gateway, mail) = (Arc::new(gateway), Arc::new(mail));
    let mut conversations = JoinSet::new();
    for relay in gateway.relays() {
        let (name, place) = (format!("relay {relay}"), relay.place);
        let (gateway, mail) = (Arc::clone(&gateway), Arc::clone(&mail));
        conversations.spawn(async move {
            let offered = gateway.check(place, &mail).await;
            (place, row(name, &offered))
        });
    }
    let mut rows = conversations.join_all().await;
    rows.sort_by_key(|(place, _)| *place);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn row(name: String, offered: &Result<(), NotSent>) -> Check {
    let Err(why) = offered else {
        return Check::ok(name, "connect, TLS, EHLO, sign-in, MAIL and RCPT were accepted");
    };
    let seen = format!("stopped at {why}");
    if why.verdict() == Verdict::Recipient {
        let action = "Run this command with `--to EMAIL` and the address of a mailbox that exists.";
        return Check::warning(name, seen, action);
    }
    Check::failed(name, seen, action(why.stage))
}

/// What to do about a failure at a stage.
const fn action(stage: Stage) -> &'static str {
    match stage {
        Stage::Connect => {
            "Start the relay, or correct host and port in SMTP_RELAYS, DNS, or the firewall between."
        }
        Stage::Tls => {
            "Write the name of the relay's certificate into SMTP_RELAYS, and its CA into SMTP_CA_FILE if it is not public."
        }
        Stage::Greeting | Stage::Deadline => {
            "Check that the port in SMTP_RELAYS fits: 465 for smtps://, 587 for smtp://; raise SMTP_DEADLINE for a slow relay."
        }
        Stage::Ehlo => "Change SMTP_EHLO_NAME to the public name of this machine.",
        Stage::Auth => {
            "Correct user and password in SMTP_RELAYS, percent-encoded; for an access token, the SMTP_OAUTH_* settings."
        }
        Stage::Mail => "Allow MAIL_FROM and MAIL_BOUNCES at the relay as sender, or change these settings.",
        Stage::Rcpt => {
            "Allow this machine or its user at the relay to send to other domains (docs/operate/mail-verdicts.md)."
        }
        Stage::Compose | Stage::NoRelay | Stage::Rate | Stage::Noop | Stage::Data | Stage::Message => {
            "Look for this machine in the relay's log."
        }
    }
}
