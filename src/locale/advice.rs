//! What zxcvbn finds in a password, and how to choose a better one, in both languages.

use zxcvbn::feedback::{Suggestion, Warning};

use super::{Locale, pick};

/// Why a password is easy to guess.
#[must_use]
pub const fn warning(warning: Warning, locale: Locale) -> &'static str {
    let (vi, en) = match warning {
        Warning::StraightRowsOfKeysAreEasyToGuess => {
            ("Một hàng phím liền nhau rất dễ đoán.", "A row of keys is easy to guess.")
        }
        Warning::ShortKeyboardPatternsAreEasyToGuess => (
            "Chuỗi phím theo một hình đơn giản trên bàn phím rất dễ đoán.",
            "A short pattern of keys is easy to guess.",
        ),
        Warning::RepeatsLikeAaaAreEasyToGuess => (
            "Ký tự lặp lại kiểu \"aaa\" rất dễ đoán.",
            "A repeated character such as \"aaa\" is easy to guess.",
        ),
        Warning::RepeatsLikeAbcAbcAreOnlySlightlyHarderToGuess => (
            "Lặp lại kiểu \"abcabcabc\" cũng dễ đoán gần như \"abc\".",
            "A repetition such as \"abcabcabc\" is hardly better than \"abc\".",
        ),
        Warning::ThisIsATop10Password | Warning::ThisIsATop100Password | Warning::ThisIsACommonPassword => {
            ("Rất nhiều người dùng mật khẩu này.", "Very many people use this password.")
        }
        Warning::ThisIsSimilarToACommonlyUsedPassword => (
            "Mật khẩu này gần giống một mật khẩu mà nhiều người dùng.",
            "This is similar to a password that many people use.",
        ),
        Warning::SequencesLikeAbcAreEasyToGuess => (
            "Dãy liên tiếp kiểu abc hoặc 6543 rất dễ đoán.",
            "A sequence such as abc or 6543 is easy to guess.",
        ),
        Warning::RecentYearsAreEasyToGuess => {
            ("Những năm gần đây rất dễ đoán.", "A recent year is easy to guess.")
        }
        Warning::AWordByItselfIsEasyToGuess => {
            ("Một từ đơn lẻ rất dễ đoán.", "A single word is easy to guess.")
        }
        Warning::DatesAreOftenEasyToGuess => ("Ngày tháng thường dễ đoán.", "A date is often easy to guess."),
        Warning::NamesAndSurnamesByThemselvesAreEasyToGuess
        | Warning::CommonNamesAndSurnamesAreEasyToGuess => {
            ("Tên người rất dễ đoán.", "A person's name is easy to guess.")
        }
    };
    pick(vi, en, locale)
}

/// How to choose a password that is hard to guess.
#[must_use]
pub const fn suggestion(suggestion: Suggestion, locale: Locale) -> &'static str {
    let (vi, en) = match suggestion {
        Suggestion::UseAFewWordsAvoidCommonPhrases => {
            ("Dùng vài từ, tránh những câu quen thuộc.", "Use a few words, and no familiar phrase.")
        }
        Suggestion::NoNeedForSymbolsDigitsOrUppercaseLetters => {
            ("Không cần ký hiệu, chữ số hay chữ hoa.", "Symbols, digits and capitals are not needed.")
        }
        Suggestion::AddAnotherWordOrTwo => {
            ("Thêm 1–2 từ nữa; từ càng ít gặp càng tốt.", "Add a word or two; rare ones are better.")
        }
        Suggestion::CapitalizationDoesntHelpVeryMuch => {
            ("Viết hoa không giúp được nhiều.", "Capital letters do not help much.")
        }
        Suggestion::AllUppercaseIsAlmostAsEasyToGuessAsAllLowercase => (
            "Viết hoa toàn bộ cũng dễ đoán gần như viết thường.",
            "All capitals are about as easy to guess as all small letters.",
        ),
        Suggestion::ReversedWordsArentMuchHarderToGuess => (
            "Từ viết ngược cũng không khó đoán hơn nhiều.",
            "A word written backwards is not much harder to guess.",
        ),
        Suggestion::PredictableSubstitutionsDontHelpVeryMuch => (
            "Thay chữ theo cách quen thuộc, như '@' thay cho 'a', không giúp được nhiều.",
            "The usual replacements, such as '@' for 'a', do not help much.",
        ),
        Suggestion::UseALongerKeyboardPatternWithMoreTurns => (
            "Tránh các phím nằm cạnh nhau trên bàn phím.",
            "Avoid keys that are next to each other on the keyboard.",
        ),
        Suggestion::AvoidRepeatedWordsAndCharacters => {
            ("Tránh lặp lại từ và ký tự.", "Avoid repeated words and characters.")
        }
        Suggestion::AvoidSequences => ("Tránh các dãy liên tiếp.", "Avoid sequences."),
        Suggestion::AvoidRecentYears => ("Tránh những năm gần đây.", "Avoid recent years."),
        Suggestion::AvoidYearsThatAreAssociatedWithYou => {
            ("Tránh những năm có liên quan đến bạn.", "Avoid years that have to do with you.")
        }
        Suggestion::AvoidDatesAndYearsThatAreAssociatedWithYou => {
            ("Tránh ngày và năm có liên quan đến bạn.", "Avoid dates and years that have to do with you.")
        }
    };
    pick(vi, en, locale)
}

/// What to do about a password known from breaches, sentence by sentence.
#[must_use]
pub const fn breach_advice(locale: Locale) -> [&'static str; 2] {
    [
        pick(
            "Dùng một mật khẩu chưa từng được dùng ở bất kỳ nơi nào.",
            "Use a password that you have never used anywhere.",
            locale,
        ),
        pick(
            "Nếu mật khẩu này đang được dùng ở nơi khác, hãy đổi cả ở đó.",
            "If you use this password elsewhere, change it there too.",
            locale,
        ),
    ]
}
