//! The logo and the icon: SVG that runs and loads nothing, or PNG.

use roxmltree::{Document, Node, NodeType};

const SVG: &str = "http://www.w3.org/2000/svg";
const XML: &str = "http://www.w3.org/XML/1998/namespace";
/// The allowed elements. None of them runs a script, embeds a document or changes an attribute.
const ELEMENTS: [&str; 23] = [
    "svg",
    "g",
    "defs",
    "symbol",
    "use",
    "title",
    "desc",
    "style",
    "path",
    "rect",
    "circle",
    "ellipse",
    "line",
    "polyline",
    "polygon",
    "text",
    "tspan",
    "linearGradient",
    "radialGradient",
    "stop",
    "clipPath",
    "mask",
    "pattern",
];
/// Minimum and maximum side of a PNG, in pixels. A small file can be a very large picture.
const SIDES: std::ops::RangeInclusive<u32> = 16..=2048;

/// A checked picture.
#[derive(Clone, Debug)]
pub struct Picture {
    /// The name of its file.
    pub name: &'static str,
    /// Its media type. With the charset, a browser reads the characters that were checked.
    pub content_type: &'static str,
    /// Its content.
    pub content: Vec<u8>,
}

impl Picture {
    /// An SVG.
    ///
    /// # Errors
    ///
    /// The rest of a sentence that begins with the file's name, if the picture could do harm or
    /// cannot be used.
    pub fn svg(name: &'static str, content: Vec<u8>) -> Result<Self, String> {
        check_svg(&content)?;
        Ok(Self { name, content_type: "image/svg+xml; charset=utf-8", content })
    }

    /// A PNG. Its errors are as in [`Picture::svg`].
    pub(super) fn png(name: &'static str, content: Vec<u8>) -> Result<Self, String> {
        check_png(&content)?;
        Ok(Self { name, content_type: "image/png", content })
    }

    /// The media type without its charset, for a link to the picture.
    #[must_use]
    pub fn link_type(&self) -> &'static str {
        self.content_type.split(';').next().unwrap_or_default()
    }
}

fn check_svg(content: &[u8]) -> Result<(), String> {
    let text = str::from_utf8(content).map_err(|_| "is not in UTF-8: save it as UTF-8".to_owned())?;
    // The parser refuses a DTD, and with it entities that expand.
    let document = Document::parse(text).map_err(|error| format!("is no plain SVG ({error}): {EXPORT}"))?;
    if document.root_element().tag_name().name() != "svg" {
        return Err(format!("is no SVG: {EXPORT}"));
    }
    if document.root_element().attribute("viewBox").is_none() {
        return Err("has no viewBox, without which it cannot be scaled: add one to <svg>".to_owned());
    }
    document.descendants().try_for_each(check_node)
}

const EXPORT: &str = "export it as plain or optimized SVG";

fn check_node(node: Node<'_, '_>) -> Result<(), String> {
    if node.node_type() == NodeType::PI {
        return Err(format!("has a processing instruction: {EXPORT}"));
    }
    if node.is_element() {
        let name = node.tag_name();
        if name.namespace() != Some(SVG) || !ELEMENTS.contains(&name.name()) {
            return Err(format!(
                "has the element <{}>, which a picture does not need: {EXPORT}",
                name.name()
            ));
        }
    }
    for attribute in node.attributes() {
        let name = attribute.name();
        if name.to_ascii_lowercase().starts_with("on") {
            return Err(format!("has the attribute {name}, which runs a script: remove it"));
        }
        let is_base = name == "base" && attribute.namespace() == Some(XML);
        if is_base || (name == "href" && !attribute.value().starts_with('#')) {
            return Err(format!("has a reference in {name} to something outside: embed it as paths"));
        }
        if loads(attribute.value()) {
            return Err(format!("has a url() in {name} to something outside: embed it as paths"));
        }
    }
    // A comment would split a style into parts that are harmless one by one.
    if node.is_comment() && node.parent().is_some_and(|parent| parent.has_tag_name((SVG, "style"))) {
        return Err("has a comment in its <style>: remove it".to_owned());
    }
    if node.is_text() && loads(node.text().unwrap_or_default()) {
        return Err("has a url() or an @import in its text to something outside: remove it".to_owned());
    }
    Ok(())
}

/// Whether CSS may refer to anything but an element of the same picture.
fn loads(css: &str) -> bool {
    let css = css.to_ascii_lowercase();
    let is_local = |rest: &str| {
        rest.trim_start_matches(|sign: char| sign.is_whitespace() || "'\"".contains(sign)).starts_with('#')
    };
    // A backslash can write any of these words in another way.
    ["\\", "@import", "image(", "image-set(", "src("].iter().any(|word| css.contains(word))
        || css.split("url(").skip(1).any(|rest| !is_local(rest))
}

/// Checks the signature, the first chunk, which has the size, and the last chunk (W3C, PNG, 5).
fn check_png(content: &[u8]) -> Result<(), String> {
    let head = content.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR");
    let whole = head.filter(|_| content.ends_with(b"\0\0\0\0IEND\xae\x42\x60\x82"));
    let sizes = whole.and_then(|head| Some((side(head)?, side(&head[4..])?)));
    let (width, height) = sizes.ok_or("is no whole PNG: export it again")?;
    if SIDES.contains(&width) && SIDES.contains(&height) {
        return Ok(());
    }
    let (least, most) = (SIDES.start(), SIDES.end());
    Err(format!("is {width} × {height} pixels: make each side {least} to {most} pixels"))
}

fn side(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|octets| u32::from_be_bytes(*octets))
}
