//! The page in a browser: its content, its use, and that the content of events cannot do anything in it.
//!
//! The tests need `/usr/bin/chromium` and `/usr/bin/chromedriver`, and are ignored without them. If
//! `EVENTSTORE_REQUIRE_BROWSER` is set, they fail instead. `EVENTSTORE_PAGE_PICTURE=write` updates `docs/page.png`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic and say why")]

#[path = "browser/driver.rs"]
mod driver;

use std::env;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use eventstore::{Event, Store};
use eventstore_server::{ListenError, Listener, Server, Stores, serve};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::prelude::*;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use driver::{Page, texts};

/// The time limit for one test.
const LONGEST: Duration = Duration::from_secs(900);

const MIB: usize = 1 << 20;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = driver::missing();
    let is_required = env::var_os("EVENTSTORE_REQUIRE_BROWSER").is_some_and(|value| !value.is_empty());
    if let Some(path) = missing {
        eprintln!(
            "{path} is missing or does not start: the tests of the page are ignored (apt-get install chromium-driver)"
        );
    }
    let mut trials = Vec::new();
    macro_rules! tests {
        ($($name:ident),* $(,)?) => {
            $(trials.push(Trial::test(stringify!($name), move || run(missing, $name()))
                .with_ignored_flag(missing.is_some() && !is_required));)*
        };
    }
    tests![
        events_appear_live_and_the_newest_is_first,
        a_server_that_starts_again_leaves_no_gap_and_repeats_nothing,
        rows_do_not_move_under_the_reader,
        many_events_leave_few_rows,
        filters_are_in_the_address,
        an_event_is_shown_as_it_was_written,
        a_large_event_is_shown_in_part,
        an_aggregate_has_its_history,
        nothing_that_an_event_contains_does_anything,
        a_token_is_asked_for_and_kept_in_the_tab,
        the_root_of_many_stores_lists_them,
        everything_is_reached_by_keys,
        every_control_has_a_name_and_every_text_contrast,
        rates_and_the_state_of_the_server_are_told,
        it_fits_a_phone,
    ];
    let picture =
        Trial::test("the_picture_of_the_documentation", move || run(missing, the_picture_of_the_documentation()));
    let is_wanted = env::var("EVENTSTORE_PAGE_PICTURE").is_ok_and(|value| value == "write");
    trials.push(picture.with_ignored_flag(!is_wanted));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run(missing: Option<&str>, test: impl Future<Output = ()>) -> Result<(), Failed> {
    if let Some(path) = missing {
        return Err(format!("{path} is missing, and EVENTSTORE_REQUIRE_BROWSER is set").into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(async { tokio::time::timeout(LONGEST, test).await });
    ended.map_err(|_| format!("it did not end within {LONGEST:?}").into())
}

/// A server of one store in a directory.
struct Site {
    store: Store,
    url: String,
    directory: TempDir,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), ListenError>>,
}

impl Site {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).await;
        Self::of(store, directory, "127.0.0.1:0", |server| server.only_this_machine()).await
    }

    async fn of(store: Store, directory: TempDir, address: &str, set: impl FnOnce(Server) -> Server) -> Self {
        let listener = Listener::bind(&address.parse().unwrap()).await.unwrap();
        let url = format!("{}/", listener.url());
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(set(Server::new(store.clone())), listener, stop.clone()));
        Site { store, url, directory, stop, serving }
    }

    /// Stops it. Returns what another server on the same address needs.
    async fn stop(self) -> (TempDir, String) {
        self.stop.cancel();
        self.serving.await.unwrap().unwrap();
        let address = self.url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        (self.directory, address)
    }

    async fn append(&self, events: Vec<Event>) {
        self.store.append(events).await.unwrap();
    }
}

/// A server of the stores in a directory.
struct Many {
    url: String,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), ListenError>>,
}

impl Many {
    async fn start(directory: &Path) -> Self {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (url, stop) = (format!("{}/", listener.url()), CancellationToken::new());
        let server = Server::of_many(Stores::new(directory)).only_this_machine();
        Many { url, serving: tokio::spawn(serve(server, listener, stop.clone())), stop }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.serving.await.unwrap().unwrap();
    }
}

async fn open(directory: &Path) -> Store {
    eventstore::open(&format!("lmdb:{}", directory.join("store").display())).await.unwrap()
}

fn event(id: &str, aggregate: &str) -> Event {
    event_of(id, "Happened", aggregate, r#"{"n":1}"#)
}

fn event_of(id: &str, event_type: &str, aggregate: &str, data: impl Into<Vec<u8>>) -> Event {
    Event::builder(event_type, aggregate).id(id).data(data.into()).build().unwrap()
}

/// The numbers from `first` to `last`, in this direction, as texts.
fn numbers(first: u64, last: u64) -> Vec<String> {
    if first <= last {
        (first..=last).map(|n| n.to_string()).collect()
    } else {
        (last..=first).rev().map(|n| n.to_string()).collect()
    }
}

const VERSIONS: &str = "#rows td.c-version";

async fn events_appear_live_and_the_newest_is_first() {
    let site = Site::start().await;
    let page = Page::open(&site.url, "").await;
    page.until_live().await;
    page.until_is("document.getElementById('empty').textContent", "This store has no events yet.").await;
    site.append(vec![event("first", "a-1")]).await;
    page.until_is(&texts(VERSIONS), numbers(1, 1)).await;
    site.append(
        (2..=5).map(|n| event_of(&format!("e{n}"), "Paid", &format!("a-{n}"), format!("{{\"n\":{n}}}"))).collect(),
    )
    .await;
    page.until_is(&texts(VERSIONS), numbers(5, 1)).await;
    assert_eq!(page.texts("#rows tr:first-child td:not(.c-time)").await, ["5", "Paid", "a-5", r#"{"n":5}"#]);
    assert_eq!(page.texts("#state").await, ["Live"]);
    page.is_unharmed().await;
}

async fn a_server_that_starts_again_leaves_no_gap_and_repeats_nothing() {
    let site = Site::start().await;
    site.append((1..=5).map(|n| event(&format!("e{n}"), "a")).collect()).await;
    let mut page = Page::open(&site.url, "").await;
    page.expect("net::ERR_");
    // The stopping server refuses requests.
    page.expect("503");
    page.until_live().await;
    // The document is kept: it is not reloaded.
    page.value::<Value>("(document.querySelector('#rows tr').mark = 1, null)").await;
    let mut site = site;
    for round in 1..=3_u64 {
        let (directory, address) = site.stop().await;
        page.until("document.getElementById('state').dataset.state === 'reconnecting'").await;
        let store = open(directory.path()).await;
        // These are appended while nobody is notified.
        let missed: Vec<_> = (0..7).map(|n| event(&format!("missed-{round}-{n}"), "a")).collect();
        store.append(missed).await.unwrap();
        site = Site::of(store, directory, &address, |server| server.only_this_machine()).await;
        page.until_is(&texts(VERSIONS), numbers(5 + (round - 1) * 8 + 7, 1)).await;
        page.until_live().await;
        site.append(vec![event(&format!("after-{round}"), "a")]).await;
        page.until_is(&texts(VERSIONS), numbers(5 + round * 8, 1)).await;
    }
    assert!(page.value::<bool>("[...document.querySelectorAll('#rows tr')].at(-5).mark === 1").await, "the same rows");

    // Another history at the same address is shown from its beginning.
    page.expect("410");
    let (_, address) = site.stop().await;
    page.until("document.getElementById('state').dataset.state === 'reconnecting'").await;
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    store.append((1..=40).map(|n| event(&format!("other-{n}"), "b")).collect::<Vec<_>>()).await.unwrap();
    let site = Site::of(store, directory, &address, |server| server.only_this_machine()).await;
    page.until_is(&texts(VERSIONS), numbers(40, 1)).await;
    assert!(page.texts("#rows td.c-aggregate").await.iter().all(|text| text == "b"));
    site.append(vec![event("later", "b")]).await;
    page.until_is(&texts(VERSIONS), numbers(41, 1)).await;
    page.is_unharmed().await;
}

async fn rows_do_not_move_under_the_reader() {
    let site = Site::start().await;
    site.append((1..=3).map(|n| event(&format!("e{n}"), "a")).collect()).await;
    let page = Page::open(&site.url, "").await;
    page.until_live().await;
    let append = async |id: &str| site.append(vec![event(id, "a")]).await;

    page.click("#pause").await;
    page.until_is("document.getElementById('pause').getAttribute('aria-pressed')", "true").await;
    append("e4").await;
    page.until_is(&texts("#fresh"), json!(["1 new"])).await;
    assert_eq!(page.texts(VERSIONS).await, numbers(3, 1));
    append("e5").await;
    page.until_is(&texts("#fresh"), json!(["2 new"])).await;
    page.click("#fresh").await;
    page.until_is(&texts(VERSIONS), numbers(5, 1)).await;
    assert_eq!(page.value::<String>("document.getElementById('pause').getAttribute('aria-pressed')").await, "false");

    // A pointer on the rows, or the focus among them, counts as reading.
    page.point_at("#rows tr:nth-child(2)").await;
    append("e6").await;
    page.until_is(&texts("#fresh"), json!(["1 new"])).await;
    assert_eq!(page.texts(VERSIONS).await, numbers(5, 1));
    page.point_at("#list-title").await;
    page.until_is(&texts(VERSIONS), numbers(6, 1)).await;
    page.value::<Value>("(document.querySelector('#rows a').focus(), null)").await;
    append("e7").await;
    page.until_is(&texts("#fresh"), json!(["1 new"])).await;
    assert_eq!(page.texts(VERSIONS).await, numbers(6, 1));
    page.value::<Value>("(document.activeElement.blur(), null)").await;
    page.until_is(&texts(VERSIONS), numbers(7, 1)).await;
    page.is_unharmed().await;
}

async fn many_events_leave_few_rows() {
    let site = Site::start().await;
    let some = async |from: u64, to: u64| {
        site.append((from..=to).map(|n| event(&format!("e{n}"), "a")).collect()).await;
    };
    some(1, 250).await;
    let page = Page::open(&site.url, "").await;
    page.until_live().await;
    page.until_is(&texts(VERSIONS), numbers(250, 151)).await;
    page.click("#load-after").await;
    page.until_is(&texts(VERSIONS), numbers(250, 51)).await;
    page.click("#load-after").await;
    page.until_is(&texts(VERSIONS), numbers(250, 1)).await;
    assert!(!page.driver().find(By::Id("load-after")).await.unwrap().is_displayed().await.unwrap(), "these are all");

    // More events arrive at once than the document may have.
    some(251, 3000).await;
    page.until_is(&texts("#fresh"), json!(["2,750 new"])).await;
    assert_eq!(page.texts(VERSIONS).await, numbers(250, 1), "whoever has scrolled down reads on");
    page.point_at("#list-title").await;
    page.value::<Value>("(document.getElementById('scroller').scrollTo(0, 0), null)").await;
    page.until_is(&texts(VERSIONS), numbers(3000, 2601)).await;
    page.click("#load-after").await;
    page.until_is(&texts(VERSIONS), numbers(2900, 2501)).await;
    some(3001, 3002).await;
    page.until_is(&texts("#fresh"), json!(["2 new"])).await;
    page.click("#load-before").await;
    page.until_is(&texts(VERSIONS), numbers(3002, 2903)).await;
    page.is_unharmed().await;
}

async fn filters_are_in_the_address() {
    let site = Site::start().await;
    let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds);
    let events = ["order-1", "order-2", "cart-1", "order-1"].into_iter().zip(["Placed", "Paid", "Placed", "Paid"]);
    let events: Vec<_> = events.enumerate().map(|(n, (a, t))| event_of(&format!("e{n}"), t, a, "1")).collect();
    site.store.append(events).recorded_at([at(0), at(60), at(120), at(180)]).await.unwrap();
    let page = Page::open(&site.url, "").await;
    page.until_is(&texts(VERSIONS), numbers(4, 1)).await;
    let query = "decodeURIComponent(location.search)";

    page.write("[name=aggregate]", "order-1").await;
    page.press(Key::Enter).await;
    page.until_is(&texts(VERSIONS), json!(["4", "1"])).await;
    assert_eq!(page.value::<String>(query).await, "?aggregate=order-1");
    page.write("[name=type]", "Paid").await;
    page.click("#filters [type=submit]").await;
    page.until_is(&texts(VERSIONS), json!(["4"])).await;
    assert_eq!(page.value::<String>(query).await, "?aggregate=order-1&type=Paid");
    // Events that do not match do not appear; matching ones do.
    page.until_live().await;
    site.append(vec![event_of("no", "Placed", "order-1", "1"), event_of("yes", "Paid", "order-1", "1")]).await;
    page.until_is(&texts(VERSIONS), json!(["6", "4"])).await;

    page.driver().back().await.unwrap();
    page.until_is(&texts(VERSIONS), json!(["6", "5", "4", "1"])).await;
    assert_eq!(page.value::<String>("document.querySelector('[name=type]').value").await, "");
    page.driver().back().await.unwrap();
    page.until_is(&texts(VERSIONS), numbers(6, 1)).await;
    page.driver().forward().await.unwrap();
    page.until_is(&texts(VERSIONS), json!(["6", "5", "4", "1"])).await;
    page.driver().refresh().await.unwrap();
    page.until_is(&texts(VERSIONS), json!(["6", "5", "4", "1"])).await;
    assert_eq!(page.value::<String>("document.querySelector('[name=aggregate]').value").await, "order-1");
    page.click("#clear").await;
    page.until_is(&texts(VERSIONS), numbers(6, 1)).await;
    assert_eq!(page.value::<String>(query).await, "");

    page.goto("?aggregate_prefix=order-&recorded_since=2027-01-15T08:01:00Z&recorded_before=2027-01-15T08:03:00Z")
        .await;
    page.until_is(&texts(VERSIONS), json!(["2"])).await;
    page.write("[name=aggregate_prefix]", "c").await;
    page.press(Key::Enter).await;
    page.until_is(&texts(VERSIONS), json!(["3"])).await;
    let times = "&recorded_since=2027-01-15T08:01:00Z&recorded_before=2027-01-15T08:03:00Z";
    assert_eq!(page.value::<String>(query).await, format!("?aggregate_prefix=c{times}"));
    page.write("[name=aggregate_prefix]", "nobody").await;
    page.press(Key::Enter).await;
    page.until_is("document.getElementById('empty').textContent", "No event passes this filter.").await;
    page.is_unharmed().await;
}

const DATA: &str = "#detail pre.content";

async fn an_event_is_shown_as_it_was_written() {
    let site = Site::start().await;
    let exact = r#"{"b":1.50,"a":[1e400,12345678901234567890,{}],"a":"\u00e9 \"x\"","empty":[]}"#;
    let lines = "{\n  \"x\": \"ü\"\n}\n";
    let builder = Event::builder("Exact", "a").id("exact").data(exact).metadata_json(r#"{"by": "me","n":1.0}"#);
    let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_800_000_000_123_456);
    site.store.append(vec![builder.build().unwrap()]).recorded_at([at]).await.unwrap();
    let others = vec![
        event_of("lines", "Lines", "a", lines),
        event_of("text", "Text", "a", "hello"),
        event_of("bytes", "Bytes", "a", [0, 255, 65]),
    ];
    site.append(others).await;
    site.append(vec![Event::builder("Nothing", "a").id("nothing").build().unwrap()]).await;

    let mut page = Page::open(&site.url, "?event=exact").await;
    page.until(&format!("document.querySelectorAll('{DATA}').length === 2")).await;
    let pretty = "{\n  \"b\": 1.50,\n  \"a\": [\n    1e400,\n    12345678901234567890,\n    {}\n  ],\n  \"a\": \"\\u00e9 \\\"x\\\"\",\n  \"empty\": []\n}";
    page.until_is(&texts(DATA), json!([pretty, "{\n  \"by\": \"me\",\n  \"n\": 1.0\n}"])).await;
    page.until_is(&texts(VERSIONS), numbers(5, 1)).await;
    let facts = page.texts("#detail dd").await;
    assert_eq!(facts[..5], ["exact", "Exact", "a", "1", "1"]);
    assert!(facts[5].contains("00.123456"), "local time: {facts:?}");
    assert_eq!(facts[6], "2027-01-15 08:00:00.123456 UTC");
    let choose = async |way: &str| {
        page.value::<Value>(&format!("([...document.querySelectorAll('#detail [role=group] button')].find((each) => each.textContent === '{way}').click(), null)")).await;
    };
    choose("Raw").await;
    page.until_is(&format!("{}[0]", texts(DATA)), exact).await;
    choose("Hex").await;
    page.until(&format!(
        "{}[0].startsWith('00000000  7b 22 62 22 3a 31 2e 35 30 2c 22 61 22 3a 5b 31  {{\"b\":1.50,\"a\":[1')",
        texts(DATA)
    ))
    .await;
    choose("Pretty").await;

    // The URL names the event, and so does the next one.
    page.click("#rows tr:nth-child(4) a.open").await;
    page.until_is(&texts(DATA), json!(["{\n  \"x\": \"ü\"\n}"])).await;
    assert_eq!(page.value::<String>("location.search").await, "?event=lines");
    let choose = async |way: &str| {
        page.value::<Value>(&format!("([...document.querySelectorAll('#detail [role=group] button')].find((each) => each.textContent === '{way}').click(), null)")).await;
    };
    choose("Raw").await;
    page.until_is(&texts(DATA), json!([lines])).await;
    page.click("#rows tr:nth-child(3) a.open").await;
    page.until_is(&texts(DATA), json!(["hello"])).await;
    page.click("#rows tr:nth-child(2) a.open").await;
    page.until(&format!("{}[0]?.startsWith('00000000  00 ff 41 ')", texts(DATA))).await;
    assert_eq!(page.texts("#detail .content-head .muted").await[0], "binary, 3 B");
    page.click("#rows tr:nth-child(1) a.open").await;
    page.until_is(&texts("#detail .content-head .muted"), json!(["empty", "none"])).await;
    page.driver().back().await.unwrap();
    page.until_is("location.search", "?event=bytes").await;
    page.until(&format!("{}[0]?.startsWith('00000000  00 ff 41 ')", texts(DATA))).await;
    page.click("#close").await;
    page.until("document.getElementById('detail').hidden").await;
    assert_eq!(page.value::<String>("location.search").await, "");

    page.goto("?event=missing").await;
    page.until("document.querySelector('#detail [role=alert]')?.textContent.includes('missing')").await;
    page.expect("404");
    page.is_unharmed().await;
}

async fn a_large_event_is_shown_in_part() {
    let site = Site::start().await;
    let begin = "[\"<script>window.ran = 1</script>\u{202e}";
    let text = format!("{begin}{}\"]", "x".repeat(16 * MIB - begin.len() - 2));
    assert_eq!(text.len(), 16 * MIB);
    let bytes: Vec<u8> = (0..16 * MIB).map(|n| (n * 7 % 256) as u8).collect();
    let numbers = format!("[{}10]", "1,".repeat(8 * MIB - 2));
    assert_eq!([bytes.len(), numbers.len()], [16 * MIB; 2]);
    site.append(vec![event_of("text", "Text", "a", text)]).await;
    site.append(vec![event_of("bytes", "Bytes", "a", bytes)]).await;
    site.append(vec![event_of("numbers", "Numbers", "a", numbers)]).await;
    let page = Page::open(&site.url, "").await;
    // So much data is not loaded without a request.
    page.until_is(&texts("#rows td.c-type"), json!(["Numbers"])).await;
    page.click("#load-after").await;
    page.until_is(&texts("#rows td.c-type"), json!(["Numbers", "Bytes"])).await;
    page.click("#load-after").await;
    page.until_is(&texts("#rows td.c-type"), json!(["Numbers", "Bytes", "Text"])).await;
    assert!(page.value::<u64>("document.getElementById('rows').textContent.length").await < 2000);
    for id in ["text", "bytes", "numbers"] {
        page.goto(&format!("?event={id}")).await;
        page.until("document.querySelector('#detail .below button')").await;
        assert!(page.texts("#detail .content-head .muted").await[0].ends_with("16.0 MiB"), "its size");
        let length = format!("document.querySelector('{DATA}').textContent.length");
        let first: u64 = page.value(&length).await;
        assert!((10_000..100_000).contains(&first), "{first}");
        page.click("#detail .below button").await;
        page.until(&format!("{length} > 200000 && document.querySelector('#detail .below button')")).await;
        page.click("#detail .content-head button[aria-label^='Download']").await;
        page.until_is("window.saved", json!([16 * MIB])).await;
        // The view is left while much of it is still being drawn.
        page.click("#detail .below button").await;
        page.click("#close").await;
        page.until("document.querySelector('#detail-body').childElementCount === 0").await;
        page.is_unharmed().await;
    }
}

async fn an_aggregate_has_its_history() {
    let site = Site::start().await;
    // So large that the server needs several pages for what the list shows at once.
    let data = format!(r#"{{"n":1,"long":"{}"}}"#, "x".repeat(10_000));
    for n in 1..=130_u64 {
        let large = event_of(&format!("a{n}"), "Happened", "order-1", data.clone());
        site.append(vec![large, event(&format!("b{n}"), "order-2")]).await;
    }
    let page = Page::open(&site.url, "?type=Happened").await;
    page.until("document.querySelectorAll('#rows tr').length >= 100").await;
    let shown = page.texts(VERSIONS).await;
    assert_eq!(shown, numbers(260, 261 - shown.len() as u64));
    page.click("#rows tr:nth-child(2) td.c-aggregate a").await;
    page.until_is(&texts("#list-title"), json!(["History of order-1"])).await;
    page.until("document.querySelectorAll('#rows tr').length >= 100").await;
    let shown = page.texts("#rows td.c-revision").await;
    assert_eq!(shown, numbers(1, shown.len() as u64));
    let row = page.texts("#rows tr:nth-child(2) td:not(.c-time)").await;
    assert_eq!(row[..3], ["2", "3", "Happened"]);
    assert!(row[3].starts_with(r#"9.8 KiB {"n":1,"long":"xxx"#), "{row:?}");
    page.click("#load-after").await;
    page.until_is(&texts("#rows td.c-revision"), numbers(1, 130)).await;
    page.until_live().await;
    site.append(vec![event("c", "order-2"), event("d", "order-1")]).await;
    page.until_is(&texts("#rows td.c-revision"), numbers(1, 131)).await;
    page.value::<Value>("(document.getElementById('scroller').scrollTo(0, 0), null)").await;
    page.click("#rows tr:nth-child(2) a.open").await;
    page.until_is(&texts("#detail-title"), json!(["Event 3"])).await;
    page.driver().refresh().await.unwrap();
    page.until_is(&texts("#detail-title"), json!(["Event 3"])).await;
    page.until_is(&texts("#list-title"), json!(["History of order-1"])).await;
    page.click("#leave").await;
    page.until_is(&texts("#list-title"), json!(["Events"])).await;
    page.until_is("location.search", "?type=Happened&event=a2").await;
    page.is_unharmed().await;
}

async fn nothing_that_an_event_contains_does_anything() {
    let script = "<script>window.ran = 1</script>";
    let image = "<img src=x onerror=\"window.ran = 1\">";
    let long = "\u{202e}".repeat(85);
    let long_shown = r"\u{202e}".repeat(85);
    // A name, and how it is displayed.
    let names = [
        (script, script),
        (image, image),
        ("\"'><svg/onload=window.ran=1>", "\"'><svg/onload=window.ran=1>"),
        ("javascript:window.ran=1", "javascript:window.ran=1"),
        ("../../../etc/passwd", "../../../etc/passwd"),
        ("//example.com/x", "//example.com/x"),
        ("https://example.com/?a=b#c", "https://example.com/?a=b#c"),
        ("?event=e1&history=x#top", "?event=e1&history=x#top"),
        ("%2e%2e%2f%00&#x3c;b>", "%2e%2e%2f%00&#x3c;b>"),
        ("gpj.\u{202e}exe", r"gpj.\u{202e}exe"),
        ("\u{2066}a\u{2069}\u{200f}b\u{061c}", r"\u{2066}a\u{2069}\u{200f}b\u{61c}"),
        ("zero\u{200b}\u{200d}\u{feff}width\u{ad}", r"zero\u{200b}\u{200d}\u{feff}width\u{ad}"),
        ("nul\0esc\u{1b}[31m\r\n\t\u{85}", r"nul\u{0}esc\u{1b}[31m\u{d}\u{a}\u{9}\u{85}"),
        ("line\u{2028}ends\u{2029}", r"line\u{2028}ends\u{2029}"),
        (" spaces\u{a0}\u{2003} ", r"\u{20}spaces\u{a0}\u{2003}\u{20}"),
        ("tags\u{e0041}\u{e007f}\u{fe0f}\u{3164}", r"tags\u{e0041}\u{e007f}\u{fe0f}\u{3164}"),
        ("\u{e000}\u{10ffff}", r"\u{e000}\u{10ffff}"),
        ("__proto__", "__proto__"),
        ("constructor", "constructor"),
        ("שלום عربي 日本 🎉 ñ", "שלום عربي 日本 🎉 ñ"),
        (&long, &long_shown),
    ];
    let site = Site::start().await;
    for (name, _) in names {
        let data = json!({ "text": name, name: [name] }).to_string();
        let builder = Event::builder(name, name).id(name).data(data).metadata(&json!({ name: name, "html": image }));
        site.append(vec![builder.build().unwrap()]).await;
    }
    let mut page = Page::open(&site.url, "").await;
    page.until_live().await;
    let shown: Vec<_> = names.iter().rev().map(|(_, shown)| *shown).collect();
    page.until_is(&texts("#rows td.c-type"), json!(shown)).await;
    assert_eq!(page.texts("#rows td.c-aggregate").await, shown);
    page.is_unharmed().await;
    for (nth, (name, shown)) in names.into_iter().enumerate() {
        page.goto("").await;
        page.until(&format!("document.querySelectorAll('#rows tr').length === {}", names.len())).await;
        page.click(&format!("#rows tr:nth-child({}) a.open", names.len() - nth)).await;
        page.until_is(&texts("#detail-title"), json!([format!("Event {}", nth + 1)])).await;
        assert_eq!(page.texts("#detail dd bdi").await, [shown; 3]);
        let query = "new URLSearchParams(location.search).get('event')";
        assert_eq!(page.value::<String>(query).await, name);
        page.driver().refresh().await.unwrap();
        page.until_is(&texts("#detail-title"), json!([format!("Event {}", nth + 1)])).await;
        // Its text direction does not affect its surroundings.
        let isolated = "[...document.querySelectorAll('#detail bdi, #rows bdi')].every((each) => getComputedStyle(each).unicodeBidi === 'isolate')";
        assert!(page.value::<bool>(isolated).await);
        let unseen = r"/[\u202a-\u202e\u2066-\u2069\u200b-\u200f\u0000-\u0008\u000e-\u001f\u2028\u2029\ufeff]/.test(document.documentElement.outerHTML)";
        assert!(!page.value::<bool>(unseen).await, "nothing unseen is in the document");
        for way in ["Raw", "Hex", "Pretty"] {
            let click = format!(
                "([...document.querySelectorAll('#detail [role=group] button')].filter((each) => each.textContent === '{way}').forEach((each) => each.click()), null)"
            );
            page.value::<Value>(&click).await;
            page.until(&format!("{}.every((text) => text.length > 10)", texts(DATA))).await;
        }
        page.is_unharmed().await;
        page.click("#detail dd a").await;
        page.until_is(&texts("#list-title"), json!([format!("History of {shown}")])).await;
        page.until_is(&texts("#rows td.c-type"), json!([shown])).await;
        page.is_unharmed().await;
        page.goto("").await;
        page.until_live().await;
        let fill = format!(
            "(document.querySelector('[name=type]').value = {0}, document.querySelector('[name=aggregate_prefix]').value = {0}, document.getElementById('filters').requestSubmit(), null)",
            json!(name)
        );
        page.value::<Value>(&fill).await;
        // A text field has no line breaks, so these names cannot be entered.
        if !name.contains('\n') {
            page.until_is(&texts("#rows td.c-type"), json!([shown])).await;
        }
        page.is_unharmed().await;
    }

    // Data with all kinds of bytes.
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let very_deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let data: [&[u8]; 8] = [
        b"\xff\xfe<script>window.ran=1</script>",
        script.as_bytes(),
        b"\"\\u202e\\u0000\\ud800</script><script>window.ran=1</script>\"",
        "\"\u{202e}\u{2028}</pre><img src=x onerror=window.ran=1>\"".as_bytes(),
        b"\xef\xbb\xbf{}",
        br#"{"__proto__":{"id":"x"},"id":"y","version":9,"data":{"data_base64":"AA=="}}"#,
        deep.as_bytes(),
        very_deep.as_bytes(),
    ];
    for (nth, data) in data.into_iter().enumerate() {
        site.append(vec![event_of(&format!("data-{nth}"), "Data", "data", data)]).await;
    }
    page.goto("?aggregate=data").await;
    page.until(&format!("document.querySelectorAll('#rows tr').length === {}", data.len())).await;
    for nth in 0..data.len() {
        page.goto(&format!("?aggregate=data&event=data-{nth}")).await;
        page.until(&format!("{}[0]?.length > 1", texts(DATA))).await;
        assert_eq!(page.texts("#detail dd").await[0], format!("data-{nth}"));
        page.is_unharmed().await;
    }

    // The server's error message is shown as text as well.
    page.expect("404");
    for (name, shown) in [(script, script), ("gpj.\u{202e}exe?", r"gpj.\u{202e}exe?")] {
        let address = format!(
            "({}new URLSearchParams({{ event: {} }}), null)",
            "location.search = ",
            json!(format!("no {name}"))
        );
        page.value::<Value>(&address).await;
        page.until("document.querySelector('#detail [role=alert]')").await;
        let told = page.texts("#detail [role=alert]").await[0].clone();
        assert!(told.contains("no ") && (told.contains(shown) || told.contains(r"u{202e}")), "{told}");
        page.is_unharmed().await;
    }
}

const TOKEN: &str = "0123456789abcdef-reads";

async fn a_token_is_asked_for_and_kept_in_the_tab() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let tokens = format!("{TOKEN} read *\n0123456789abcdef-other read tenant-*\n");
    let site = Site::of(store, directory, "127.0.0.1:0", |server| server.tokens(tokens.parse().unwrap())).await;
    site.append(vec![event("e1", "a")]).await;
    let mut page = Page::open(&site.url, "").await;
    page.expect("401");
    page.expect("403");
    page.until("document.activeElement.id === 'token-text'").await;
    assert!(page.texts("#rows tr").await.is_empty());
    page.press("0123456789abcdef-wrong").await;
    page.press(Key::Enter).await;
    page.until("document.getElementById('token-detail').textContent.startsWith('The server did not take this token')")
        .await;
    assert!(page.value::<bool>("sessionStorage.length === 0").await);
    page.write("#token-text", "not ascii ü").await;
    page.press(Key::Enter).await;
    page.until("document.getElementById('token-detail').textContent.includes('ASCII')").await;
    // It is valid, but not for this store.
    page.write("#token-text", "0123456789abcdef-other").await;
    page.press(Key::Enter).await;
    page.until("!document.getElementById('problem').hidden").await;
    assert!(page.texts("#problem").await[0].contains("does not have the right"));
    page.click("#forget").await;
    page.until("document.activeElement.id === 'token-text'").await;
    page.press(TOKEN).await;
    page.click("#token-form button").await;
    page.until_live().await;
    page.until_is(&texts(VERSIONS), numbers(1, 1)).await;
    site.append(vec![event("e2", "a")]).await;
    page.until_is(&texts(VERSIONS), numbers(2, 1)).await;
    page.driver().refresh().await.unwrap();
    page.until_is(&texts(VERSIONS), numbers(2, 1)).await;
    let kept = format!(
        "JSON.stringify([localStorage, document.cookie, location.href, document.documentElement.outerHTML]).includes('{TOKEN}')"
    );
    assert!(!page.value::<bool>(&kept).await, "only the tab's storage has it");
    page.click("#forget").await;
    page.until("!document.getElementById('token').hidden").await;
    assert!(page.value::<bool>("sessionStorage.length === 0 && document.getElementById('app').hidden").await);
    page.is_unharmed().await;
}

async fn the_root_of_many_stores_lists_them() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["orders", "carts"] {
        let store = eventstore::open(&format!("lmdb:{}", directory.path().join(name).display())).await.unwrap();
        store.append(vec![event("e1", name)]).await.unwrap();
        store.close().await.unwrap();
    }
    let many = Many::start(directory.path()).await;
    let page = Page::open(&many.url, "").await;
    page.until_is(&texts("#store-list a"), json!(["carts", "orders"])).await;
    page.is_unharmed().await;
    page.click("#store-list li:nth-child(2) a").await;
    page.until_is(&texts("#rows td.c-aggregate"), json!(["orders"])).await;
    assert_eq!(page.texts("#store").await, ["orders"]);
    page.is_unharmed().await;
    page.click("#all-stores").await;
    page.until_is(&texts("#store-list a"), json!(["carts", "orders"])).await;
    page.goto("stores/carts").await;
    page.until_is(&texts("#rows td.c-aggregate"), json!(["carts"])).await;
    page.click("#rows a.open").await;
    page.until_is(&texts("#detail-title"), json!(["Event 1"])).await;
    page.driver().refresh().await.unwrap();
    page.until_is(&texts("#detail-title"), json!(["Event 1"])).await;
    page.is_unharmed().await;
    drop(page);
    many.stop().await;
}

async fn everything_is_reached_by_keys() {
    let site = Site::start().await;
    site.append((1..=150).map(|n| event(&format!("e{n}"), &format!("a-{n}"))).collect()).await;
    let page = Page::open(&site.url, "").await;
    page.until_live().await;
    let focused = async |id: &str| {
        page.until_is("document.activeElement.getAttribute('aria-label') ?? document.activeElement.id", id).await
    };

    page.press("j").await;
    focused("Event 150").await;
    page.press("j").await;
    focused("Event 149").await;
    page.press("k").await;
    focused("Event 150").await;
    page.press(Key::Down).await;
    page.press(Key::Down).await;
    focused("Event 148").await;
    page.press(Key::End).await;
    focused("Event 51").await;
    page.press(Key::Home).await;
    focused("Event 150").await;
    page.press(Key::Tab).await;
    focused("History of a-150").await;
    page.press("j").await;
    page.press(Key::Enter).await;
    page.until_is(&texts("#detail-title"), json!(["Event 149"])).await;
    focused("detail-title").await;
    page.press(Key::Escape).await;
    page.until("document.getElementById('detail').hidden").await;
    focused("Event 149").await;
    page.press("/").await;
    page.until("document.activeElement.name === 'aggregate'").await;
    page.press("a-7pj/").await;
    assert_eq!(page.value::<String>("document.activeElement.value").await, "a-7pj/", "in a field, keys are text");
    page.press(Key::Escape).await;
    focused("events").await;
    page.press("p").await;
    page.until_is("document.getElementById('pause').getAttribute('aria-pressed')", "true").await;
    page.press("p").await;
    page.until_is("document.getElementById('pause').getAttribute('aria-pressed')", "false").await;
    page.click("#keys").await;
    page.value::<Value>("(document.getElementById('events').focus(), null)").await;
    page.press("p/j").await;
    assert_eq!(page.value::<String>("document.activeElement.id").await, "events", "keys can be switched off");
    assert_eq!(page.value::<String>("document.getElementById('pause').getAttribute('aria-pressed')").await, "false");
    page.click("#keys").await;

    // The Tab key reaches everything that can be used, and the focus is visible.
    page.goto("?event=e150").await;
    page.until(&format!("document.querySelector('{DATA}')")).await;
    page.until_live().await;
    page.value::<Value>("(document.activeElement.blur(), window.reached = new Set(), null)").await;
    let step = "(() => {
        const at = document.activeElement;
        window.reached.add(at);
        const style = getComputedStyle(at);
        return at === document.body || at === document.documentElement || (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1);
    })()";
    for _ in 0..120 {
        page.press(Key::Tab).await;
        assert!(
            page.value::<bool>(step).await,
            "the focus is seen: {}",
            page.value::<String>("document.activeElement.outerHTML.slice(0, 120)").await
        );
    }
    let left = "[...document.querySelectorAll('a[href], button, input, summary, [tabindex=\"0\"]')]
        .filter((each) => each.checkVisibility() && each.tabIndex >= 0 && !each.disabled && !window.reached.has(each))
        .map((each) => each.outerHTML.slice(0, 80))";
    assert_eq!(page.value::<Vec<String>>(left).await, [] as [&str; 0], "not reached");
    assert!(page.value::<u64>("window.reached.size").await > 15);
    page.is_unharmed().await;
}

async fn every_control_has_a_name_and_every_text_contrast() {
    let site = Site::start().await;
    site.append((1..=120).map(|n| event(&format!("e{n}"), "a\u{202e}b")).collect()).await;
    let page = Page::open(&site.url, "").await;
    for path in ["", "?event=e7", "?history=a%E2%80%AEb", "?type=None"] {
        page.goto(path).await;
        page.until_live().await;
        page.until(
            "document.getElementById('detail').hidden || document.querySelector('#detail pre, #detail [role=alert]')",
        )
        .await;
        page.until("document.getElementById('disk').textContent !== '–'").await;
        let nodes = page.cdp("Accessibility.getFullAXTree", json!({})).await;
        let nodes: Vec<_> = nodes["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] != true).collect();
        let role = |node: &Value| node["role"]["value"].as_str().unwrap_or_default().to_owned();
        let name = |node: &Value| node["name"]["value"].as_str().unwrap_or_default().trim().to_owned();
        let is_focusable = |node: &Value| {
            let properties = node["properties"].as_array();
            properties
                .is_some_and(|all| all.iter().any(|one| one["name"] == "focusable" && one["value"]["value"] == true))
        };
        let unnamed: Vec<_> = nodes.iter().filter(|node| is_focusable(node) && name(node).is_empty()).collect();
        assert!(unnamed.is_empty(), "{path}: {unnamed:?}");
        let count = |wanted: &str| nodes.iter().filter(|node| role(node) == wanted).count();
        for landmark in ["banner", "main", "contentinfo"] {
            assert_eq!(count(landmark), 1, "{path}: {landmark}");
        }
        assert_eq!(count("status"), 1, "{path}");
        assert_eq!(count("table"), 1, "{path}");
        let has_rows = path != "?type=None";
        assert_eq!(count("row") > 1 && count("cell") > 4, has_rows, "{path}");
        assert_eq!(count("columnheader"), 5, "{path}");
        let charts: Vec<_> = nodes.iter().filter(|node| role(node) == "image").map(|node| name(node)).collect();
        assert!(charts.len() >= 3 && charts.iter().all(|name| name.starts_with("Now ")), "{path}: {charts:?}");
        assert_eq!(page.value::<Vec<u64>>("[document.querySelectorAll('h1').length, document.querySelectorAll('[aria-live], [role=status]').length]").await, [1, 1]);
        let doubled = "[...document.querySelectorAll('[id]')].map((each) => each.id).filter((id, nth, all) => all.indexOf(id) !== nth)";
        assert_eq!(page.value::<Vec<String>>(doubled).await, [] as [&str; 0]);
        for scheme in ["light", "dark"] {
            page.scheme(scheme).await;
            assert_eq!(page.value::<Vec<String>>(FAINT).await, [] as [&str; 0], "{path}, {scheme}");
        }
        page.is_unharmed().await;
    }
}

/// Texts with a contrast below 4.5 to 1.
const FAINT: &str = "(() => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const paint = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((each) => { const c = each / 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const faint = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let text = walk.nextNode(); text; text = walk.nextNode()) {
        const at = text.parentElement;
        if (!text.data.trim() || !at.checkVisibility()) continue;
        const grounds = [];
        for (let each = at; each; each = each.parentElement) grounds.unshift(getComputedStyle(each).backgroundColor);
        const ground = paint(grounds);
        const ink = paint([...grounds, getComputedStyle(at).color]);
        const [a, b] = [light(ground), light(ink)].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) faint.push(`${text.data.trim().slice(0, 40)} ${ratio.toFixed(2)} ${ink} on ${ground}`);
    }
    return [...new Set(faint)];
})()";

async fn rates_and_the_state_of_the_server_are_told() {
    let site = Site::start().await;
    site.append((1..=1200).map(|n| event(&format!("e{n}"), &format!("a-{}", n % 7))).collect()).await;
    // Messages that only a server in trouble sends.
    let trouble = "
        const fetched = window.fetch;
        window.trouble = null;
        window.fetch = async (...request) => {
            const answer = await fetched(...request);
            if (!window.trouble || !String(request[0]).endsWith('/stats')) return answer;
            const stats = await answer.json();
            stats.fenced = window.trouble;
            stats.server.jobs = [{ kind: 'backup', done: 10, total: 50, started: '2026-11-28T12:30:00Z' }];
            return new Response(JSON.stringify(stats), { headers: { 'Content-Type': 'application/json' } });
        };";
    let page = Page::open_with(&site.url, "", trouble).await;
    page.until_live().await;
    page.until_is(&texts("#count, #aggregates"), json!(["1,200", "7"])).await;
    page.until("/^[0-9.]+ [KMG]iB$/.test(document.getElementById('disk').textContent)").await;
    page.until("document.getElementById('rate').textContent === '0'").await;
    site.append((1..=300).map(|n| event(&format!("f{n}"), "b")).collect()).await;
    page.until("parseFloat(document.getElementById('rate').textContent) > 0 || /highest [1-9]/.test(document.getElementById('rate-range').textContent)").await;
    page.until_is(&texts("#count, #aggregates"), json!(["1,500", "8"])).await;
    page.until(
        "document.getElementById('count-chart').getAttribute('aria-label').startsWith('Now 1,500, +300 in the last ')",
    )
    .await;
    assert!(
        page.value::<bool>(
            "document.querySelector('#rate-chart polyline').getAttribute('points').split(' ').length >= 2"
        )
        .await
    );
    let fact = |name: &str| {
        format!(
            "[...document.querySelectorAll('#server-facts dt')].find((each) => each.textContent === '{name}')?.nextSibling.textContent"
        )
    };
    page.until_is(&fact("Followers"), "1").await;
    page.until_is(&fact("Backend"), "lmdb").await;
    page.until_is(&fact("Appends"), "accepted").await;
    page.until_is(&texts("#jobs li"), json!(["Nothing is running."])).await;
    assert!(page.value::<bool>("document.getElementById('fenced').hidden").await);
    page.value::<Value>("(window.trouble = 'a sync failed: <b>disk</b>\\u202e', null)").await;
    page.until("!document.getElementById('fenced').hidden").await;
    assert!(page.texts("#fenced").await[0].contains(r"a sync failed: <b>disk</b>\u{202e}"));
    assert_eq!(page.value::<String>("document.getElementById('fenced').getAttribute('role')").await, "alert");
    page.until_is(&fact("Appends"), "refused").await;
    page.until("document.querySelector('#jobs li').textContent.startsWith('backup 10 of 50 (20 %), since ')").await;
    assert_eq!(
        page.value::<Vec<u64>>(
            "[document.querySelector('#jobs progress').value, document.querySelector('#jobs progress').max]"
        )
        .await,
        [10, 50]
    );
    page.is_unharmed().await;
}

async fn it_fits_a_phone() {
    let site = Site::start().await;
    let long = "aggregate-".repeat(48);
    site.append((1..=50).map(|n| event_of(&format!("e{n}"), &"Type".repeat(60), &long, r#"{"n":1}"#)).collect()).await;
    let page = Page::open(&site.url, "").await;
    page.size(390, 844).await;
    for path in ["", "?event=e7", &format!("?history={long}")] {
        page.goto(path).await;
        page.until_live().await;
        page.until("document.getElementById('detail').hidden || document.querySelector('#detail pre')").await;
        assert!(
            page.value::<bool>("document.documentElement.scrollWidth <= 390").await,
            "{path}: nothing is beside the screen"
        );
        page.is_unharmed().await;
    }
    page.goto("?event=e7").await;
    page.until("document.querySelector('#detail pre')").await;
    assert_eq!(
        page.value::<Vec<u64>>(
            "(({ width, height }) => [width, height])(document.getElementById('detail').getBoundingClientRect())"
        )
        .await,
        [390, 844]
    );
    page.click("#close").await;
    page.until("document.getElementById('detail').hidden").await;
}

/// Not a test: sample data of a small shop.
async fn the_picture_of_the_documentation() {
    let directory = tempfile::tempdir().unwrap();
    let store = eventstore::open(&format!("lmdb:{}", directory.path().join("orders").display())).await.unwrap();
    let mut shop = Shop::default();
    let now = SystemTime::now();
    for minute in (1..=240_u64).rev() {
        let events: Vec<_> = (0..4).map(|_| shop.next()).collect();
        let times = (0..4_u64).map(|n| now - Duration::from_secs(minute * 60 - n * 13));
        store.append(events).recorded_at(times).await.unwrap();
    }
    store.close().await.unwrap();
    let many = Many::start(directory.path()).await;
    let page = Page::open(&many.url, "stores/orders/").await;
    page.scheme("light").await;
    page.until_live().await;
    for step in 0_u64..48 {
        let busy = 3 + (step * step / 5 + step * 3) % 7;
        let events = serde_json::to_string(&(0..busy).map(|_| shop.next()).collect::<Vec<_>>()).unwrap();
        let headers = "{ 'Content-Type': 'application/json' }";
        let post = format!("fetch('events', {{ method: 'POST', headers: {headers}, body: {} }})", json!(events));
        page.value::<Value>(&format!("({post}, null)")).await;
        tokio::time::sleep(Duration::from_millis(620)).await;
    }
    let placed = "[...document.querySelectorAll('#rows tr')].findIndex((each, nth) => nth > 3 && each.textContent.includes('OrderPlaced'))";
    let nth = page.value::<u64>(placed).await + 1;
    page.click(&format!("#rows tr:nth-child({nth}) a.open")).await;
    page.until(&format!("document.querySelectorAll('{DATA}').length === 2")).await;
    page.point_at("#detail-title").await;
    let picture = page.driver().screenshot_as_png().await.unwrap();
    assert!(picture.len() < 200_000, "{} bytes", picture.len());
    fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/page.png"), picture).unwrap();
    drop(page);
    many.stop().await;
}

#[derive(Default)]
struct Shop {
    events: u64,
}

impl Shop {
    fn next(&mut self) -> Event {
        let n = self.events;
        self.events += 1;
        let order = 1042 + n / 5 - (n * 7 % 5).min(n / 5);
        let customer = ["Ada Lovelace", "Grace Hopper", "Edsger Dijkstra", "Barbara Liskov", "Leslie Lamport"]
            [(order % 5) as usize];
        let cents = 1290 + order * 731 % 9000;
        let method = ["card", "transfer"][(order % 2) as usize];
        let (name, data) = match n % 5 {
            0 => (
                "OrderPlaced",
                json!({ "customer": customer, "items": [{ "sku": format!("TEA-{}", order % 40 + 10), "count": order % 3 + 1 }, { "sku": "CUP-7", "count": 2 }], "cents": cents }),
            ),
            1 => ("OrderPaid", json!({ "cents": cents, "method": method })),
            2 => {
                ("StockReserved", json!({ "warehouse": "north", "shelf": format!("{}-{}", order % 9 + 1, order % 31) }))
            }
            3 => ("OrderPacked", json!({ "parcels": 1, "grams": 350 + order * 37 % 900 })),
            _ => (
                "OrderShipped",
                json!({ "carrier": "post", "tracking": format!("RX{:09}DE", order * 7_654_321 % 1_000_000_000) }),
            ),
        };
        let id = format!(
            "0193{:04x}-{:04x}-7{:03x}-9c4e-{:012x}",
            n / 97,
            n * 40_503 % 65_536,
            n * 311 % 4096,
            n * 0x5DEE_CE66D % (1 << 48)
        );
        let metadata = json!({ "by": "checkout", "correlation_id": format!("c-{order}") });
        Event::builder(name, format!("order-{order}")).id(id).json(&data).metadata(&metadata).build().unwrap()
    }
}
