//! The hooks of `EVENT_HOOKS`.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;
use strum::VariantArray as _;
use url::{Host, Url};

use crate::audit::Event;
use crate::config::ConfigError;
use crate::http_client::Reach;
use crate::secret::WebhookSecrets;

/// The maximum number of hooks. Each has its own loop and concurrent requests.
const MAX_HOOKS: usize = 16;

/// A receiver of events.
pub(super) struct Hook {
    /// Its name in the database, in metrics and in the log.
    pub(super) name: String,
    /// Where it listens. A URL may contain a token.
    pub(super) url: Uri,
    /// What signs its requests.
    pub(super) secrets: WebhookSecrets,
    /// The kinds of events that it receives; `None`: all.
    pub(super) kinds: Option<Vec<&'static str>>,
}

/// Shows the name alone.
impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Reads `EVENT_HOOKS`: entries of NAME URL SECRET KINDS, each on a line of its own or with
/// semicolons between them.
///
/// # Errors
///
/// A sentence that names the variable and quotes neither a URL nor a secret.
pub(super) fn read(text: &str, reach: &Reach) -> Result<Vec<Hook>, ConfigError> {
    let mut hooks: Vec<Hook> = Vec::new();
    let entries = text.split(['\n', ';']).map(str::trim).filter(|entry| !entry.is_empty());
    for (place, entry) in entries.enumerate() {
        let hook = hook(entry, reach).map_err(|why| refuse(format!("(entry {}) {why}", place + 1)))?;
        if hooks.iter().any(|known| known.name == hook.name) {
            return Err(refuse(format!("has the name {} twice", hook.name)));
        }
        hooks.push(hook);
    }
    if hooks.len() > MAX_HOOKS {
        return Err(refuse(format!("has more than {MAX_HOOKS} entries")));
    }
    Ok(hooks)
}

fn refuse(why: String) -> ConfigError {
    ConfigError::new("EVENT_HOOKS", why)
}

fn hook(entry: &str, reach: &Reach) -> Result<Hook, String> {
    let [name, url, secrets, kinds] = entry.split_whitespace().collect::<Vec<_>>()[..] else {
        return Err(
            "is not in the form NAME URL SECRET KINDS, such as: rest https://api.example/events whsec_… \
                    password_reset,password_changed"
                .into(),
        );
    };
    let is_plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
    if name.len() > 32 || !name.chars().all(is_plain) {
        return Err("has a name that is not 1 to 32 characters of a-z, 0-9 and '-'".into());
    }
    Ok(Hook {
        name: name.to_owned(),
        url: address(url, reach)?,
        secrets: secrets.parse()?,
        kinds: kinds_of(kinds)?,
    })
}

/// Refuses a host that is an IP address outside `reach`. A host name is checked whenever the client
/// connects.
fn address(text: &str, reach: &Reach) -> Result<Uri, &'static str> {
    let url = Url::parse(text).map_err(|_| "has no URL in the second place")?;
    if url.scheme() != "https" {
        return Err("has a URL without https, which receivers need");
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(
            "has a URL with a user, a password or a fragment (#): the signature authenticates requests",
        );
    }
    let literal: Option<IpAddr> = match url.host() {
        Some(Host::Ipv4(address)) => Some(address.into()),
        Some(Host::Ipv6(address)) => Some(address.into()),
        _ => None,
    };
    if literal.is_some_and(|address| !reach.allows(address)) {
        return Err("has a URL whose address is not public: add its network to EVENT_HOOK_NETWORKS");
    }
    Uri::try_from(url.as_str()).map_err(|_| "has a URL that cannot be requested")
}

fn kinds_of(text: &str) -> Result<Option<Vec<&'static str>>, String> {
    if text == "all" {
        return Ok(None);
    }
    let kind = |name: &str| {
        let known = Event::VARIANTS.iter().map(<&str>::from).find(|known| *known == name);
        known.ok_or_else(|| "has a kind that no event has: docs/operate/webhooks.md lists them".to_owned())
    };
    text.split(',').map(kind).collect::<Result<Vec<_>, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn read_within(networks: &[&str], text: &str) -> Result<Vec<Hook>, String> {
        let networks: Vec<_> = networks.iter().map(|network| network.parse().unwrap()).collect();
        read(text, &Reach::with(&networks)).map_err(|error| error.to_string())
    }

    #[test]
    fn entries_are_separated_by_lines_or_semicolons() {
        let text = format!(
            "\nrest https://api.example/hunter2?a=1 {SECRET} password_reset,password_changed\n\
             desk https://[2606:4700::1111]:8443 {SECRET},{SECRET} all; audit https://1.1.1.1/ {SECRET} all;\n"
        );
        let hooks = read_within(&[], &text).unwrap();
        let names: Vec<_> = hooks.iter().map(|hook| hook.name.as_str()).collect();
        assert_eq!(names, ["rest", "desk", "audit"]);
        assert_eq!(hooks[0].kinds.as_deref(), Some(&["password_reset", "password_changed"][..]));
        assert_eq!(hooks[1].kinds, None);
        assert_eq!(hooks[0].url.to_string(), "https://api.example/hunter2?a=1");
        assert!(!format!("{hooks:?}").contains("hunter2"));
        assert!(read_within(&[], "").unwrap().is_empty());
    }

    #[test]
    fn a_bad_entry_is_named_and_not_quoted() {
        let good = format!("a https://x.example/hunter2 {SECRET} all");
        for (bad, why) in [
            ("a https://x.example/hunter2".to_owned(), "NAME URL SECRET KINDS"),
            (format!("A https://x.example/hunter2 {SECRET} all"), "a-z"),
            (format!("{} https://x.example/hunter2 {SECRET} all", "a".repeat(33)), "1 to 32"),
            (format!("a x.example/hunter2 {SECRET} all"), "no URL"),
            (format!("a http://x.example/hunter2 {SECRET} all"), "without https"),
            (format!("a https://u:hunter2@x.example/ {SECRET} all"), "a user, a password"),
            (format!("a https://x.example/#hunter2 {SECRET} all"), "fragment"),
            (format!("a https://127.0.0.1/hunter2 {SECRET} all"), "EVENT_HOOK_NETWORKS"),
            // Other special addresses, and other notations of them.
            (format!("a https://2130706433/hunter2 {SECRET} all"), "EVENT_HOOK_NETWORKS"),
            (format!("a https://0x7f.1/hunter2 {SECRET} all"), "EVENT_HOOK_NETWORKS"),
            (format!("a https://[::ffff:10.0.0.1]/hunter2 {SECRET} all"), "EVENT_HOOK_NETWORKS"),
            (format!("a https://169.254.169.254/hunter2 {SECRET} all"), "EVENT_HOOK_NETWORKS"),
            ("a https://x.example/hunter2 whsec_hunter2 all".into(), "whsec_ and base64"),
            (format!("a https://x.example/hunter2 {SECRET} hunter2"), "a kind"),
            (format!("a https://x.example/hunter2 {SECRET} all,password_reset"), "a kind"),
            (format!("{good};{good}"), "the name a twice"),
            ((0..17).map(|number| format!("{number}{good}")).collect::<Vec<_>>().join(";"), "16"),
        ] {
            let said = read_within(&[], &bad).unwrap_err();
            assert!(said.starts_with("EVENT_HOOKS ") && said.contains(why), "{bad}: {said}");
            assert!(!said.contains("hunter2") && !said.contains("MfKQ9r8"), "{said}");
        }
        let inside = format!("a https://10.1.2.3/ {SECRET} all");
        assert!(read_within(&["10.0.0.0/8"], &inside).is_ok());
    }
}
