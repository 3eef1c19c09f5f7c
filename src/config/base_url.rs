//! Parser of base URLs: URLs to which the service adds paths.

use url::Url;

/// Parses an http or https URL without credentials, query and fragment.
///
/// # Errors
///
/// A sentence: `example` if the text is no http or https URL, `credentials` if the URL has
/// credentials, another one if it has a query or a fragment.
pub fn base_url(text: &str, example: &'static str, credentials: &'static str) -> Result<Url, &'static str> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https")).ok_or(example)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(credentials);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a path is appended to it, so it cannot have a query (?) or a fragment (#)");
    }
    Ok(url)
}
