//! `schema`: the SQL that creates a store on PostgreSQL.

use eventstore::postgres::{Options, schema};

use super::Ending;
use crate::failure::Failure;
use crate::output::Output;

pub(crate) fn run(url: &str) -> Result<Ending, Failure> {
    let statements = schema(&Options::from_url(url)?)?;
    let mut output = Output::of_printing();
    output.text(&statements)?;
    output.flush()?;
    Ok(Ending::Finished)
}
