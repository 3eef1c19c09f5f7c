//! A file that is served to browsers, compressed once when it is made.

use std::io::Write as _;

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;

/// A file, plain and compressed. It contains no secret and nothing of a request, so its compressed
/// length reveals nothing (BREACH).
#[derive(Debug)]
pub struct Asset {
    content_type: &'static str,
    plain: Bytes,
    gzip: Bytes,
}

impl Asset {
    /// Compresses `content`.
    pub fn new(content_type: &'static str, content: impl Into<Bytes>) -> Self {
        let plain = content.into();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let gzip = encoder.write_all(&plain).and_then(|()| encoder.finish());
        Self { content_type, gzip: gzip.expect("a vector takes every byte").into(), plain }
    }

    /// The file, compressed if the request accepts gzip.
    pub fn answer(&self, request: &HeaderMap) -> Response {
        let head = [(CONTENT_TYPE, self.content_type), (VARY, "accept-encoding")];
        if accepts_gzip(request) {
            (head, [(CONTENT_ENCODING, "gzip")], self.gzip.clone()).into_response()
        } else {
            (head, self.plain.clone()).into_response()
        }
    }
}

/// Whether `Accept-Encoding` (RFC 9110 §12.5.3) names gzip with a weight other than 0.
fn accepts_gzip(request: &HeaderMap) -> bool {
    let lines = request.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
        name.trim().eq_ignore_ascii_case("gzip") && weight.is_none_or(|weight| weight > 0.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_if_it_is_accepted() {
        for (accepted, is_accepted) in [
            ("gzip, deflate, br, zstd", true),
            ("br;q=1, GZIP ; q=0.5", true),
            ("gzip;q=0", false),
            ("gzip;q=0.000", false),
            ("br, identity", false),
            ("gzipped", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, accepted.parse().unwrap())]);
            assert_eq!(accepts_gzip(&headers), is_accepted, "{accepted}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
