//! The look of `/recovery` and of emails: product name, texts, colors, logo and icon, from the
//! folder of `BRAND_DIR`.
//!
//! The folder is read and checked once, with the settings. A mistake that users would see prevents
//! the start.

mod palette;
mod picture;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use self::palette::{Choice, DARK, LIGHT};
pub use self::palette::{Color, Palette};
pub use self::picture::Picture;
use crate::locale::Locale;

/// Maximum size of a file in the folder, in octets. A phone loads the logo with the first step of
/// the page.
const MAX_FILE: u64 = 32 * 1024;
/// Maximum length of a text, in characters.
const MAX_TEXT: usize = 160;
const SETTINGS: &str = "brand.json";
const FILES: [&str; 5] = [SETTINGS, "logo.svg", "logo.png", "icon.svg", "icon.png"];

/// The look of the page and the emails.
#[derive(Debug)]
pub struct Brand {
    /// The product name. `None`: `MAIL_BRAND`.
    pub name: Option<Texts>,
    /// A line above the steps of the page.
    pub heading: Option<Texts>,
    /// A line below the steps of the page and at the end of each email.
    pub footer: Option<Texts>,
    /// The colors on a light screen.
    pub light: Palette,
    /// The colors on a dark screen.
    pub dark: Palette,
    /// Shown on the page in place of the product name.
    pub logo: Option<Picture>,
    /// The icon of the page in tabs and bookmarks. `None`: the built-in one.
    pub icon: Option<Picture>,
}

/// The look without `BRAND_DIR`.
pub static DEFAULT: Brand =
    Brand { name: None, heading: None, footer: None, light: LIGHT, dark: DARK, logo: None, icon: None };

impl Brand {
    /// Reads and checks the folder.
    ///
    /// # Errors
    ///
    /// A sentence that names the file and the field, and says what to do.
    pub fn read(folder: &str) -> Result<Arc<Self>, String> {
        let folder = Path::new(folder);
        let names = names(folder)?;
        if !names.contains(SETTINGS) {
            return Err(format!("it has no {SETTINGS}: add one; {{}} changes nothing"));
        }
        let settings = of_file(SETTINGS, read_settings(folder))?;
        Ok(Arc::new(Self {
            logo: read_picture(folder, &names, ["logo.svg", "logo.png"])?,
            icon: read_picture(folder, &names, ["icon.svg", "icon.png"])?,
            ..settings
        }))
    }
}

/// A text in every language.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Texts {
    vi: Line,
    en: Line,
}

impl Texts {
    /// The text in a language.
    #[must_use]
    pub fn in_language(&self, locale: Locale) -> &str {
        match locale {
            Locale::Vi => &self.vi.0,
            Locale::En => &self.en.0,
        }
    }
}

/// A text of one line.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Line(String);

impl TryFrom<String> for Line {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_line = !text.trim().is_empty() && !text.chars().any(char::is_control);
        if is_line && text.chars().count() <= MAX_TEXT {
            return Ok(Self(text));
        }
        Err(format!("write one line of 1 to {MAX_TEXT} characters"))
    }
}

/// `brand.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    name: Option<Texts>,
    heading: Option<Texts>,
    footer: Option<Texts>,
    colors: Option<Colors>,
}

/// The colors of a light and of a dark screen. Both are required: with only one, users with the
/// other color scheme would see the built-in colors.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Colors {
    light: Choice,
    dark: Choice,
}

/// The names of the files. An unknown name is refused, because it may be a misspelled one.
fn names(folder: &Path) -> Result<BTreeSet<String>, String> {
    let unreadable = |error| format!("the folder cannot be read: {error}");
    let mut names = BTreeSet::new();
    for entry in folder.read_dir().map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
        // Kubernetes keeps `..data` beside the files that it mounts.
        if name.starts_with('.') {
            continue;
        }
        if !FILES.contains(&name.as_str()) {
            let known = FILES.join(", ");
            return Err(format!("it has a file {name:?}: rename it to one of {known}, or remove it"));
        }
        names.insert(name);
    }
    Ok(names)
}

fn read_settings(folder: &Path) -> Result<Brand, String> {
    let content = read(&folder.join(SETTINGS))?;
    let mut parser = serde_json::Deserializer::from_slice(&content);
    let settings: Settings = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
        let path = error.path().to_string();
        if path == "." { error.into_inner().to_string() } else { format!("{path}: {}", error.into_inner()) }
    })?;
    parser.end().map_err(|error| error.to_string())?;
    let (light, dark) = match settings.colors {
        Some(colors) => (LIGHT.with(colors.light), DARK.with(colors.dark)),
        None => (LIGHT, DARK),
    };
    light.check().map_err(|why| format!("colors.light: {why}"))?;
    dark.check().map_err(|why| format!("colors.dark: {why}"))?;
    let Settings { name, heading, footer, .. } = settings;
    Ok(Brand { name, heading, footer, light, dark, logo: None, icon: None })
}

fn read_picture(
    folder: &Path,
    names: &BTreeSet<String>,
    [svg, png]: [&'static str; 2],
) -> Result<Option<Picture>, String> {
    let picture = |name, check: fn(&'static str, Vec<u8>) -> Result<Picture, String>| {
        of_file(name, read(&folder.join(name)).and_then(|content| check(name, content))).map(Some)
    };
    match (names.contains(svg), names.contains(png)) {
        (true, true) => Err(format!("it has both {svg} and {png}: remove one")),
        (true, false) => picture(svg, Picture::svg),
        (false, true) => picture(png, Picture::png),
        (false, false) => Ok(None),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let read: io::Result<usize> =
        File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content));
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if content.len() as u64 > MAX_FILE {
        return Err(format!("is larger than {MAX_FILE} octets: make it smaller"));
    }
    Ok(content)
}

fn of_file<T>(name: &str, result: Result<T, String>) -> Result<T, String> {
    result.map_err(|why| format!("{name}: {why}"))
}
