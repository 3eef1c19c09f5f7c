//! Query strings of the admin API. A parameter that is unknown, repeated or malformed is refused.

use std::str::FromStr;

use url::form_urlencoded;
use uuid::Uuid;

use crate::admin::search::{MAX_PAGE, Query};
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};

/// How many items a page has by default.
const DEFAULT_PAGE: i64 = 50;

/// Which accounts to find, and which page of them.
#[derive(Debug)]
pub struct Search {
    /// Which accounts.
    pub query: Query,
    /// The page.
    pub page: Page,
}

/// A page of a list.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// The id of the last item of the previous page; `None` for the first page.
    pub from: Option<Uuid>,
    /// The maximum number of items, 1 to 1000.
    pub limit: i64,
}

/// Reads `email`, `prefix`, `id` or `external_id`, at most one of them, with `after` and `limit`. A
/// function of its own, so that it can be fuzzed.
///
/// # Errors
///
/// `QueryInvalid`, or `EmailInvalid`.
pub fn search(query: &str) -> Result<Search, Error> {
    let mut parameters = Parameters::read(query)?;
    let page = parameters.page("after")?;
    let query = match parameters.0.pop() {
        None => Query::All,
        Some((name, value)) => match name.as_str() {
            "email" => Query::Email(
                EmailAddress::parse(&value).map_err(|_| Error::in_field(Problem::EmailInvalid, "email"))?,
            ),
            "prefix" if !value.is_empty() => Query::Prefix(value),
            "id" => Query::Id(parsed(&value)?),
            "external_id" if !value.is_empty() => Query::ExternalId(value),
            _ => return Err(Problem::QueryInvalid.into()),
        },
    };
    parameters.end()?;
    Ok(Search { query, page })
}

/// Reads the page of a list. `from` is the name of the parameter with the id of the previous page's
/// last item.
///
/// # Errors
///
/// `QueryInvalid`.
pub fn page(query: &str, from: &str) -> Result<Page, Error> {
    let mut parameters = Parameters::read(query)?;
    let page = parameters.page(from)?;
    parameters.end()?;
    Ok(page)
}

/// Reads the page of an export, and whether the export contains password hashes.
///
/// # Errors
///
/// `QueryInvalid`.
pub fn export(query: &str) -> Result<(Page, bool), Error> {
    let mut parameters = Parameters::read(query)?;
    let page = parameters.page("after")?;
    let hashes = parameters.flag("hashes")?;
    parameters.end()?;
    Ok((page, hashes))
}

/// Reads the page of a list of requests, and whether only open ones are wanted.
///
/// # Errors
///
/// `QueryInvalid`.
pub fn requests(query: &str) -> Result<(Page, bool), Error> {
    let mut parameters = Parameters::read(query)?;
    let (page, open) = (parameters.page("before")?, parameters.flag("open")?);
    parameters.end()?;
    Ok((page, open))
}

struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn read(query: &str) -> Result<Self, Problem> {
        let mut read: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if read.iter().any(|(known, _)| *known == name) {
                return Err(Problem::QueryInvalid);
            }
            read.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(read))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let place = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(place).1)
    }

    fn page(&mut self, from: &str) -> Result<Page, Problem> {
        let from = self.take(from).map(|value| parsed(&value)).transpose()?;
        let limit = self.take("limit").map(|value| parsed(&value)).transpose()?.unwrap_or(DEFAULT_PAGE);
        if (1..=MAX_PAGE).contains(&limit) { Ok(Page { from, limit }) } else { Err(Problem::QueryInvalid) }
    }

    fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.take(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Problem::QueryInvalid),
        }
    }

    fn end(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::QueryInvalid.into()) }
    }
}

fn parsed<T: FromStr>(value: &str) -> Result<T, Problem> {
    value.parse().map_err(|_| Problem::QueryInvalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_has_at_most_one_criterion() {
        let id = Uuid::from_u128(7);
        assert!(matches!(search("").unwrap().query, Query::All));
        assert!(matches!(search("email=A%40example.com").unwrap().query, Query::Email(_)));
        assert!(matches!(search("prefix=tra&limit=1").unwrap().query, Query::Prefix(text) if text == "tra"));
        assert!(matches!(search(&format!("id={id}")).unwrap().query, Query::Id(found) if found == id));
        assert!(matches!(search("external_id=x").unwrap().query, Query::ExternalId(text) if text == "x"));
        let page = search(&format!("after={id}&limit=1000")).unwrap().page;
        assert_eq!((page.from, page.limit), (Some(id), 1000));
        for bad in [
            "email=a@b.example&prefix=a",
            "prefix=a&prefix=b",
            "prefix=",
            "external_id",
            "id=7",
            "limit=0",
            "limit=1001",
            "limit=x",
            "after=x",
            "x=1",
        ] {
            assert_eq!(search(bad).unwrap_err().problem, Problem::QueryInvalid, "{bad}");
        }
        assert_eq!(search("email=a").unwrap_err().problem, Problem::EmailInvalid);
    }
}
