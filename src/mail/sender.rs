//! Reads the settings that become part of an email's headers or envelope. All addresses and host
//! names in the result are ASCII: anything else needs SMTPUTF8 (RFC 6531), which a relay may not
//! support.

use std::net::{Ipv4Addr, Ipv6Addr};

use lettre::Address;
use lettre::message::Mailbox;
use lettre::transport::smtp::extension::ClientId;

use crate::email_address::MAX_OCTETS;

/// The longest domain in octets (RFC 5321 §4.5.3.1.2).
const MAX_DOMAIN: usize = 255;

/// Reads `MAIL_FROM`: an address, or a name and an address in angle brackets. The name may have any
/// letters, because headers encode them (RFC 2047).
///
/// # Errors
///
/// What is wrong, as the rest of a sentence that begins with the variable's name.
pub(super) fn mailbox(text: &str) -> Result<Mailbox, &'static str> {
    if text.chars().any(char::is_control) {
        return Err("contains a control character");
    }
    match text.parse::<Mailbox>() {
        Ok(mailbox) => Ok(Mailbox::new(mailbox.name, in_ascii(&mailbox.email)?)),
        Err(_) if lacks_quotes(text) => {
            Err("has a name that needs quotes, as in \"Vero OMS, Ltd.\" <no-reply@verolabs.co>")
        }
        Err(_) => Err("does not have the form Vero OMS <no-reply@verolabs.co>"),
    }
}

/// Reads `MAIL_BOUNCES` if it is an address.
///
/// # Errors
///
/// As [`mailbox`].
pub(super) fn address(text: &str) -> Result<Address, &'static str> {
    let address = text.trim().parse().map_err(|_| "is neither an address such as bounces@verolabs.co nor @ and a domain such as @bounces.verolabs.co")?;
    in_ascii(&address)
}

/// Reads `SMTP_EHLO_NAME`: a host name, or an address literal (RFC 5321 §4.1.3).
///
/// # Errors
///
/// As [`mailbox`].
pub(super) fn ehlo_name(text: &str) -> Result<ClientId, &'static str> {
    const WHY: &str =
        "is neither a host name such as platform.verolabs.co nor an address such as [192.0.2.1]";
    let text = text.trim();
    if let Some(literal) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return match literal.strip_prefix("IPv6:") {
            Some(ipv6) => ipv6.parse::<Ipv6Addr>().map(ClientId::Ipv6).map_err(|_| WHY),
            None => literal.parse::<Ipv4Addr>().map(ClientId::Ipv4).map_err(|_| WHY),
        };
    }
    let name = idna::domain_to_ascii(text).map_err(|_| WHY)?;
    // Names of machines may have an underscore, although host names must not.
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if is_name && (1..=MAX_DOMAIN).contains(&name.len()) { Ok(ClientId::Domain(name)) } else { Err(WHY) }
}

/// The same address with its domain as A-labels (RFC 5890 §2.3.2.1). The local part has no ASCII
/// form, so it must be ASCII already.
fn in_ascii(address: &Address) -> Result<Address, &'static str> {
    const WHY: &str = "has an address with a domain that no email can be sent from";
    let (local, domain) = (address.user(), address.domain());
    if !local.is_ascii() {
        return Err("has non-ASCII letters before the @, which not every relay accepts: use ASCII letters");
    }
    if domain.starts_with('[') {
        return Ok(address.clone());
    }
    let domain = idna::domain_to_ascii_strict(domain).map_err(|_| WHY)?;
    let address = Address::new(local, domain).map_err(|_| WHY)?;
    if AsRef::<str>::as_ref(&address).len() > MAX_OCTETS { Err(WHY) } else { Ok(address) }
}

/// Whether `text` would be a mailbox if its name were in quotes, as a name with a comma must be
/// (RFC 5322 §3.2.3).
fn lacks_quotes(text: &str) -> bool {
    text.rsplit_once('<').is_some_and(|(name, rest)| {
        let name = name.trim();
        !name.contains(['"', '<', '>', '\\']) && format!("\"{name}\" <{rest}").parse::<Mailbox>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_ascii_or_refused_with_the_reason() {
        let long = format!("a@{0}.{0}.{0}.{0}.vn", "b".repeat(62));
        for (given, expected) in [
            ("Vero OMS <No-Reply@verolabs.co>", Ok("Vero OMS <No-Reply@verolabs.co>")),
            ("no-reply@verolabs.co", Ok("no-reply@verolabs.co")),
            ("Bücher <no-reply@Bücher.example>", Ok("Bücher <no-reply@xn--bcher-kva.example>")),
            ("ngân-hàng.vn <a@ngân-hàng.vn>", Ok("\"ngân-hàng.vn\" <a@xn--ngn-hng-dwao.vn>")),
            ("a@XN--BCHER-KVA.example", Ok("a@xn--bcher-kva.example")),
            ("a@。example", Err("does not have the form")),
            ("\"Tiger, Sons\" <codes@tiger.example>", Ok("\"Tiger, Sons\" <codes@tiger.example>")),
            ("Tiger, Sons <codes@tiger.example>", Err("needs quotes")),
            ("Cửa hàng, Sài Gòn <codes@bücher.example>", Err("needs quotes")),
            ("Tiger (Sons) <codes@tiger.example>", Err("needs quotes")),
            ("Tiger; Sons <codes@tiger.example>", Err("needs quotes")),
            ("Tiger, Sons <codes>", Err("does not have the form")),
            ("a@x.vn, b@x.vn", Err("does not have the form")),
            ("A <a@x.vn>, B <b@x.vn>", Err("does not have the form")),
            ("nguyễn@x.vn", Err("before the @")),
            ("Nguyễn <nguyễn@x.vn>", Err("before the @")),
            ("a@x_y.vn", Err("domain")),
            ("a@-x.vn", Err("does not have the form")),
            (&long, Err("domain")),
            ("a\r\nBcc: b@x.vn <a@x.vn>", Err("control")),
            ("\"a\u{1}\" <a@x.vn>", Err("control")),
            ("nobody", Err("does not have the form")),
            ("", Err("does not have the form")),
        ] {
            let read = mailbox(given);
            match (read.as_ref().map(ToString::to_string), expected) {
                (Ok(read), Ok(expected)) => assert_eq!(read, expected, "{given}"),
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{given}: {why}"),
                (read, _) => panic!("{given}: {read:?}"),
            }
            assert!(read.is_err() || read.unwrap().email.to_string().is_ascii(), "{given}");
        }
    }

    #[test]
    fn the_address_of_bounces_is_ascii_or_refused() {
        for (given, expected) in [
            ("bounces@bücher.example", Some("bounces@xn--bcher-kva.example")),
            (" bounces@x.vn ", Some("bounces@x.vn")),
            ("bounces@[192.0.2.1]", Some("bounces@[192.0.2.1]")),
            ("trả@x.vn", None),
            ("Bounces <bounces@x.vn>", None),
            ("a@x.vn\r\nRCPT TO:<b@x.vn>", None),
        ] {
            assert_eq!(
                address(given).ok().map(|address| address.to_string()).as_deref(),
                expected,
                "{given}"
            );
        }
    }

    #[test]
    fn the_ehlo_name_is_ascii_or_refused() {
        let long = "a.".repeat(200);
        for (given, expected) in [
            ("platform.verolabs.co", Some("platform.verolabs.co")),
            ("BÜCHER.example", Some("xn--bcher-kva.example")),
            ("replica_1", Some("replica_1")),
            ("[192.0.2.1]", Some("[192.0.2.1]")),
            ("[IPv6:2001:db8::1]", Some("[IPv6:2001:db8::1]")),
            ("", None),
            ("[192.0.2]", None),
            ("[2001:db8::1]", None),
            ("a b", None),
            ("a\r\nMAIL FROM:<b@x.vn>", None),
            ("<a>", None),
            (&long, None),
        ] {
            assert_eq!(ehlo_name(given).ok().map(|name| name.to_string()).as_deref(), expected, "{given:?}");
        }
    }
}
