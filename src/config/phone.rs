//! Telephone numbers: the text for readers, and the form for a `tel:` link.

use std::str::FromStr;

/// A telephone number, as it was written and as `tel:` has it (RFC 3966).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phone {
    /// The number as it was written.
    pub text: String,
    /// Only its digits, with a leading `+` if the number has one.
    pub link: String,
}

impl FromStr for Phone {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let link: String = text.chars().filter(|sign| sign.is_ascii_digit() || *sign == '+').collect();
        let is_number = text.chars().all(|sign| sign.is_ascii_digit() || " +-.()".contains(sign))
            && (3..=15).contains(&link.trim_start_matches('+').len())
            && !link.trim_start_matches('+').contains('+');
        if is_number {
            Ok(Self { text: text.to_owned(), link })
        } else {
            Err("write a telephone number such as +84 28 1234 5678")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_shown_as_written_and_dialled_without_marks() {
        let link = |text: &str| text.parse::<Phone>().map(|phone| phone.link);
        assert_eq!(link("+84 28 1234-5678").unwrap(), "+842812345678");
        assert_eq!(link("1900 1234").unwrap(), "19001234");
        for wrong in ["", "12", "call us", "+84+28", "1;ext=2", "1234567890123456"] {
            assert!(link(wrong).is_err(), "{wrong}");
        }
    }
}
