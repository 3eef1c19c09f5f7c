//! Colors, and whether people can read what is written in them (WCAG 2.2).

use std::fmt;

use serde::Deserialize;

/// Minimum contrast of text (WCAG 2.2, 1.4.3).
const OF_TEXT: f64 = 4.5;
/// Minimum contrast of the border of a field (WCAG 2.2, 1.4.11).
const OF_BORDER: f64 = 3.0;

/// The colors of the page and the emails without a brand.
pub(super) const LIGHT: Palette = Palette {
    page: Color(0xee_f1f6),
    card: Color(0xff_ffff),
    text: Color(0x1b_1f27),
    dim: Color(0x52_5b6b),
    accent: Color(0x0b_57d0),
    on_accent: Color(0xff_ffff),
    edge: Color(0x7d_8797),
    bad: Color(0xb3_261e),
    bad_soft: Color(0xfd_eceb),
};
pub(super) const DARK: Palette = Palette {
    page: Color(0x10_1318),
    card: Color(0x1a_1e25),
    text: Color(0xe7_eaf0),
    dim: Color(0xa9_b2c1),
    accent: Color(0x8a_b4ff),
    on_accent: Color(0x0a_1a33),
    edge: Color(0x7d_8797),
    bad: Color(0xff_b4ab),
    bad_soft: Color(0x3a_1d1b),
};

/// A color in sRGB, written as `#rrggbb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Color(u32);

impl Color {
    /// The contrast ratio, 1 to 21.
    fn contrast(self, other: Self) -> f64 {
        let (one, two) = (self.luminance(), other.luminance());
        (one.max(two) + 0.05) / (one.min(two) + 0.05)
    }

    /// The relative luminance, 0 to 1.
    fn luminance(self) -> f64 {
        let [_, red, green, blue] = self.0.to_be_bytes().map(|octet| {
            let part = f64::from(octet) / 255.0;
            if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
        });
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }
}

impl TryFrom<String> for Color {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6);
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let color = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        color.map(Self).ok_or_else(|| format!("{text:?} is no color: write #rrggbb, such as #0b57d0"))
    }
}

impl fmt::Display for Color {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:06x}", self.0)
    }
}

/// The colors on a light or on a dark screen.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// The background.
    pub page: Color,
    /// The background of the steps.
    pub card: Color,
    /// Text.
    pub text: Color,
    /// Less important text.
    pub dim: Color,
    /// Links and buttons.
    pub accent: Color,
    /// Text on buttons.
    pub on_accent: Color,
    /// The border of fields.
    pub edge: Color,
    /// Errors.
    pub bad: Color,
    /// The background of errors.
    pub bad_soft: Color,
}

/// The colors that a brand may set.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Choice {
    page: Option<Color>,
    card: Option<Color>,
    text: Option<Color>,
    dim: Option<Color>,
    accent: Option<Color>,
    on_accent: Option<Color>,
}

impl Palette {
    pub(super) fn with(self, choice: Choice) -> Self {
        Self {
            page: choice.page.unwrap_or(self.page),
            card: choice.card.unwrap_or(self.card),
            text: choice.text.unwrap_or(self.text),
            dim: choice.dim.unwrap_or(self.dim),
            accent: choice.accent.unwrap_or(self.accent),
            on_accent: choice.on_accent.unwrap_or(self.on_accent),
            ..self
        }
    }

    /// Whether each pair of colors that the page or emails show together has enough contrast,
    /// except pairs that no brand can change. A brand cannot set the colors of errors and borders:
    /// if one of them has too little contrast, the brand has to change the background.
    pub(super) fn check(&self) -> Result<(), String> {
        let (page, card) = (("page", self.page), ("card", self.card));
        let (text, dim, accent) = (("text", self.text), ("dim", self.dim), ("accent", self.accent));
        for ((front, color), (back, behind), minimum, remedy) in [
            (text, page, OF_TEXT, "change one of the two"),
            (text, card, OF_TEXT, "change one of the two"),
            (dim, page, OF_TEXT, "change one of the two"),
            (dim, card, OF_TEXT, "change one of the two"),
            (accent, page, OF_TEXT, "change one of the two"),
            (accent, card, OF_TEXT, "change one of the two"),
            (("on_accent", self.on_accent), accent, OF_TEXT, "change one of the two"),
            (("the text of errors", self.bad), card, OF_TEXT, "change card"),
            (("the border of fields", self.edge), card, OF_BORDER, "change card"),
        ] {
            let contrast = color.contrast(behind);
            if contrast < minimum {
                // Rounded down, so that 4.496 is not shown as the minimum of 4.5.
                let contrast = (contrast * 100.0).floor() / 100.0;
                return Err(format!(
                    "{front} ({color}) on {back} ({behind}) has a contrast of {contrast:.2}:1 and needs {minimum}:1: {remedy}"
                ));
            }
        }
        Ok(())
    }

    /// The colors as CSS variables.
    #[must_use]
    pub fn css(&self) -> String {
        let Self { page, card, text, dim, accent, on_accent, edge, bad, bad_soft } = self;
        format!(
            "--page: {page}; --card: {card}; --text: {text}; --dim: {dim}; --accent: {accent}; \
             --on-accent: {on_accent}; --edge: {edge}; --bad: {bad}; --bad-soft: {bad_soft};"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known contrast ratios, the lowest and the highest included.
    #[test]
    fn contrast_is_that_of_wcag() {
        for (one, two, contrast) in [
            (0x00_0000, 0xff_ffff, 21.0),
            (0xff_ffff, 0xff_ffff, 1.0),
            (0x76_7676, 0xff_ffff, 4.54),
            (0x77_7777, 0xff_ffff, 4.48),
            (0xff_0000, 0xff_ffff, 4.0),
            (0x00_00ff, 0xff_ffff, 8.59),
        ] {
            let computed = Color(one).contrast(Color(two));
            assert!((computed - contrast).abs() < 0.005, "{one:06x} on {two:06x}: {computed}");
            assert!((Color(two).contrast(Color(one)) - computed).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn our_own_colors_can_be_read() {
        assert_eq!((LIGHT.check(), DARK.check()), (Ok(()), Ok(())));
    }
}
