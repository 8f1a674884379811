//! The results on the terminal.

use super::results::{Results, number};
use crate::failure::{Failure, escape_controls};
use crate::output::Output;
use crate::table::Columns;

/// Shown where a store has no value.
pub(super) const NOTHING: &str = "-";

pub(super) fn write(output: &mut Output, results: &Results) -> Result<(), Failure> {
    let titles = ["MEASURED".to_owned(), "UNIT".to_owned()];
    let titles = titles.into_iter().chain(results.stores.iter().map(|store| escape_controls(&store.title)));
    let rows = results.rows().into_iter().map(|row| {
        let cells = row.cells.into_iter().map(|cell| cell.map_or(NOTHING.to_owned(), |cell| number(cell.value)));
        [row.title, row.unit.to_owned()].into_iter().chain(cells).collect()
    });
    let rows: Vec<Vec<String>> = std::iter::once(titles.collect()).chain(rows).collect();

    let mut columns = Columns::new(rows[0].len(), |column| column >= 2);
    rows.iter().for_each(|row| columns.fit(row, usize::MAX));
    for row in &rows {
        output.line(|out| columns.write(out, row))?;
    }
    output.text("")?;
    if let Some(bytes) = results.peak_memory_bytes {
        output
            .text(&format!("peak memory of the process, with all stores: {} MiB", number(bytes as f64 / 1048576.0)))?;
    }
    for warning in &results.warnings {
        output.text(&escape_controls(&format!("warning: {warning}")))?;
    }
    Ok(())
}
