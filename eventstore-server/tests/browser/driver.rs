//! A browser and its driver, as separate processes that end with the test, however it ends.

use std::fmt::Debug;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::TypingData;
use thirtyfour::common::capabilities::chrome::ChromeCapabilities;
use thirtyfour::prelude::*;

const CHROMIUM: &str = "/usr/bin/chromium";
const DRIVER: &str = "/usr/bin/chromedriver";

/// The time limit for any operation of the browser.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is missing to run the tests, if anything.
pub(crate) fn missing() -> Option<&'static str> {
    [CHROMIUM, DRIVER]
        .into_iter()
        .find(|path| !Command::new(path).arg("--version").output().is_ok_and(|output| output.status.success()))
}

/// A script that runs before the page's own and records what must not happen.
const WATCH: &str = "
    window.violations = [];
    window.failures = [];
    window.saved = [];
    document.addEventListener('securitypolicyviolation', (event) =>
        window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
    addEventListener('error', (event) => window.failures.push(String(event.message)));
    addEventListener('unhandledrejection', (event) => window.failures.push(String(event.reason?.stack ?? event.reason)));
    for (const each of ['alert', 'confirm', 'prompt', 'open']) {
        window[each] = () => window.failures.push(`${each} was called`);
    }
    const made = URL.createObjectURL;
    URL.createObjectURL = (blob) => { window.saved.push(blob.size); return made.call(URL, blob); };
";

/// Runs a command until it ends or its input is closed, for example because the test was killed. Then it kills all its
/// child processes.
const KEEPER: &str = r#"("$@" < /dev/null; kill -KILL 0) & read -r _; kill -KILL 0"#;

/// A process and its child processes.
struct Group(Child);

impl Group {
    /// Starts a program and waits for a line with `beginning`. Returns the rest of that line.
    fn start(program: &str, arguments: &[&str], beginning: &str) -> (Self, String) {
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh", program]).args(arguments).process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let group = Group(child);
        let (sender, lines) = mpsc::channel();
        // The rest of the output must be read, or the process would block in the end.
        let other = sender.clone();
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)))
        });
        thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| drop(other.send(line)))
        });
        let mut seen = Vec::new();
        for line in &lines {
            if let Some((_, rest)) = line.split_once(beginning) {
                return (group, rest.to_owned());
            }
            seen.push(line);
        }
        panic!("{program} ended: {seen:#?}");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A browser with one page.
pub(crate) struct Page {
    driver: Option<WebDriver>,
    /// Parts of console messages that this test causes itself.
    expected: Vec<&'static str>,
    base: String,
    _processes: [Group; 2],
    _profile: TempDir,
}

impl Drop for Page {
    fn drop(&mut self) {
        // The processes are killed, so the session need not be closed.
        let _ = self.driver.take().map(WebDriver::leak);
    }
}

impl Page {
    /// Opens `path` of the server at `base`. `script` runs before the page's own.
    pub(crate) async fn open_with(base: &str, path: &str, script: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let directory = format!("--user-data-dir={}", profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-breakpad",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--lang=en-US",
            "--remote-debugging-port=0",
            &directory,
            "about:blank",
        ];
        let (browser, address) = Group::start(CHROMIUM, &arguments, "DevTools listening on ws://");
        let address = address.split('/').next().unwrap().to_owned();
        let (driver, port) = Group::start(DRIVER, &["--port=0"], "started successfully on port ");
        let port: u16 = port.trim_end_matches('.').parse().unwrap();

        let mut capabilities = ChromeCapabilities::new();
        capabilities.set_debugger_address(&address).unwrap();
        capabilities.set("goog:loggingPrefs", json!({ "browser": "ALL", "performance": "ALL" })).unwrap();
        let session = WebDriver::new(format!("http://127.0.0.1:{port}"), capabilities).await.unwrap();
        session.set_script_timeout(PATIENCE).await.unwrap();
        let page = Page {
            driver: Some(session),
            expected: Vec::new(),
            base: base.to_owned(),
            _processes: [browser, driver],
            _profile: profile,
        };
        page.cdp("Page.addScriptToEvaluateOnNewDocument", json!({ "source": format!("{WATCH}\n{script}") })).await;
        page.cdp("Emulation.setFocusEmulationEnabled", json!({ "enabled": true })).await;
        page.size(1280, 800).await;
        page.goto(path).await;
        page
    }

    pub(crate) async fn open(base: &str, path: &str) -> Self {
        Self::open_with(base, path, "").await
    }

    /// Allows console messages that contain this.
    pub(crate) fn expect(&mut self, message: &'static str) {
        self.expected.push(message);
    }

    pub(crate) fn driver(&self) -> &WebDriver {
        self.driver.as_ref().unwrap()
    }

    pub(crate) async fn cdp(&self, command: &str, parameters: Value) -> Value {
        self.driver().cdp().send_raw(command, parameters).await.unwrap()
    }

    pub(crate) async fn size(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.cdp("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Sets `light` or `dark`, and reduced motion.
    pub(crate) async fn scheme(&self, scheme: &str) {
        let features = json!([
            { "name": "prefers-color-scheme", "value": scheme },
            { "name": "prefers-reduced-motion", "value": "reduce" },
        ]);
        self.cdp("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    pub(crate) async fn goto(&self, path: &str) {
        self.driver().goto(format!("{}{path}", self.base)).await.unwrap();
    }

    /// The value of a JavaScript expression.
    pub(crate) async fn value<T: DeserializeOwned>(&self, expression: &str) -> T {
        let value = self.driver().execute(format!("return ({expression});"), vec![]).await;
        value.unwrap_or_else(|error| panic!("{expression}: {error}")).convert().unwrap()
    }

    /// Waits until a JavaScript expression holds.
    pub(crate) async fn until(&self, expression: &str) {
        let script = format!(
            "const done = arguments[arguments.length - 1];
             const look = () => ({expression}) ? done() : setTimeout(look, 15);
             look();"
        );
        if let Err(error) = self.driver().execute_async(script, vec![]).await {
            let text: Result<Value, _> = match self.driver().execute("return document.body.innerText", vec![]).await {
                Ok(text) => text.convert(),
                Err(error) => Err(error),
            };
            panic!("it did not come to {expression}: {error}; the page: {text:?}, {:?}", self.logged().await);
        }
    }

    /// Waits until the value of an expression is this.
    pub(crate) async fn until_is(&self, expression: &str, expected: impl Into<Value> + Debug) {
        let expected = expected.into();
        self.until(&format!("JSON.stringify({expression}) === JSON.stringify({expected})")).await;
    }

    pub(crate) async fn until_live(&self) {
        self.until("document.getElementById('state').dataset.state === 'live'").await;
    }

    pub(crate) async fn click(&self, css: &str) {
        let element = self.driver().find(By::Css(css)).await.unwrap_or_else(|error| panic!("{css}: {error}"));
        element.click().await.unwrap_or_else(|error| panic!("{css}: {error}"));
    }

    /// Moves the pointer to this element.
    pub(crate) async fn point_at(&self, css: &str) {
        let element = self.driver().find(By::Css(css)).await.unwrap();
        self.driver().action_chain().move_to_element_center(&element).perform().await.unwrap();
    }

    /// Presses keys at the focused element.
    pub(crate) async fn press(&self, keys: impl Into<TypingData>) {
        self.driver().action_chain().send_keys(keys).perform().await.unwrap();
    }

    pub(crate) async fn write(&self, css: &str, text: &str) {
        let element = self.driver().find(By::Css(css)).await.unwrap();
        element.clear().await.unwrap();
        element.send_keys(text).await.unwrap();
    }

    /// The texts of all selected elements.
    pub(crate) async fn texts(&self, css: &str) -> Vec<String> {
        self.value(&texts(css)).await
    }

    /// Unexpected console messages.
    async fn logged(&self) -> Vec<String> {
        let entries = self.driver().browser_log().await.unwrap();
        let messages = entries.into_iter().map(|entry| format!("{}: {}", entry.level, entry.message));
        messages.filter(|message| !self.expected.iter().any(|expected| message.contains(expected))).collect()
    }

    /// Checks that nothing forbidden happened: no foreign script ran, nothing violated the policy or failed, and
    /// nothing was requested from elsewhere. Call it on each document before leaving it.
    pub(crate) async fn is_unharmed(&self) {
        assert!(self.driver().get_alert_text().await.is_err(), "a dialog is open");
        assert_eq!(self.value::<Vec<String>>("window.violations").await, [] as [&str; 0], "the policy was broken");
        assert_eq!(self.value::<Vec<String>>("window.failures").await, [] as [&str; 0], "the page failed");
        assert!(self.value::<bool>("window.ran === undefined").await, "a script of an event's ran");
        let foreign = "[...document.querySelectorAll('script, img, iframe, object, embed, link, style, base, meta[http-equiv], \
                       form[action], [style], [onclick], [onerror], [onload]')].map((each) => each.outerHTML.slice(0, 80)) \
                       .filter((each) => !/^<(script type=\"module\"|link rel=\"(icon|stylesheet)\")/.test(each))";
        assert_eq!(self.value::<Vec<String>>(foreign).await, [] as [&str; 0], "elements that the page does not make");
        let addresses =
            "[...document.links].map((each) => each.href).filter((href) => !href.startsWith(location.origin + '/'))";
        assert_eq!(self.value::<Vec<String>>(addresses).await, [] as [&str; 0], "links that lead elsewhere");
        assert_eq!(self.logged().await, [] as [&str; 0], "the console");
        for url in self.requested().await {
            let is_own = url.strip_prefix("blob:").unwrap_or(&url).starts_with(&self.base);
            assert!(is_own || url.starts_with("data:image/svg+xml"), "asked for {url}");
        }
    }

    /// The URLs that the page has requested since the last call.
    async fn requested(&self) -> Vec<String> {
        let entries = self.driver().get_log("performance").await.unwrap();
        let messages =
            entries.iter().map(|entry| serde_json::from_str::<Value>(&entry.message).unwrap()["message"].clone());
        let sent = messages.filter(|message| message["method"] == "Network.requestWillBeSent");
        let urls: Vec<_> =
            sent.map(|message| message["params"]["request"]["url"].as_str().unwrap().to_owned()).collect();
        assert!(!urls.is_empty(), "the browser tells of its requests");
        urls
    }
}

/// The expression for the texts of all selected elements.
pub(crate) fn texts(css: &str) -> String {
    format!("[...document.querySelectorAll({})].map((each) => each.textContent)", Value::from(css))
}
