//! `stats`: the statistics of a store, for people or for programs.
//!
//! Statistics of the process, such as the number of queued appends, are left out: the command has just started.

use std::collections::BTreeMap;

use eventstore::backend::Stats;
use serde::Serialize;
use serde_json::Value;

use super::{Ending, printing, reading};
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(url: &str, json: bool) -> Result<Ending, Failure> {
    reading(url, async |store| {
        let stats = printing(async |ctx| store.stats(ctx).await);
        let Some(stats) = stats.await? else { return Ok(Ending::Interrupted) };
        let mut output = Output::of_printing();
        match json {
            true => output.line(|out| Ok(serde_json::to_writer(out, &Report::new(&stats))?))?,
            false => write(&mut output, &stats)?,
        }
        output.flush()?;
        Ok(Ending::Finished)
    })
    .await
}

/// The output of `--json`. `docs/metrics.md` guarantees its names.
#[derive(Serialize)]
struct Report<'a> {
    backend: &'a str,
    store_id: Option<&'a str>,
    latest_version: u64,
    aggregates: u64,
    bytes_on_disk: Option<u64>,
    fenced: Option<&'a str>,
    engine: BTreeMap<&'a str, Value>,
}

impl<'a> Report<'a> {
    fn new(stats: &'a Stats) -> Self {
        Report {
            backend: &stats.backend,
            store_id: stats.store_id.as_deref(),
            latest_version: stats.latest_version.get(),
            aggregates: stats.aggregates,
            bytes_on_disk: stats.bytes_on_disk,
            fenced: stats.fenced.as_deref(),
            engine: stats.properties.iter().map(|(name, value)| (&**name, number_or_text(value))).collect(),
        }
    }
}

/// Engines report all values as text.
fn number_or_text(value: &str) -> Value {
    value.parse::<u64>().map_or_else(|_| Value::from(value), Value::from)
}

fn write(output: &mut Output, stats: &Stats) -> Result<(), Failure> {
    output.field("backend", &stats.backend)?;
    if let Some(id) = &stats.store_id {
        output.field("store_id", id)?;
    }
    output.field("latest_version", stats.latest_version)?;
    output.field("aggregates", stats.aggregates)?;
    if let Some(bytes) = stats.bytes_on_disk {
        output.field("bytes_on_disk", bytes)?;
    }
    output.field("fenced", stats.fenced.as_deref().unwrap_or("no"))?;
    stats.properties.iter().try_for_each(|(name, value)| output.field(name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_numbers() {
        assert_eq!(number_or_text("1073741824"), Value::from(1 << 30));
        for text in ["", "1.5", "-1", "lz4", "18446744073709551616"] {
            assert_eq!(number_or_text(text), Value::from(text));
        }
    }
}
