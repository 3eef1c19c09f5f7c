//! Vietnamese and English: which one a request asks for, and every sentence that an error says.

use std::str::FromStr;

use crate::error::Problem;

/// A language that the service speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Locale {
    /// Vietnamese.
    Vi,
    /// English.
    En,
}

impl Locale {
    /// The language tag, as in `lang="vi"` and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vi => "vi",
            Self::En => "en",
        }
    }

    /// The language that an Accept-Language header (RFC 9110 §12.5.4) prefers among ours; `None` if it names neither.
    ///
    /// Written here, because the crate for it sorts by a float that the client sends, and a `q` of NaN can make that sort
    /// panic (docs/decisions).
    #[must_use]
    pub fn preferred(accept_language: &str) -> Option<Self> {
        let mut best: Option<(Self, u16)> = None;
        for range in accept_language.split(',').take(32) {
            let mut parts = range.split(';').map(str::trim);
            let language = parts.next().unwrap_or_default().split('-').next().unwrap_or_default();
            let Ok(locale) = language.to_ascii_lowercase().parse::<Self>() else {
                continue;
            };
            let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(1000, thousandths);
            if quality > 0 && best.is_none_or(|(_, known)| quality > known) {
                best = Some((locale, quality));
            }
        }
        best.map(|(locale, _)| locale)
    }
}

/// A quality value of at most three decimals as whole thousandths; 0, which means "not acceptable", for anything else.
fn thousandths(quality: &str) -> u16 {
    let (whole, decimals) = quality.split_once('.').unwrap_or((quality, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|b| b.is_ascii_digit()) {
        return 0;
    }
    match whole {
        "0" => format!("{decimals:0<3}").parse().unwrap_or(0),
        "1" => 1000,
        _ => 0,
    }
}

/// Reads a language tag of ours, `vi` or `en`.
impl FromStr for Locale {
    type Err = ();

    fn from_str(tag: &str) -> Result<Self, ()> {
        match tag {
            "vi" => Ok(Self::Vi),
            "en" => Ok(Self::En),
            _ => Err(()),
        }
    }
}

/// What an error says to a person: what was wrong, and what to do now.
#[must_use]
pub const fn message(problem: Problem, locale: Locale) -> &'static str {
    let (vi, en) = match problem {
        Problem::ContentTypeUnsupported => (
            "Yêu cầu phải có tiêu đề Content-Type: application/json.",
            "Send the request with the header Content-Type: application/json.",
        ),
        Problem::BodyTooLarge => (
            "Nội dung yêu cầu quá dài. Hãy gửi không quá 16 KiB.",
            "The request body is too long. Send at most 16 KiB.",
        ),
        Problem::BodyIncomplete => (
            "Nội dung yêu cầu chưa được nhận đầy đủ. Hãy gửi lại.",
            "The request body did not arrive in full. Send it again.",
        ),
        Problem::JsonMalformed => (
            "Nội dung yêu cầu không phải là JSON hợp lệ với mã hóa UTF-8.",
            "The request body is not valid JSON in UTF-8.",
        ),
        Problem::JsonNotObject => {
            ("Nội dung yêu cầu phải là một đối tượng JSON.", "The request body has to be a JSON object.")
        }
        Problem::FieldUnknown => (
            "Yêu cầu có một trường không được hỗ trợ. Hãy chỉ gửi các trường được mô tả trong tài liệu.",
            "The request has a field that is not known here. Send only the documented fields.",
        ),
        Problem::FieldMissing => (
            "Yêu cầu thiếu một trường bắt buộc, được nêu trong mục \"field\".",
            "The request lacks a required field; \"field\" names it.",
        ),
        Problem::FieldDuplicate => (
            "Yêu cầu có một trường bị lặp lại. Mỗi trường chỉ được gửi một lần.",
            "The request has a field more than once. Send each field once.",
        ),
        Problem::FieldTypeInvalid => (
            "Một trường của yêu cầu sai kiểu: mọi trường đều phải là chuỗi ký tự.",
            "A field of the request has the wrong type: every field is a string.",
        ),
        Problem::EmailInvalid => (
            "Địa chỉ email không hợp lệ. Hãy kiểm tra lại, ví dụ: ten@example.com.",
            "This email address is not valid. Check it; it should look like name@example.com.",
        ),
        Problem::QueryInvalid => (
            "Tham số truy vấn không hợp lệ. Hãy xem tài liệu của API.",
            "A query parameter is not valid. See the API's documentation.",
        ),
        Problem::OriginRefused => (
            "Yêu cầu đến từ một trang web không được phép. Hãy mở trang đăng nhập chính thức và thử lại.",
            "The request came from a site that may not send it. Open the official sign-in page and try again.",
        ),
        Problem::NetworkThrottled => (
            "Có quá nhiều yêu cầu từ mạng của bạn. Hãy đợi một lát rồi thử lại.",
            "Too many requests came from your network. Wait a moment, then try again.",
        ),
        Problem::AddressThrottled => (
            "Đã có quá nhiều mã được yêu cầu cho địa chỉ này. Hãy dùng mã mới nhất bạn đã nhận, hoặc đợi rồi thử lại.",
            "Too many codes were asked for this address. Use the newest one you received, or wait and try again.",
        ),
        Problem::MailUnavailable => (
            "Hiện chưa gửi được email. Hãy thử lại sau ít phút.",
            "Email cannot be sent at the moment. Try again in a few minutes.",
        ),
        Problem::StorageUnavailable => (
            "Dịch vụ đang tạm thời bị gián đoạn. Hãy thử lại sau ít phút.",
            "The service is interrupted for the moment. Try again in a few minutes.",
        ),
        Problem::NotReady => ("Dịch vụ chưa sẵn sàng.", "The service is not ready."),
        Problem::NotFound => (
            "Không có gì ở đường dẫn này. Hãy kiểm tra lại đường dẫn.",
            "There is nothing at this path. Check the path.",
        ),
        Problem::MethodNotAllowed => (
            "Đường dẫn này không hỗ trợ phương thức này. Các phương thức được hỗ trợ nằm trong tiêu đề Allow.",
            "This path does not take that method. The header Allow lists those it takes.",
        ),
    };
    match locale {
        Locale::Vi => vi,
        Locale::En => en,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_language_wins_and_rubbish_is_harmless() {
        for (header, expected) in [
            ("vi", Some(Locale::Vi)),
            ("vi-VN,vi;q=0.9,en;q=0.8", Some(Locale::Vi)),
            ("en-US;q=0.5, VI;q=0.7", Some(Locale::Vi)),
            ("fr, en;q=0.1", Some(Locale::En)),
            ("en;q=0", None),
            ("fr", None),
            ("", None),
            ("vi;q=nan,en;q=inf,vi;q=-1", None),
            (";;;q=,,=;vi", None),
            ("en;q=0.5,vi;q=1.001,vi;q=0.4999", Some(Locale::Vi)),
        ] {
            assert_eq!(Locale::preferred(header), expected, "{header}");
        }
    }

    #[test]
    fn every_problem_has_its_own_code_and_says_something_in_both_languages() {
        let mut codes: Vec<_> = Problem::ALL.iter().map(|problem| problem.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Problem::ALL.len());
        for problem in Problem::ALL {
            assert_ne!(message(problem, Locale::Vi), message(problem, Locale::En));
        }
    }
}
