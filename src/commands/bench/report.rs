//! The report: a self-contained page, with its plots and the numbers in separate files.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::machine::SYNCED_BYTES;
use super::plots;
use super::results::{Cell, Results, number};
use super::summary::NOTHING;
use crate::failure::Failure;

pub(super) const INDEX: &str = "index.html";
const RESULTS: &str = "results.json";

/// Writes everything to an existing directory.
pub(super) fn write(directory: &Path, results: &Results) -> Result<(), Failure> {
    let plots = plots::all(results).map_err(|error| Failure::io("draw the plots", &std::io::Error::other(error)))?;
    let mut json = serde_json::to_string_pretty(results)
        .map_err(|error| Failure::io("write the results as JSON", &std::io::Error::other(error)))?;
    json.push('\n');
    let write = |name: &str, content: &str| {
        let path = directory.join(name);
        fs::write(&path, content).map_err(|error| Failure::io(format_args!("write {}", path.display()), &error))
    };
    for plot in &plots {
        write(&plot.file, &plot.alone())?;
    }
    write(RESULTS, &json)?;
    // Written last, so that an existing page is complete.
    write(INDEX, &Page::new(results, &plots).0)
}

const STYLE: &str = "\
:root{color-scheme:light dark;--text:#222;--page:#fff;--line:#ccc;--faint:#666;--alarm:#b3261e}
@media(prefers-color-scheme:dark){:root{--text:#ddd;--page:#181a1b;--line:#444;--faint:#999;--alarm:#ff8a80}}
body{color:var(--text);background:var(--page);font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;\
padding:0 1rem}
h2{margin-top:2.5rem}
.warning{border:3px solid var(--alarm);color:var(--alarm);font-weight:bold;padding:.5rem 1rem}
.plots{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0;flex:1 1 30rem}
figure svg{width:100%;height:auto}
.wide{overflow-x:auto}
table{border-collapse:collapse}
th,td{border-bottom:1px solid var(--line);padding:.2rem .8rem;text-align:left;vertical-align:top}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}
.faint{color:var(--faint);font-size:.8em;display:block}
.part{padding-left:2.5rem}
";

/// A page while it is built.
struct Page(String);

impl Page {
    fn new(results: &Results, plots: &[plots::Plot]) -> Self {
        let titles: Vec<_> = results.stores.iter().map(|store| store.title.as_str()).collect();
        let title = format!("eventstore bench: {}", titles.join(", "));
        let mut page = Page(String::new());
        page.raw("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
        page.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
        page.block("title", "", &title);
        page.raw(&format!("<style>\n{STYLE}</style>\n</head>\n<body>\n"));
        page.block("h1", "", &title);
        for warning in &results.warnings {
            page.block("p", "warning", &format!("Warning: {warning}"));
        }
        let machine = results.machine.processor.as_deref().unwrap_or(std::env::consts::ARCH);
        page.block("p", "", &format!("{}, on {machine}", results.date));
        page.plots(plots);
        page.numbers(results);
        page.method(results);
        page.circumstances(results);
        page.raw("</body>\n</html>\n");
        page
    }

    fn plots(&mut self, plots: &[plots::Plot]) {
        self.raw("<div class=\"plots\">\n");
        for plot in plots {
            let label = escaped(&plot.title);
            self.raw(&plot.svg.replacen("<svg ", &format!("<figure><svg role=\"img\" aria-label=\"{label}\" "), 1));
            self.raw("</figure>\n");
        }
        self.raw("</div>\n");
    }

    fn numbers(&mut self, results: &Results) {
        self.block("h2", "", "Numbers");
        self.raw("<div class=\"wide\">\n<table>\n<tr>");
        self.element("th", "", "Measured");
        self.element("th", "", "Unit");
        for store in &results.stores {
            self.element("th", "number", &store.title);
        }
        self.raw("</tr>\n");
        for row in results.rows() {
            self.raw("<tr>");
            self.element("td", if row.title.starts_with(' ') { "part" } else { "" }, row.title.trim());
            self.element("td", "", row.unit);
            for cell in row.cells {
                self.cell(cell);
            }
            self.raw("</tr>\n");
        }
        self.raw("</table>\n</div>\n");
        self.block("p", "", "Below a number: the least and the greatest of its parts, to see how much it varies.");
        if let Some(bytes) = results.peak_memory_bytes {
            let mebibytes = number(bytes as f64 / 1_048_576.0);
            self.block("p", "", &format!("Peak memory of the process, with all stores in it: {mebibytes} MiB."));
        }
    }

    fn cell(&mut self, cell: Option<Cell>) {
        let Some(Cell { value, range }) = cell else { return self.element("td", "number", NOTHING) };
        self.raw("<td class=\"number\">");
        self.text(&number(value));
        if let Some((least, greatest)) = range {
            self.element("span", "faint", &format!("{} to {}", number(least), number(greatest)));
        }
        self.raw("</td>");
    }

    fn method(&mut self, results: &Results) {
        let settings = &results.settings;
        let [short, long] = settings.aggregate_lengths;
        self.block("h2", "", "How it was measured");
        self.raw("<ul>\n");
        for point in [
            format!(
                "Each measurement takes {} s for each store, in {} parts: in each part every store has its turn, another one \
                 first. An append measurement ends early after {} events.",
                settings.seconds, settings.slices, settings.most_appended
            ),
            format!(
                "Each store is filled with {} events of {} bytes of data that do not compress, with time-ordered ids, in \
                 batches of 1000. They belong to {} aggregates of {short} events and as many of {long}, in turn.",
                settings.events, settings.data_bytes, settings.aggregates_of_each_length
            ),
            "Then it is read, with everything in the caches that fits, then opened, then appended to. Each appender waits for \
             its answer before it appends again."
                .to_owned(),
            "Every append is durable (Sync) when it is answered, whatever the URL says; only those called buffered are not."
                .to_owned(),
            "A follower waits in a task of its own. Its time counts from the answer to the append, and is 0 if the follower was \
             first."
                .to_owned(),
            "Bytes on disk are those of the store's files after it was closed, as the file system allots them.".to_owned(),
            "Every answer was checked, and at the end every event that was appended was there once, byte for byte."
                .to_owned(),
        ] {
            self.block("li", "", &point);
        }
        self.raw("</ul>\n");
    }

    fn circumstances(&mut self, results: &Results) {
        let (program, settings, machine) = (&results.program, &results.settings, &results.machine);
        let unknown = || "unknown".to_owned();
        self.block("h2", "", "Machine");
        self.table(&[
            ("Processor", machine.processor.clone().unwrap_or_else(unknown)),
            ("Cores", machine.cores.to_string()),
            ("Memory", machine.memory_bytes.map_or_else(unknown, |bytes| format!("{} MiB", bytes >> 20))),
            ("System", machine.system.clone()),
            ("Kernel", machine.kernel.clone().unwrap_or_else(unknown)),
        ]);
        self.block("h2", "", "Settings");
        self.table(&[
            ("Version", program.version.to_owned()),
            ("Build profile", program.profile.to_owned()),
            ("Backends in this build", program.backends.join(", ")),
            ("Date", results.date.clone()),
            ("Seconds a measurement", settings.seconds.to_string()),
            ("Events", settings.events.to_string()),
            ("Seed", settings.seed.to_string()),
            ("Quick", settings.quick.to_string()),
            ("Threads of the runtime", settings.worker_threads.to_string()),
        ]);
        for store in &results.stores {
            self.block("h3", "", &store.title);
            let mut rows = vec![("URL", store.url.clone()), ("Backend", store.backend.clone())];
            let options: Vec<_> = store.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
            rows.push(("Options", if options.is_empty() { "defaults".to_owned() } else { options.join(", ") }));
            if let Some(disk) = &store.disk {
                rows.push(("File system", disk.file_system.clone().unwrap_or_else(unknown)));
                let times = disk.fdatasync_us.map_or_else(unknown, |times| {
                    let [median, .., max] = times.all();
                    format!("{SYNCED_BYTES} bytes: median {} µs, max {} µs", number(median), number(max))
                });
                rows.push(("Append and fdatasync", times));
            }
            rows.extend(store.properties.iter().map(|(name, value)| (name.as_str(), value.clone())));
            self.table(&rows);
        }
    }

    fn table(&mut self, rows: &[(&str, String)]) {
        self.raw("<table>\n");
        for (name, value) in rows {
            self.raw("<tr>");
            self.element("th", "", name);
            self.element("td", "", value);
            self.raw("</tr>\n");
        }
        self.raw("</table>\n");
    }

    /// An element with a text and possibly a class.
    fn element(&mut self, name: &str, class: &str, text: &str) {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        // Writing to a String does not fail.
        let _ = write!(self.0, "<{name}{class}>{}</{name}>", escaped(text));
    }

    /// An element on a line of its own.
    fn block(&mut self, name: &str, class: &str, text: &str) {
        self.element(name, class, text);
        self.raw("\n");
    }

    fn text(&mut self, text: &str) {
        self.0.push_str(&escaped(text));
    }

    fn raw(&mut self, html: &str) {
        self.0.push_str(html);
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_gave_cannot_become_markup() {
        let mut page = Page(String::new());
        page.element("td", "number", "lmdb:?a=<script>&\"b\"");
        assert_eq!(page.0, "<td class=\"number\">lmdb:?a=&lt;script&gt;&amp;&quot;b&quot;</td>");
    }
}
