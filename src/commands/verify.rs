//! `verify`: reads everything and reports what is wrong.

use super::{Ending, interruptible, reading};
use crate::failure::{Failure, tell};
use crate::output::Output;

pub(crate) async fn run(url: &str) -> Result<Ending, Failure> {
    reading(url, async |store| {
        let Some(report) = interruptible("entries", async |ctx| store.verify(ctx).await).await? else {
            return Ok(Ending::Interrupted);
        };
        let mut output = Output::of_work();
        output.field("events", report.events)?;
        output.field("aggregates", report.aggregates)?;
        for finding in &report.findings {
            output.field("wrong", finding)?;
        }
        output.field("verdict", if report.is_clean() { "clean" } else { "damaged" })?;
        output.flush()?;
        if report.is_clean() {
            return Ok(Ending::Finished);
        }
        if report.is_cut_short {
            tell("there is more: the verification ended early");
        }
        Ok(Ending::FoundDamage)
    })
    .await
}
