//! Vietnamese and English: which language a request prefers, and the message of every error.

mod advice;

use strum::{EnumString, IntoStaticStr};

pub use self::advice::{breach_advice, suggestion, warning};
use crate::error::Problem;

/// A language that the service supports. As text it is its language tag, as in `lang="vi"` and in
/// the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Locale {
    /// Vietnamese.
    Vi,
    /// English.
    En,
}

impl Locale {
    /// The language that an Accept-Language header (RFC 9110 §12.5.4) prefers; `None` if it names
    /// neither.
    ///
    /// The crate `accept-language` is not used: it sorts by a float that the client sends, and a
    /// `q` of NaN can make that sort panic (docs/decisions/0003).
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

/// A quality value of at most three decimals in thousandths. Anything else is 0, which means "not
/// acceptable".
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

/// The message of an error to a person: what was wrong, and what to do now.
#[must_use]
#[expect(clippy::too_many_lines, reason = "it is a table")]
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
            "The request has an unknown field. Send only the documented fields.",
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
        Problem::CodeMalformed => (
            "Mã khôi phục gồm 8 chữ số. Hãy kiểm tra lại mã trong email và nhập lại.",
            "A recovery code has 8 digits. Check the code in your email and enter it again.",
        ),
        Problem::CodeInvalid => (
            "Mã không đúng hoặc không còn hiệu lực. Hãy nhập mã trong email mới nhất, hoặc yêu cầu mã khác.",
            "Invalid or expired code. Enter the code from the newest email, or request another.",
        ),
        Problem::RecoverySessionMissing => (
            "Yêu cầu khôi phục đã kết thúc, hoặc trình duyệt có thể đang chặn cookie. Hãy yêu cầu mã mới để bắt đầu lại.",
            "This recovery has ended, or the browser may be blocking cookies. Request a new code to start again.",
        ),
        Problem::RecoverySessionExpired => (
            "Phiên khôi phục đã hết hạn. Hãy yêu cầu mã mới.",
            "This recovery has expired. Request a new code.",
        ),
        Problem::RecoverySessionSpent => (
            "Bạn đã nhập sai mã quá nhiều lần. Hãy yêu cầu mã mới.",
            "A wrong code was entered too many times. Request a new code.",
        ),
        Problem::RecoverySessionUnverified => (
            "Mã khôi phục chưa được xác minh. Hãy nhập mã trong email trước.",
            "The recovery code has not been entered yet. Enter the code from your email first.",
        ),
        Problem::RecoverySessionUsed => (
            "Mã của phiên khôi phục này đã được dùng, hoặc phiên đã kết thúc. Hãy đặt mật khẩu nếu được yêu cầu, đăng nhập, hoặc yêu cầu mã mới.",
            "This code has already been used, or the recovery has ended. Choose a password if you are asked to, sign in, or request a new code.",
        ),
        Problem::RecoveryIdMismatch => (
            "Một yêu cầu khôi phục khác đã được bắt đầu trong trình duyệt này. Hãy tải lại trang và kiểm tra địa chỉ email trước khi tiếp tục.",
            "Another recovery was started in this browser. Reload the page and check the email address before you continue.",
        ),
        Problem::PasswordTooShort => (
            "Mật khẩu quá ngắn. Hãy dùng nhiều ký tự hơn, ví dụ một câu gồm nhiều từ.",
            "The password is too short. Use more characters, such as a phrase of several words.",
        ),
        Problem::PasswordTooLong => (
            "Mật khẩu quá dài. Hãy dùng không quá 256 ký tự.",
            "The password is too long. Use at most 256 characters.",
        ),
        Problem::PasswordGuessable => (
            "Mật khẩu này dễ đoán. Hãy dùng vài từ không liên quan đến nhau, đến bạn hay đến sản phẩm này.",
            "This password is easy to guess. Use a few words that have nothing to do with each other, with you or with this product.",
        ),
        Problem::PasswordBreached => (
            "Mật khẩu này có trong danh sách mật khẩu đã bị lộ. Hãy chọn một mật khẩu khác.",
            "This password is on a list of passwords exposed in data breaches. Choose another one.",
        ),
        Problem::PasswordIncorrect => {
            ("Mật khẩu hiện tại không đúng. Hãy nhập lại.", "The current password is incorrect. Try again.")
        }
        Problem::CredentialsInvalid => (
            "Email hoặc mật khẩu không đúng. Hãy thử lại, hoặc khôi phục mật khẩu.",
            "The email or password is incorrect. Try again, or recover your password.",
        ),
        Problem::SecondFactorRequired | Problem::RecoveryFactorRequired => (
            "Tài khoản này yêu cầu xác minh bước hai. Hãy nhập mã từ ứng dụng xác thực, hoặc một mã dự phòng.",
            "This account asks for a second step. Enter the code of your authenticator app, or a backup code.",
        ),
        Problem::SecondFactorInvalid => (
            "Mã xác minh bước hai không đúng hoặc đã được dùng. Hãy đợi mã tiếp theo trong ứng dụng rồi thử lại.",
            "This code is wrong, or was used before. Wait for the next code of your app and try again.",
        ),
        Problem::SecondFactorThrottled => (
            "Mã xác minh bước hai đã bị nhập sai quá nhiều lần. Hãy đợi một lát rồi thử lại.",
            "A wrong code was entered too many times. Wait and try again.",
        ),
        Problem::LoginStepMissing => (
            "Lần đăng nhập này đã hết hạn. Hãy nhập lại mật khẩu.",
            "This sign-in has ended. Enter your password again.",
        ),
        Problem::FactorNotFound => {
            ("Tài khoản không có phương thức xác minh này.", "The account has no such second factor.")
        }
        Problem::FactorsUnavailable => {
            ("Máy chủ này chưa hỗ trợ xác minh bước hai.", "This service does not offer second factors.")
        }
        Problem::FactorNameInvalid => {
            ("Tên phải có từ 1 đến 60 ký tự.", "The name has to have 1 to 60 characters.")
        }
        Problem::FactorsTooMany => (
            "Tài khoản đã có quá nhiều phương thức xác minh. Hãy xóa bớt một phương thức.",
            "The account has too many second factors. Remove one first.",
        ),
        Problem::SessionInvalid => (
            "Phiên đăng nhập không tồn tại hoặc đã kết thúc. Hãy đăng nhập lại.",
            "There is no such session, or it has ended. Sign in again.",
        ),
        Problem::LoginThrottled => (
            "Đã có quá nhiều lần đăng nhập sai với địa chỉ này. Hãy đợi một lát rồi thử lại, hoặc khôi phục mật khẩu.",
            "There were too many failed logins with this address. Wait and try again, or recover your password.",
        ),
        Problem::PasswordThrottled => (
            "Mật khẩu hiện tại đã bị nhập sai hoặc mật khẩu đã được đổi quá nhiều lần. Hãy đợi một lát rồi thử lại.",
            "There were too many incorrect passwords or password changes. Wait, then try again.",
        ),
        Problem::HashingBusy => (
            "Hiện có quá nhiều người đang đăng nhập. Hãy thử lại sau vài giây.",
            "Too many people are signing in at the moment. Try again in a few seconds.",
        ),
        Problem::AddressChangeMissing => (
            "Không có thay đổi địa chỉ email nào đang chờ. Có thể thay đổi đã được hủy hoặc đã có hiệu lực; hãy liên hệ với bộ phận hỗ trợ nếu bạn không yêu cầu.",
            "No change of the email address is waiting. It may have been stopped, or it has taken effect; contact support if you did not ask for it.",
        ),
        Problem::IdempotencyKeyInvalid => (
            "Tiêu đề Idempotency-Key không hợp lệ. Hãy gửi một khóa ngẫu nhiên gồm 22 đến 64 ký tự.",
            "The Idempotency-Key header is not valid. Send one random key of 22 to 64 characters.",
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
            "Đã có quá nhiều mã được yêu cầu cho địa chỉ này. Hãy dùng mã mới nhất bạn đã nhận được, hoặc đợi một lát rồi thử lại.",
            "Too many codes were requested for this address. Use the newest one you received, or wait and try again.",
        ),
        Problem::MailUnavailable => (
            "Hiện không gửi được email. Hãy thử lại sau ít phút.",
            "Email cannot be sent at the moment. Try again in a few minutes.",
        ),
        Problem::StorageUnavailable => (
            "Dịch vụ đang tạm thời bị gián đoạn. Hãy thử lại sau ít phút.",
            "The service is temporarily unavailable. Try again in a few minutes.",
        ),
        Problem::NotReady => ("Dịch vụ chưa sẵn sàng.", "The service is not ready."),
        Problem::OperatorUnknown => (
            "Không có mã truy cập hợp lệ của người vận hành. Hãy kiểm tra mã, thời hạn của mã, hoặc chứng chỉ.",
            "There is no valid operator token or certificate. Check the token, its end, and the certificate.",
        ),
        Problem::RoleInsufficient => (
            "Vai trò của bạn không được phép thực hiện thao tác này. Hãy nhờ người có vai trò phù hợp.",
            "Your role may not do this. Ask an operator whose role may.",
        ),
        Problem::ReasonInvalid => (
            "Hãy ghi lý do trong tiêu đề X-Reason: từ 1 đến 200 ký tự, không có ký tự điều khiển.",
            "Give the reason in the header X-Reason: 1 to 200 characters, no control characters.",
        ),
        Problem::FieldInvalid => (
            "Một trường của yêu cầu có giá trị không hợp lệ, được nêu trong mục \"field\".",
            "A field of the request has an invalid value; \"field\" names it.",
        ),
        Problem::AccountNotFound => (
            "Không có tài khoản này. Hãy tìm lại tài khoản và kiểm tra mã định danh.",
            "There is no such account. Find the account again and check its id.",
        ),
        Problem::AccountDisabled => (
            "Tài khoản đã bị vô hiệu hóa. Hãy kích hoạt lại tài khoản trước.",
            "The account is disabled. Enable it first.",
        ),
        Problem::EmailTaken => (
            "Một tài khoản khác đã có địa chỉ này. Hãy đổi địa chỉ hoặc xóa tài khoản đó trước.",
            "Another account has this address. Change or erase that account first.",
        ),
        Problem::OperatorThrottled => (
            "Bạn đã hỗ trợ khôi phục quá nhiều lần trong giờ qua. Hãy đợi rồi thử lại, hoặc nhờ người vận hành khác.",
            "You have helped with too many recoveries in the last hour. Wait, or ask another operator.",
        ),
        Problem::RequestNotFound => (
            "Không có yêu cầu này. Hãy xem lại danh sách yêu cầu.",
            "There is no such request. See the list of requests.",
        ),
        Problem::RequestPending => (
            "Tài khoản này đang có một yêu cầu chưa kết thúc. Hãy phê duyệt hoặc hủy yêu cầu đó trước.",
            "The account has an open request. Approve or cancel that one first.",
        ),
        Problem::RequestEnded => (
            "Yêu cầu này đã được phê duyệt hoặc đã kết thúc. Hãy xem lại danh sách yêu cầu.",
            "The request was approved before, or it has ended. See the list of requests.",
        ),
        Problem::SecondOperatorRequired => (
            "Bạn là người đã gửi yêu cầu này. Hãy nhờ một người vận hành khác phê duyệt.",
            "You have asked for this yourself. Another operator has to approve it.",
        ),
        Problem::AccountChanged => (
            "Tài khoản đã bị vô hiệu hóa hoặc đã có địa chỉ khác kể từ khi gửi yêu cầu. Hãy hủy yêu cầu và gửi lại nếu cần.",
            "Since the request, the account was disabled or got another address. Cancel the request, and ask again if needed.",
        ),
        Problem::AccountProtected => (
            "Tài khoản này được bảo vệ: việc đổi địa chỉ cần hai người vận hành. Hãy dùng recover-to.",
            "This account is protected: another address takes two operators. Use recover-to.",
        ),
        Problem::EmailUnchanged => (
            "Tài khoản đã có địa chỉ này. Không cần thay đổi.",
            "The account has this address already. There is nothing to change.",
        ),
        Problem::LiftThrottled => (
            "Các giới hạn của địa chỉ này đã được gỡ quá nhiều lần trong 24 giờ. Hãy đợi rồi thử lại.",
            "The limits of this address were lifted too often in 24 hours. Wait, then try again.",
        ),
        Problem::NotFound => (
            "Không có gì ở đường dẫn này. Hãy kiểm tra lại đường dẫn và mã định danh trong đó, nếu có.",
            "There is nothing at this path. Check the path and any id in it.",
        ),
        Problem::MethodNotAllowed => (
            "Đường dẫn này không hỗ trợ phương thức này. Các phương thức được hỗ trợ nằm trong tiêu đề Allow.",
            "This method is not allowed here. See the Allow header.",
        ),
    };
    pick(vi, en, locale)
}

const fn pick(vi: &'static str, en: &'static str, locale: Locale) -> &'static str {
    match locale {
        Locale::Vi => vi,
        Locale::En => en,
    }
}

#[cfg(test)]
mod tests {
    use strum::VariantArray as _;

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
        let mut codes: Vec<_> = Problem::VARIANTS.iter().map(|problem| problem.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Problem::VARIANTS.len());
        for &problem in Problem::VARIANTS {
            assert_ne!(message(problem, Locale::Vi), message(problem, Locale::En));
        }
    }
}
