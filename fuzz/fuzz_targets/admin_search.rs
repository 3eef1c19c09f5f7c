//! The query parser of the admin API's search accepts at most one criterion, no parameter twice,
//! and a page of 1 to 1000 accounts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vos_auth::admin::search::Query;
use vos_auth::error::Problem;
use vos_auth::http::admin::query;

fuzz_target!(|text: &str| {
    let search = match query::search(text) {
        Ok(search) => search,
        Err(error) => {
            assert!(matches!(error.problem, Problem::QueryInvalid | Problem::EmailInvalid));
            return;
        }
    };
    assert!((1..=1000).contains(&search.page.limit));
    let names: Vec<_> = url::form_urlencoded::parse(text.as_bytes()).map(|(name, _)| name.into_owned()).collect();
    let has = |name: &str| names.iter().filter(|known| *known == name).count() == 1;
    assert_eq!(search.page.from.is_some(), has("after"));
    let criterion = match search.query {
        Query::All => None,
        Query::Email(_) => Some("email"),
        Query::Prefix(value) | Query::ExternalId(value) if value.is_empty() => panic!("an empty value finds all"),
        Query::Prefix(_) => Some("prefix"),
        Query::Id(_) => Some("id"),
        Query::ExternalId(_) => Some("external_id"),
    };
    assert!(criterion.is_none_or(has));
    assert_eq!(names.len(), ["after", "limit"].into_iter().chain(criterion).filter(|name| has(name)).count());
});
