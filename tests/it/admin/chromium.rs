//! Chromium, driven over `WebDriver`: what only a real browser shows.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use fantoccini::{
    Client, ClientBuilder, Locator,
    actions::{InputSource as _, KeyAction, KeyActions},
    elements::Element,
    key::Key,
    wd::WebDriverCompatibleCommand,
};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

use crate::support::{PATIENCE, Tollgate, eventually};

/// A browser with a profile of its own; it ends when dropped.
pub(super) struct Chromium {
    base: String,
    pub(super) client: Client,
    _driver: Driver,
    _directory: tempfile::TempDir,
}

/// A process of chromedriver, which ends the browsers that it started.
struct Driver {
    child: Child,
    port: u16,
}

impl Driver {
    /// It and its browsers keep what is temporary in `directory`.
    fn start(directory: &Path) -> Self {
        let missing =
            "chromedriver does not start; chromium and chromium-driver come with `make deps`";
        // It ends where another program takes the port that it has found free.
        let mut tries = (0..3).map(|_| Self::try_start(directory, missing));
        tries.find_map(|driver| driver).expect(missing)
    }

    fn try_start(directory: &Path, missing: &str) -> Option<Self> {
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .env("TMPDIR", directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect(missing);
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let port = lines.find_map(|line| {
            let line = line.expect(missing);
            let port = line.strip_prefix("ChromeDriver was started successfully on port ")?;
            port.trim_end_matches('.').parse().ok()
        });
        // What it says later is read and thrown away, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        if port.is_none() {
            let _ = child.wait(); // it says nothing more
        }
        Some(Self { child, port: port? })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let asked = TcpStream::connect(("127.0.0.1", self.port)).and_then(|mut stream| {
            stream.write_all(
                b"GET /shutdown HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n",
            )?;
            // It answers when its browsers have ended.
            stream.set_read_timeout(Some(PATIENCE))?;
            BufReader::new(stream).read_line(&mut String::new())
        });
        if asked.is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// A command of Chromium's own beside the standard's.
#[derive(Debug)]
struct Own {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Own {
    fn endpoint(
        &self,
        base: &url::Url,
        session: Option<&str>,
    ) -> Result<url::Url, url::ParseError> {
        base.join(&format!(
            "session/{}/{}",
            session.unwrap_or_default(),
            self.path
        ))
    }

    fn method_and_body(&self, _: &url::Url) -> (reqwest::Method, Option<String>) {
        (reqwest::Method::POST, Some(self.body.to_string()))
    }
}

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    /// In CSS pixels: zoomed to 200 %, a window of 1280 pixels has 640.
    pub(super) width: u32,
    pub(super) scale: u32,
    pub(super) scheme: &'static str,
}

impl Chromium {
    /// Nobody is signed in; the pages are those of `gate`.
    pub(super) async fn start(gate: &Tollgate) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let driver = Driver::start(directory.path());
        let profile = directory.path().join("profile");
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-proxy-server",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1280,900",
            &format!("--user-data-dir={}", profile.display()),
        ];
        let capabilities = json!({
            "browserName": "chrome",
            "unhandledPromptBehavior": "ignore",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let capabilities = capabilities.as_object().expect("an object").clone();
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{}/", driver.port))
            .await
            .expect("chromium starts; it comes with `make deps`");
        Self {
            base: gate.base.clone(),
            client,
            _driver: driver,
            _directory: directory,
        }
    }

    pub(super) async fn go(&self, path: &str) {
        let address = format!("{}{path}", self.base);
        self.client.goto(&address).await.expect("the page is there");
    }

    pub(super) async fn sign_in(&self, token: &str) {
        self.go("/admin").await;
        self.write("Admin token", token).await;
        self.press("Sign in").await;
        self.sees("Sign out").await;
    }

    /// Runs a function's body in the page.
    pub(super) async fn run(&self, script: &str) -> Value {
        self.client
            .execute(script, Vec::new())
            .await
            .unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// What is written on the page.
    pub(super) async fn text(&self) -> String {
        let body = self.client.find(Locator::Css("body")).await;
        body.expect("a page").text().await.expect("text")
    }

    /// Waits until `text` is written on the page.
    pub(super) async fn sees(&self, text: &str) {
        eventually(text, || async {
            let body = self.client.find(Locator::Css("body")).await.ok()?;
            // The page may be on its way out.
            body.text().await.ok()?.contains(text).then_some(())
        })
        .await;
    }

    /// The field with this label.
    pub(super) async fn field(&self, label: &str) -> Element {
        let path = format!("//*[@id=//label[normalize-space()={label:?}]/@for]");
        self.found(Locator::XPath(&path)).await
    }

    async fn found(&self, locator: Locator<'_>) -> Element {
        match self.client.find(locator).await {
            Ok(element) => element,
            Err(error) => panic!("{locator:?}: {error}: {}", self.text().await),
        }
    }

    /// Puts `text` into the field with this label.
    pub(super) async fn write(&self, label: &str, text: &str) {
        let field = self.field(label).await;
        field.clear().await.expect("a field that can be written");
        field.send_keys(text).await.expect("a field");
    }

    /// Chooses `label` in the select field of this name.
    pub(super) async fn choose(&self, name: &str, label: &str) {
        let selector = format!("select[name={name}]");
        let field = self.found(Locator::Css(&selector)).await;
        let chosen = field.select_by_label(label).await;
        chosen.unwrap_or_else(|error| panic!("{name}: {label}: {error}"));
    }

    /// Presses the first visible button, opens the link, or unfolds what is called `name`.
    pub(super) async fn press(&self, name: &str) {
        let path = format!(
            "//*[(self::button or self::a or self::summary) and not(@aria-hidden) and normalize-space()={name:?}]"
        );
        let element = self.found(Locator::XPath(&path)).await;
        let pressed = element.click().await;
        pressed.unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Types on the keyboard, wherever the focus is.
    pub(super) async fn keys(&self, keys: impl IntoIterator<Item = char>) {
        let mut actions = KeyActions::new("keyboard".to_owned());
        for value in keys {
            actions = actions
                .then(KeyAction::Down { value })
                .then(KeyAction::Up { value });
        }
        let typed = self.client.perform_actions(actions).await;
        typed.expect("keys can be pressed");
    }

    /// Replaces what is in the field that has the focus.
    pub(super) async fn overwrite(&self, text: &str) {
        let control = char::from(Key::Control);
        let all = KeyActions::new("keyboard".to_owned())
            .then(KeyAction::Down { value: control })
            .then(KeyAction::Down { value: 'a' })
            .then(KeyAction::Up { value: 'a' })
            .then(KeyAction::Up { value: control });
        let selected = self.client.perform_actions(all).await;
        selected.expect("keys can be pressed");
        self.keys(text.chars()).await;
    }

    /// Goes from one to the next with Tab until the focus, which must be seen each time, is on what is called `name`.
    pub(super) async fn tab_to(&self, name: &str) {
        const FOCUSED: &str = "const it = document.activeElement; const style = getComputedStyle(it); \
            const name = it.labels?.[0]?.innerText || it.innerText || it.getAttribute('aria-label') || ''; \
            return [name.trim(), it === document.body || style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2]";
        let mut passed = Vec::new();
        for _ in 0..200 {
            self.keys([Key::Tab.into()]).await;
            let focused = self.run(FOCUSED).await;
            let here = focused[0].as_str().unwrap_or_default().to_owned();
            assert_eq!(focused[1], true, "the focus on '{here}' is not seen");
            if here == name {
                return;
            }
            passed.push(here);
        }
        panic!("Tab does not reach '{name}': {passed:?}");
    }

    pub(super) async fn enter(&self) {
        self.keys([Key::Enter.into()]).await;
    }

    /// A command of the browser's own protocol.
    pub(super) async fn tell(&self, command: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        let path = "goog/cdp/execute";
        let told = self.client.issue_cmd(Own { path, body }).await;
        told.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Looks at pages as on another screen.
    pub(super) async fn look(&self, screen: Screen) {
        let metrics = json!({
            "width": screen.width, "height": 900, "deviceScaleFactor": screen.scale, "mobile": false,
        });
        self.tell("Emulation.setDeviceMetricsOverride", metrics)
            .await;
        let features = json!([{ "name": "prefers-color-scheme", "value": screen.scheme }]);
        let media = json!({ "features": features });
        self.tell("Emulation.setEmulatedMedia", media).await;
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let body = json!({ "type": kind });
        let path = "se/log";
        let log = self.client.issue_cmd(Own { path, body }).await;
        log.expect("a log").as_array().expect("a list").clone()
    }

    /// The console has no error and no warning, and nothing was asked of another host. An answer that is meant (a form with a fault)
    /// is a line of its own in the console, and no error of the page.
    pub(super) async fn is_quiet(&self) {
        let errors: Vec<String> = self
            .log("browser")
            .await
            .iter()
            .filter(|line| line["level"] == "WARNING" || line["level"] == "SEVERE")
            .filter(|line| line["source"] != "network")
            .map(ToString::to_string)
            .collect();
        assert_eq!(errors, Vec::<String>::new());
        let mut asked = 0;
        let mut others = BTreeSet::new();
        for line in self.log("performance").await {
            let event: Value =
                serde_json::from_str(line["message"].as_str().unwrap_or_default()).expect("JSON");
            let request = &event["message"]["params"];
            let is_request = event["message"]["method"] == "Network.requestWillBeSent";
            let text = |value: &Value| value.as_str().expect("an address").to_owned();
            // The browser's own page, which it begins with.
            if !is_request || text(&request["documentURL"]).starts_with("chrome://") {
                continue;
            }
            asked += 1;
            let address = text(&request["request"]["url"]);
            if !address.starts_with(&self.base) && !address.starts_with("data:") {
                others.insert(address);
            }
        }
        assert_eq!(others, BTreeSet::new());
        assert!(asked > 0, "the log of requests is empty");
    }
}
