//! The policy for new passwords (NIST SP 800-63B-4 §3.1.1.2): long enough and not easily guessed.
//! No rules of composition, no expiry.

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;
use zxcvbn::{Score, zxcvbn};

use crate::config::PASSWORD_MAX_CHARS;
use crate::error::{Detail, Error, Problem};

/// Words that attackers try first, in addition to those of zxcvbn, which knows no Vietnamese.
const LOCAL_WORDS: [&str; 34] = [
    "matkhau",
    "matkhaucuatoi",
    "matkhaumoi",
    "taikhoan",
    "dangnhap",
    "anhyeuem",
    "emyeuanh",
    "yeuem",
    "yeuanh",
    "toiyeu",
    "toiyeuvietnam",
    "tinhyeu",
    "giadinh",
    "hanhphuc",
    "vietnam",
    "hanoi",
    "saigon",
    "danang",
    "haiphong",
    "cantho",
    "hochiminh",
    "chungkhoan",
    "cophieu",
    "giaodich",
    "vnindex",
    "nguyen",
    "nguyenvan",
    "nguyenthi",
    "chucmungnammoi",
    "congtrinh",
    "khongbiet",
    "verolabs",
    "vos-auth",
    "correcthorsebatterystaple",
];

/// The number of characters that are judged. A password whose beginning is strong enough is strong.
const JUDGED_CHARS: usize = 48;
/// The signs that zxcvbn also reads as letters, as in `p@$$word`. It also reads digits as letters,
/// but they are kept, because they form sequences.
const SUBSTITUTES: &str = "@({[<&!/|$+%";
/// The number of different substitutes that are kept; further ones become a neutral sign.
const MAX_SUBSTITUTES: usize = 2;

/// The words that an account's owner and the product are known by: attackers guess passwords made
/// of them first.
#[must_use]
pub fn context(email: &str, products: &[&str]) -> Vec<String> {
    let parts = email.split(['@', '.', '-', '_', '+']).chain(email.split('@'));
    let names = products.iter().flat_map(|name| std::iter::once(*name).chain(name.split_whitespace()));
    let words = std::iter::once(email).chain(parts).chain(names);
    words.filter(|word| word.len() > 2).map(str::to_owned).collect()
}

/// Checks a password in NFC. `context` are words that its owner and the product are known by.
///
/// # Errors
///
/// `PasswordTooShort` below `min_chars` code points, `PasswordTooLong` above 256,
/// `PasswordGuessable` if fewer than about 10^10 guesses find it.
pub(super) fn check(password: &str, min_chars: u16, context: &[String]) -> Result<(), Error> {
    let chars = password.chars().count();
    if chars < usize::from(min_chars) {
        return Err(Error::in_field(Problem::PasswordTooShort, "password").with(Detail::MinChars(min_chars)));
    }
    if chars > PASSWORD_MAX_CHARS {
        return Err(Error::in_field(Problem::PasswordTooLong, "password"));
    }
    let words: Vec<&str> = context.iter().map(String::as_str).chain(LOCAL_WORDS).collect();
    let (plain, folded) = (judged_part(password), judged_part(&folded(password)));
    for spelling in [Some(&plain), Some(&folded).filter(|folded| **folded != plain)].into_iter().flatten() {
        let estimate = zxcvbn(spelling, &words);
        if estimate.score() < Score::Four {
            let (warning, suggestions) = estimate
                .feedback()
                .map_or((None, Vec::new()), |feedback| (feedback.warning(), feedback.suggestions().to_vec()));
            return Err(Error::in_field(Problem::PasswordGuessable, "password")
                .with(Detail::Advice(warning, suggestions)));
        }
    }
    Ok(())
}

/// The part of a password that zxcvbn judges. Its work grows with the square of the length and with
/// every combination of substitutes: 100 substitutes took zxcvbn a second. This part takes about
/// the time of a hash.
fn judged_part(password: &str) -> String {
    let mut substitutes = Vec::new();
    let mut is_kept = |c: char| {
        if SUBSTITUTES.contains(c) && !substitutes.contains(&c) {
            substitutes.push(c);
        }
        !SUBSTITUTES.contains(c) || substitutes.iter().take(MAX_SUBSTITUTES).any(|known| *known == c)
    };
    password.chars().take(JUDGED_CHARS).map(|c| if is_kept(c) { c } else { '~' }).collect()
}

/// Removes diacritics and spaces: `mật khẩu` is no stronger than `matkhau`.
fn folded(password: &str) -> String {
    let base = password.nfd().filter(|c| !is_combining_mark(*c) && !c.is_whitespace());
    base.map(|c| match c {
        'đ' => 'd',
        'Đ' => 'D',
        other => other,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(password: &str) -> Option<Problem> {
        let context = ["trader.vi@example.com", "trader.vi", "example", "Vero OMS"].map(str::to_owned);
        check(password, 15, &context).err().map(|error| error.problem)
    }

    #[test]
    fn r6_length_is_counted_in_code_points() {
        for unit in
            ["q8Wx2fLz9KmT7RvB3nYcJ5dHs4PgUe6a", "ẩừễộửằịỵởỹđỡựặỉếọạồủ", "会議室は静かな夜に雨が降る音楽を聴"]
        {
            let of = |chars: usize| unit.chars().cycle().take(chars).collect::<String>();
            assert_eq!(refused(&of(14)), Some(Problem::PasswordTooShort));
            assert_eq!(refused(&of(15)), None);
            assert_eq!(refused(&of(64)), None, "{}", of(64));
            assert_eq!(refused(&of(256)), None);
            assert_eq!(refused(&of(257)), Some(Problem::PasswordTooLong));
        }
    }

    #[test]
    fn r8_common_and_context_passwords_are_refused() {
        for password in [
            "123456789012345",
            "1234567890123456",
            "passwordpassword",
            "password12345678",
            "aaaaaaaaaaaaaaaaaaaa",
            "abcabcabcabcabcabc",
            "abcdefghijklmnop",
            "qwertyuiopasdfgh",
            "qwertyuiop123456",
            "1q2w3e4r5t6y7u8i",
            "iloveyouiloveyou",
            "letmeinletmeinletmein",
            "correcthorsebatterystaple",
            "matkhaumatkhaumatkhau",
            "mật khẩu của tôi",
            "mậtkhẩumậtkhẩu1",
            "anh yêu em 123456",
            "verolabsverolabs",
            "VeroLabs2026!!!",
            "verolabs12345678",
            "trader.vi@example.com",
            "Trader.Vi@Example.com1",
            "Vero OMS Vero OMS",
            "nguyenvannguyenvan",
        ] {
            assert_eq!(refused(password), Some(Problem::PasswordGuessable), "{password}");
        }
    }

    /// zxcvbn tries every combination of substitutes, so their number and the length must be
    /// bounded.
    #[test]
    fn r10_the_judged_part_is_bounded() {
        let all = SUBSTITUTES.repeat(20);
        let judged = judged_part(&all);
        assert_eq!(judged.chars().count(), JUDGED_CHARS);
        let kinds: std::collections::BTreeSet<_> =
            judged.chars().filter(|c| SUBSTITUTES.contains(*c)).collect();
        assert_eq!(kinds.len(), MAX_SUBSTITUTES);
        assert_eq!(judged_part("p4$$w0rd! and Mật khẩu"), "p4$$w0rd! and Mật khẩu");
    }

    #[test]
    fn r9_a_plain_phrase_passes() {
        for password in [
            "chuyen tau dem mua thu",
            "night train in autumn rain",
            "ngày mai trời lại sáng",
            "con mèo trèo lên cây cau hỏi thăm",
            "lavender anchor sidewalk mug",
        ] {
            assert_eq!(refused(password), None, "{password}");
        }
    }
}
