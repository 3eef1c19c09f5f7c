//! How an email describes the client's device: with words from fixed lists. It never quotes the
//! User-Agent, because an attacker could write a message to the account owner into it.

use crate::locale::Locale;

/// Marks in the User-Agent, and the browser's name. The first match counts, because most browsers
/// also claim to be Chrome or Safari.
const BROWSERS: [(&str, &str); 13] = [
    ("coc_coc_browser", "Cốc Cốc"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("Edg/", "Edge"),
    ("EdgA/", "Edge"),
    ("EdgiOS/", "Edge"),
    ("OPR/", "Opera"),
    ("Firefox/", "Firefox"),
    ("FxiOS/", "Firefox"),
    ("CriOS/", "Chrome"),
    ("Chrome/", "Chrome"),
    ("Version/", "Safari"),
    ("curl/", "curl"),
    ("Postman", "Postman"),
];

/// Marks in the User-Agent, and the system's name. The first match counts: an iPhone also says "Mac
/// OS X", and Android "Linux".
const SYSTEMS: [(&str, &str); 7] = [
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
];

/// The browser and the system in the email's language, as far as they are recognised.
#[must_use]
pub fn describe(user_agent: &str, locale: Locale) -> String {
    let find = |marks: &[(&str, &'static str)]| {
        marks.iter().find(|(mark, _)| user_agent.contains(mark)).map(|(_, name)| *name)
    };
    match (find(&BROWSERS), find(&SYSTEMS), locale) {
        (Some(browser), Some(system), Locale::Vi) => format!("{browser} trên {system}"),
        (Some(browser), Some(system), Locale::En) => format!("{browser} on {system}"),
        (Some(name), None, _) | (None, Some(name), _) => name.to_owned(),
        (None, None, Locale::Vi) => "Không xác định".to_owned(),
        (None, None, Locale::En) => "Unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_devices_are_named_and_nothing_else_is_quoted() {
        for (user_agent, vi, en) in [
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36 Edg/156.0.0.0",
                "Edge trên Windows",
                "Edge on Windows",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/19.0 Mobile/15E148 Safari/604.1",
                "Safari trên iPhone",
                "Safari on iPhone",
            ),
            ("curl/8.5.0", "curl", "curl"),
            ("Your account is blocked, call 0123 4567", "Không xác định", "Unknown"),
            ("", "Không xác định", "Unknown"),
        ] {
            assert_eq!(describe(user_agent, Locale::Vi), vi);
            assert_eq!(describe(user_agent, Locale::En), en);
        }
    }
}
