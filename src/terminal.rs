//! Output of commands for an operator. Parts of it come from clients, files and relays, so control
//! characters are escaped.

use std::fmt::{Display, Write as _};
use std::io::{IsTerminal as _, Write as _};

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};

/// Escapes as JSON does (`\u001b`) every character that controls a terminal, or reorders or hides a
/// part of a line. Compact JSON has such characters only inside strings, so an escaped document has
/// the same value.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_control(letter) {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                // Writing to a String does not fail.
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(letter);
        }
    }
    safe
}

/// Whether a character is a control (C0, DEL, C1), a line separator or a format character
/// (direction, joiner, tag), by its general category in Unicode (UAX #44 §5.7.1). An unassigned
/// character may become one of these.
fn is_control(letter: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator, Unassigned};
    if letter.is_ascii() {
        return letter.is_ascii_control();
    }
    let category = letter.general_category();
    matches!(category, Control | Format | LineSeparator | ParagraphSeparator | Unassigned)
}

/// Prints `text` and `end` to standard output.
fn print(text: &impl Display, end: &str) {
    print!("{}{end}", escaped(&text.to_string()));
}

/// Prints a line to standard output.
pub fn line(text: impl Display) {
    print(&text, "\n");
}

/// Prints the beginning of a line to standard output at once.
pub fn line_start(text: impl Display) {
    print(&text, "");
    let _ = std::io::stdout().flush();
}

/// Prints the beginning of a line to standard error, such as a question.
pub fn error_line_start(text: impl Display) {
    eprint!("{}", escaped(&text.to_string()));
}

/// Prints a line to standard error.
pub fn error_line(text: impl Display) {
    eprintln!("{}", escaped(&text.to_string()));
}

/// Shows what a command is doing, on standard error if that is a terminal. It replaces the
/// progress shown before; an empty text removes it.
pub fn progress(text: &str) {
    let mut error = std::io::stderr();
    if error.is_terminal() {
        // An error is ignored: the progress is only for information.
        let _ = write!(error, "\r\u{1b}[K{}", escaped(text)).and_then(|()| error.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_others_kept() {
        let name = "Nguyễn Thị Ánh, nguye\u{302}\u{303}n, 東京 \"\\ 😀";
        assert_eq!(escaped(name), name);
        assert_eq!(escaped("a\u{1b}[2J\u{9b}1m\u{9d}\u{202e}\u{2028}\r\n\u{7f}"), {
            "a\\u001b[2J\\u009b1m\\u009d\\u202e\\u2028\\u000d\\u000a\\u007f"
        });
        // One of each range of format characters, and an unassigned one.
        for letter in "\u{ad}\u{600}\u{61c}\u{6dd}\u{70f}\u{890}\u{8e2}\u{180e}\u{200b}\u{2065}\u{feff}\u{fff9}\u{110bd}\u{13430}\u{1bca0}\u{1d173}\u{e0001}\u{e0fff}".chars() {
            assert!(escaped(&letter.to_string()).is_ascii(), "{letter:?}");
        }
        let value = serde_json::json!({ "a\u{9b}": "\u{1b}\u{e0041}\u{2066}\u{200f}" });
        let text = escaped(&value.to_string());
        assert!(text.is_ascii(), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
