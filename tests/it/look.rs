//! `BRAND_DIR`: what is refused at startup, what is served, and how the page and the emails look
//! with a brand.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::harness::Service;
use crate::harness::browser::Browser;
use crate::harness::place;
use crate::harness::program::run;
use crate::page::{asks_for_a_code, page_of};

/// The folder with the example of a brand for operators.
const EXAMPLE: &str = "deploy/brand";

fn example(file: &str) -> Vec<u8> {
    std::fs::read(place::file(EXAMPLE).join(file)).unwrap()
}

/// A folder with the files of the example, of which some are replaced. Empty content removes one.
fn folder(name: &str, changes: &[(&str, Vec<u8>)]) -> String {
    let folder = place::temporary(&format!("brand-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    // Kubernetes mounts a folder with such an entry, `..data`.
    std::fs::create_dir_all(format!("{folder}/..data")).unwrap();
    let example = ["brand.json", "logo.svg", "icon.svg"].map(|file| (file, example(file)));
    for (file, content) in example.iter().chain(changes) {
        let path = format!("{folder}/{file}");
        if content.is_empty() {
            std::fs::remove_file(path).unwrap();
        } else {
            std::fs::write(path, content).unwrap();
        }
    }
    folder
}

/// The error of the program about a brand folder, or nothing if the program accepts the folder.
fn refusal(folder: &str) -> String {
    let ended = run(&["mail", "preview"], &[("BRAND_DIR", folder)]);
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.success(), said.is_empty(), "{said}");
    said
}

fn is_refused(name: &str, changes: &[(&str, Vec<u8>)], words: &[&str]) {
    let said = refusal(&folder(name, changes));
    assert!(said.starts_with("vos-auth: BRAND_DIR cannot be "), "{words:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn settings_of_a_brand_that_cannot_be_used_are_refused_with_their_field() {
    assert_eq!(refusal(&folder("good", &[])), "");
    assert_eq!(refusal(&folder("good", &[("brand.json", b"{}".into())])), "");
    let long = "a".repeat(161);
    for (settings, words) in [
        ("{", ["EOF", "line 1"]),
        ("{} {}", ["trailing characters", "line 1"]),
        (r#"{"nam": 1}"#, ["unknown field `nam`", "`name`"]),
        (r#"{"name": {"vi": "Sao Mai"}}"#, ["name: missing field `en`", "line 1"]),
        (r#"{"name": {"vi": "Sao Mai", "en": " "}}"#, ["name.en: ", "one line"]),
        (r#"{"heading": {"vi": "a\nb", "en": "a"}}"#, ["heading.vi: ", "one line"]),
        (&format!(r#"{{"footer": {{"vi": "{long}", "en": "a"}}}}"#), ["footer.vi: ", "1 to 160 characters"]),
        (r#"{"colors": {"light": {}}}"#, ["colors: missing field `dark`", "line 1"]),
        (r##"{"colors": {"light": {"bad": "#ff0000"}, "dark": {}}}"##, ["unknown field `bad`", "`accent`"]),
        (r#"{"colors": {"light": {"accent": "red"}, "dark": {}}}"#, ["colors.light.accent: ", "#rrggbb"]),
        (
            r##"{"colors": {"light": {"accent": "#12345é"}, "dark": {}}}"##,
            ["colors.light.accent: ", "#rrggbb"],
        ),
    ] {
        is_refused("settings", &[("brand.json", settings.into())], &[&["brand.json: "], &words[..]].concat());
    }
}

/// Each pair of colors that the page shows together, in both schemes, with the contrast that WCAG's
/// formula gives.
#[test]
fn colors_that_people_cannot_read_are_refused_with_their_contrast() {
    for (scheme, colors, sentence) in [
        (
            "light",
            json!({ "text": "#777777", "page": "#ffffff" }),
            "text (#777777) on page (#ffffff) has a contrast of 4.47:1 and needs 4.5:1: change one of the two",
        ),
        (
            "light",
            json!({ "text": "#777777", "page": "#000000" }),
            "text (#777777) on card (#ffffff) has a contrast of 4.47:1 and needs 4.5:1",
        ),
        (
            "light",
            json!({ "dim": "#000000", "page": "#777777", "text": "#000000", "card": "#777777" }),
            "accent (#0b57d0) on page (#777777) has a contrast of 1.4",
        ),
        ("light", json!({ "dim": "#999999" }), "dim (#999999) on page (#eef1f6) has a contrast of 2.5"),
        (
            "light",
            json!({ "dim": "#6a6a6a", "page": "#eeeeee", "card": "#dddddd" }),
            "dim (#6a6a6a) on card (#dddddd) has a contrast of 3.9",
        ),
        (
            "light",
            json!({ "accent": "#5fd6bd", "on_accent": "#000000" }),
            "accent (#5fd6bd) on page (#eef1f6) has a contrast of 1.5",
        ),
        (
            "light",
            json!({ "accent": "#767676", "page": "#ffffff", "card": "#fafafa" }),
            "accent (#767676) on card (#fafafa) has a contrast of 4.3",
        ),
        (
            "light",
            json!({ "on_accent": "#8ab4ff" }),
            "on_accent (#8ab4ff) on accent (#0b57d0) has a contrast of 3.0",
        ),
        ("dark", json!({ "text": "#000000" }), "text (#000000) on page (#101318) has a contrast of 1.1"),
        (
            "dark",
            json!({ "accent": "#0b57d0", "on_accent": "#ffffff" }),
            "accent (#0b57d0) on page (#101318) has a contrast of 2.9",
        ),
        (
            "dark",
            json!({ "card": "#444444", "dim": "#ffffff", "accent": "#ffffff" }),
            "the border of fields (#7d8797) on card (#444444) has a contrast of 2.6",
        ),
        (
            "dark",
            json!({ "card": "#ffffff", "page": "#ffffff", "text": "#000000", "dim": "#000000", "accent": "#0b57d0", "on_accent": "#ffffff" }),
            "the text of errors (#ffb4ab) on card (#ffffff) has a contrast of 1.6",
        ),
    ] {
        let mut settings = json!({ "colors": { "light": {}, "dark": {} } });
        settings["colors"][scheme] = colors;
        let words = [&format!("brand.json: colors.{scheme}: "), sentence];
        is_refused("colors", &[("brand.json", settings.to_string().into())], &words);
    }
}

#[test]
fn pictures_that_run_load_or_weigh_anything_are_refused() {
    let svg = |inside: &str| {
        let xlink = "http://www.w3.org/1999/xlink";
        format!(
            "<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='{xlink}' viewBox='0 0 9 9'>{inside}</svg>"
        )
    };
    let harmless = "<style>#a { fill: url( '#b' ) }</style><defs><linearGradient id='b'><stop offset='1'/></linearGradient>\
                    <path id='a' d='M0 0h9'/></defs><use xlink:href='#a' href='#a' style='fill:url(#b)'/>";
    assert_eq!(refusal(&folder("svg", &[("logo.svg", svg(harmless).into())])), "");
    for (inside, word) in [
        ("<script>alert(1)</script>", "element <script>"),
        ("<script href='#a'/>", "element <script>"),
        ("<g xmlns:x='http://www.w3.org/1999/xhtml'><x:script>alert(1)</x:script></g>", "element <script>"),
        ("<path xmlns='http://www.w3.org/1999/xhtml'/>", "element <path>"),
        ("<foreignObject/>", "element <foreignObject>"),
        ("<animate attributeName='href' to='https://evil.example'/>", "element <animate>"),
        ("<set attributeName='href' to='https://evil.example'/>", "element <set>"),
        ("<image href='#a'/>", "element <image>"),
        ("<a href='#b'/>", "element <a>"),
        ("<path onload='alert(1)'/>", "attribute onload"),
        ("<path OnClick='alert(1)'/>", "attribute OnClick"),
        ("<use href='https://evil.example/a.svg#b'/>", "reference in href"),
        ("<use xlink:href='data:image/svg+xml,#a'/>", "reference in href"),
        ("<g xml:base='https://evil.example/'><use href='#a'/></g>", "reference in base"),
        ("<path fill='url(https://evil.example/#a)'/>", "url() in fill"),
        ("<path style='fill: URL( \"//evil.example\")'/>", "url() in style"),
        ("<path style='fill:u\\72l(//evil.example)'/>", "url() in style"),
        ("<style>@import '//evil.example/a.css';</style>", "@import"),
        ("<style>path { mask-image: image-set('//evil.example/a.png' 1x) }</style>", "@import"),
        ("<style><![CDATA[path { fill: url(//evil.example) }]]></style>", "@import"),
        ("<style>@im<!-- -->port '//evil.example/a.css';</style>", "comment"),
        ("<?xml-stylesheet href='//evil.example/a.css'?>", "processing instruction"),
    ] {
        is_refused("svg", &[("logo.svg", svg(inside).into())], &["logo.svg: ", word]);
        is_refused("svg", &[("icon.svg", svg(inside).into())], &["icon.svg: ", word]);
    }
    let entity = format!("<!DOCTYPE svg [<!ENTITY a 'a'>]>{}", svg("<text>&a;</text>"));
    let stylesheet = format!("<?xml-stylesheet href='//evil.example/a.css'?>{}", svg(""));
    for (content, word) in [
        (entity, "export it as plain"),
        (stylesheet, "processing instruction"),
        ("<svg".into(), "no plain SVG"),
        ("<html/>".into(), "is no SVG"),
        ("<svg viewBox='0 0 9 9'/>".into(), "element <svg>"),
        ("<svg xmlns='http://www.w3.org/2000/svg'/>".into(), "has no viewBox"),
        (svg(&"<g/>".repeat(9000)), "larger than 32768 octets"),
    ] {
        is_refused("svg", &[("logo.svg", content.into())], &["logo.svg: ", word]);
    }
    is_refused("svg", &[("logo.svg", vec![0xff, 0xfe, 0x3c])], &["logo.svg: is not in UTF-8"]);
}

#[test]
fn a_png_is_whole_and_of_a_usable_size_and_no_file_is_ignored() {
    let png = std::fs::read(place::file("docs/images/mailbox-empty-en-light-phone.png")).unwrap();
    let sized = |width: u32| [&png[..16], &width.to_be_bytes(), &png[20..]].concat();
    let only = |content: Vec<u8>| [("logo.svg", Vec::new()), ("logo.png", content)];
    assert_eq!(refusal(&folder("png", &only(png.clone()))), "");
    for (content, word) in [
        (b"\xff\xd8\xff\xe0".to_vec(), "no whole PNG"),
        (png[..png.len() - 1].to_vec(), "no whole PNG"),
        (example("logo.svg"), "no whole PNG"),
        (sized(15), "15 × 780 pixels"),
        (sized(2049), "each side 16 to 2048 pixels"),
        (png.repeat(4), "larger than 32768 octets"),
    ] {
        is_refused("png", &only(content), &["logo.png: ", word]);
    }
    is_refused("png", &[("logo.png", png.clone())], &["both logo.svg and logo.png: remove one"]);
    is_refused("png", &[("icon.png", png)], &["both icon.svg and icon.png: remove one"]);
    is_refused("png", &[("Logo.svg", example("logo.svg"))], &["a file \"Logo.svg\": rename it"]);
    is_refused("png", &[("brand.json", Vec::new())], &["it has no brand.json: add one"]);
    for no_folder in ["/nowhere", &format!("{}/brand.json", folder("png", &[]))] {
        assert!(refusal(no_folder).contains("the folder cannot be read: "), "{no_folder}");
    }
}

/// Names and texts are escaped, whatever characters they have. A picture that is opened by itself
/// can run no script.
#[sqlx::test]
async fn the_look_is_served_from_memory_under_the_same_policy(pool: PgPool) {
    let names = json!({ "vi": "Sao <Mai> & \"Co\"", "en": "Sao Mai" });
    let settings = json!({ "name": names, "heading": names, "footer": names,
        "colors": { "light": { "accent": "#00695C" }, "dark": {} } });
    let folder = folder("served", &[("brand.json", settings.to_string().into())]);
    let service = Service::start_with_settings(&pool, &[&format!("--brand-dir={folder}")]).await;
    std::fs::remove_dir_all(&folder).unwrap();
    let ours = service.replica(&[]).await;
    let (client, ours) = (service.client(), (ours.client(), ours));

    let page = client.get("/recovery").await;
    let default = ours.0.get("/recovery").await;
    assert_eq!(page.header("content-security-policy"), default.header("content-security-policy"));
    let escaped = "Sao &#60;Mai&#62; &#38; &#34;Co&#34;";
    for element in [
        format!("alt=\"{escaped}\">"),
        format!("<p class=\"heading\">{escaped}</p>"),
        format!("<footer>{escaped}</footer>"),
        format!(" · {escaped}</title>"),
    ] {
        assert!(page.text.contains(&element), "{element}: {}", page.text);
    }
    assert!(!page.text.contains("<Mai>") && !page.text.contains(" style="));
    assert!(!default.text.contains("<footer") && !default.text.contains("<img"));

    let version = |page: &str| page.split("page.css?").nth(1).unwrap()[..16].to_owned();
    assert_ne!(version(&page.text), version(&default.text), "browsers must not use cached colors");
    let get = async |file: &str| client.get(&format!("/recovery/{file}?{}", version(&page.text))).await;
    let css = get("page.css").await;
    assert!(css.text.contains("--accent: #00695c;") && css.text.contains("--on-accent: #ffffff;"));
    for (file, content) in [("logo.svg", example("logo.svg")), ("icon.svg", example("icon.svg"))] {
        let answer = get(file).await;
        assert_eq!(answer.text.as_bytes(), content);
        assert_eq!(answer.header("content-type"), Some("image/svg+xml; charset=utf-8"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert!(answer.header("cache-control").unwrap().contains("immutable"));
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; ") && policy.ends_with("; sandbox"), "{policy}");
    }
    assert_eq!(ours.0.get("/recovery/logo.svg").await.status, 404);
    assert_eq!(client.get("/recovery/brand.json").await.status, 404);
    ours.1.stops().await;
    service.stops().await;
}

/// The example for operators in a browser. `make screenshots` takes the pictures of
/// docs/operate/brand.md here.
#[sqlx::test]
async fn a_page_has_the_look_of_its_brand(pool: PgPool) {
    let folder = format!("--brand-dir={}", place::file(EXAMPLE).display());
    let (service, page) = page_of(&pool, &[&folder]).await;
    let browser = Browser::open("en").await;
    browser.goes_to(&page).await;
    assert!(browser.reads(".heading").await.starts_with("The trading portal"));
    assert!(browser.reads("footer").await.starts_with("Sao Mai Joint Stock Company"));
    assert!(browser.reads("#email").await.contains("Sao Mai Securities account"));
    browser.until("document.querySelector('.brand img').naturalWidth > 100").await;
    let button = "const { backgroundColor, color } = getComputedStyle(document.querySelector('#start button')); \
                  return [backgroundColor, color]";
    let rgb = |[red, green, blue]: [u8; 3]| Value::from(format!("rgb({red}, {green}, {blue})"));
    assert_eq!(browser.script(button).await, json!([rgb([0, 0x69, 0x5c]), rgb([0xff; 3])]));
    browser.is_in("dark").await;
    assert_eq!(browser.script(button).await, json!([rgb([0x5f, 0xd6, 0xbd]), rgb([6, 0x23, 0x1d])]));
    browser.inspect("recovery-brand-en").await;
    asks_for_a_code(&browser, &page).await;
    browser.types("#digits", "0000 0000").await;
    browser.sees("#verify-error").await;
    browser.clicks("summary").await;
    browser.inspect("recovery-brand-code-en").await;
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn an_email_has_the_look_of_its_brand_and_its_name_is_no_password(pool: PgPool) {
    let folder = format!("--brand-dir={}", place::file(EXAMPLE).display());
    let service = Service::start_with_settings(&pool, &[&folder]).await;
    service.has_account("trader@example.com").await;
    for (n, (language, name, footer)) in [
        ("vi", "Chứng khoán Sao Mai", "Công ty Cổ phần Sao Mai"),
        ("en", "Sao Mai Securities", "Sao Mai Joint Stock Company"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = service.client().with("accept-language", language);
        let code = service.mails_code_to(&mut client, "trader@example.com").await;
        let mail = service.relay.mail(n + 1).await;
        assert!(mail.parsed().subject().unwrap().contains(name));
        for part in [mail.text(), mail.html()] {
            assert!(part.contains(name) && part.contains(footer) && !part.contains("Vero OMS"), "{part}");
        }
        assert!(
            mail.html().contains(&format!(";color:#00695c;font-weight:700\">{name}</p>")),
            "{}",
            mail.html()
        );
        assert!(mail.html().contains(".accent { color: #5fd6bd !important }"), "{}", mail.html());
        client.verifies(&code).await;
        let refused = client.resets("Sao Mai Securities").await;
        assert_eq!(refused.error(), (400, "password_guessable"));
    }
    service.stops().await;
}
