//! Chromium, used as a person uses it: by keys and clicks, and by what is visible.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use thirtyfour::common::log::LoggingPrefsLogLevel;
use thirtyfour::prelude::*;

use crate::place;

/// How long to wait for a page. The browser shares the machine's cores with all other tests.
const PATIENCE: std::time::Duration = std::time::Duration::from_mins(1);

/// Widths and heights, in CSS pixels, of a phone, of the narrowest screen of WCAG 1.4.10, and of a
/// desktop.
pub const PHONE: (u32, u32) = (390, 780);
pub const NARROW: (u32, u32) = (320, 640);
pub const DESKTOP: (u32, u32) = (1100, 760);

/// How often to try to start chromedriver. chromedriver takes a free port of `::1`, and fails if
/// the same port of `127.0.0.1` is taken. Other tests use thousands of ports of `127.0.0.1`.
const DRIVER_STARTS: u32 = 20;

/// A Chromium with its own chromedriver. Dropping this value kills chromedriver, which closes the
/// pipe to Chromium. Then Chromium ends.
pub struct Browser {
    pub driver: WebDriver,
    process: Child,
}

impl Browser {
    /// Opens a browser that requests pages in `language`.
    pub async fn open(language: &str) -> Self {
        let (process, port) = start_driver();
        let mut wishes = DesiredCapabilities::chrome();
        wishes.set_binary("/usr/bin/chromium").unwrap();
        for flag in [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--remote-debugging-pipe",
            &format!("--accept-lang={language}"),
        ] {
            wishes.add_arg(flag).unwrap();
        }
        wishes.set_browser_log_level(LoggingPrefsLogLevel::All).unwrap();
        let driver =
            WebDriver::new(format!("http://127.0.0.1:{port}"), wishes).await.expect("Chromium starts");
        let browser = Self { driver, process };
        browser.is_sized(PHONE).await;
        browser
    }

    pub async fn goes_to(&self, url: &str) {
        self.driver.goto(url).await.unwrap();
    }

    /// Runs a script and returns its result. The page's Content-Security-Policy does not apply.
    pub async fn script(&self, script: &str) -> Value {
        self.driver.execute(script, vec![]).await.unwrap().json().clone()
    }

    /// Waits until an expression is true in the page, even if the page is replaced meanwhile.
    pub async fn until(&self, expression: &str) {
        let script = format!("return Boolean({expression})");
        let waiting = async {
            while !self.driver.execute(script.as_str(), vec![]).await.is_ok_and(|held| held.json() == true) {
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            let seen = self.script("return document.body.innerText").await;
            panic!("waited in vain for {expression}; there is: {seen}");
        }
    }

    /// Waits until the element is visible.
    pub async fn sees(&self, selector: &str) {
        self.until(&format!("document.querySelector('{selector}')?.checkVisibility()")).await;
    }

    /// Waits until the element is visible and has text, and returns the text. A hidden element has
    /// an `innerText`, too.
    pub async fn reads(&self, selector: &str) -> String {
        self.sees(selector).await;
        self.until(&format!("document.querySelector('{selector}').innerText")).await;
        self.value(&format!("document.querySelector('{selector}').innerText")).await
    }

    /// The value of an expression, as text.
    pub async fn value(&self, expression: &str) -> String {
        self.script(&format!("return String({expression})")).await.as_str().unwrap().to_owned()
    }

    /// The `id` of the element that has the focus.
    pub async fn focus(&self) -> String {
        self.value("document.activeElement.id").await
    }

    pub async fn types(&self, selector: &str, text: &str) {
        let field = self.driver.find(By::Css(selector)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    pub async fn clicks(&self, selector: &str) {
        self.driver.find(By::Css(selector)).await.unwrap().click().await.unwrap();
    }

    /// Sends keys to the focused element, special keys included.
    pub async fn presses(&self, keys: impl Into<TypingData>) {
        self.driver.active_element().await.unwrap().send_keys(keys).await.unwrap();
    }

    /// Inserts text into the focused element all at once, as pasting does.
    pub async fn pastes(&self, text: &str) {
        self.devtools("Input.insertText", json!({ "text": text })).await;
    }

    pub async fn devtools(&self, method: &str, parameters: Value) {
        self.driver.cdp().send_raw(method, parameters).await.unwrap();
    }

    pub async fn is_sized(&self, (width, height): (u32, u32)) {
        let screen = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", screen).await;
    }

    pub async fn is_in(&self, scheme: &str) {
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", media).await;
    }

    pub async fn is_offline(&self, offline: bool) {
        let network =
            json!({ "offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1 });
        // Without `Network.enable`, the page is told of the change, but its requests are still
        // sent.
        self.devtools("Network.enable", json!({})).await;
        self.devtools("Network.emulateNetworkConditions", network).await;
    }

    /// Checks that axe finds no violation in the page, in light and in dark colors, and that no
    /// screen is too narrow for the page. If `SCREENSHOTS` names a folder, saves screenshots there,
    /// named after `name`.
    pub async fn inspect(&self, name: &str) {
        self.inspect_on(name, &[("phone", PHONE), ("desktop", DESKTOP)]).await;
    }

    /// Like [`Self::inspect`], but on these screens and the narrowest one. The names are for the
    /// screenshots.
    pub async fn inspect_on(&self, name: &str, screens: &[(&str, (u32, u32))]) {
        let axe = place::file("tests/page/node_modules/axe-core/axe.min.js");
        let axe = std::fs::read_to_string(axe).expect("axe is there: `make test` installs it");
        self.driver.execute(axe, vec![]).await.unwrap();
        for (_, size) in screens.iter().chain([&("narrow", NARROW)]) {
            self.is_sized(*size).await;
            let width = self.script("return document.documentElement.scrollWidth").await;
            assert!(width.as_u64().unwrap() <= size.0.into(), "{name} is {width} wide on {size:?}");
        }
        for scheme in ["light", "dark"] {
            self.is_in(scheme).await;
            let run = "const done = arguments[0]; axe.run().then(({ violations }) => done(violations))";
            let found = self.driver.execute_async(run, vec![]).await.unwrap().json().clone();
            assert_eq!(found, json!([]), "{name}, {scheme}: {found:#}");
            if let Some(folder) = std::env::var_os("SCREENSHOTS") {
                for (screen, size) in screens {
                    self.is_sized(*size).await;
                    let file = PathBuf::from(&folder).join(format!("{name}-{scheme}-{screen}.png"));
                    self.picture(&file, *size).await;
                }
            }
        }
        self.is_in("light").await;
        self.is_sized(PHONE).await;
    }

    /// Saves a screenshot of the page, at least as high as the screen and at most twice that.
    async fn picture(&self, file: &Path, (width, height): (u32, u32)) {
        let whole = self.script("return document.documentElement.scrollHeight").await.as_u64().unwrap();
        let whole = u32::try_from(whole).unwrap().clamp(height, 2 * height);
        self.is_sized((width, whole)).await;
        self.driver.screenshot(file).await.unwrap();
    }

    /// Closes the browser. Checks first that no page violated its Content-Security-Policy and no
    /// script failed.
    pub async fn closes(self) {
        for entry in self.driver.browser_log().await.unwrap() {
            let refused = entry.message.contains("Failed to load resource");
            assert!(refused || entry.level != "SEVERE", "{}", entry.message);
            assert!(!entry.message.contains("Content Security Policy"), "{}", entry.message);
        }
        self.driver.clone().quit().await.unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts chromedriver and returns it with its port.
fn start_driver() -> (Child, String) {
    let mut reason = String::new();
    for _ in 0..DRIVER_STARTS {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").env("TMPDIR", place::temporary(""));
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("chromedriver is there: `make test` installs it");
        let mut errors = process.stderr.take().unwrap();
        // Both pipes are read to their end: chromedriver would block on a full one.
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        if let Some(started) = lines.find(|line| line.contains("started successfully on port")) {
            std::thread::spawn(move || lines.for_each(drop));
            return (process, started.rsplit(' ').next().unwrap().trim_end_matches('.').to_owned());
        }
        process.wait().unwrap();
        reason = errors.join().unwrap();
    }
    panic!("chromedriver did not start: {reason}");
}
