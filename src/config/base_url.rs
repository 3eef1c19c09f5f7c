//! A URL in a flag that paths are added to.

use url::Url;

/// Reads an http or https URL without credentials, query and fragment. `example` says how it is written, `credentials` where
/// they belong.
///
/// # Errors
///
/// The sentence that says what to do.
pub fn base_url(text: &str, example: &'static str, credentials: &'static str) -> Result<Url, &'static str> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https")).ok_or(example)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(credentials);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a path is added to it, so nothing can follow its own");
    }
    Ok(url)
}
