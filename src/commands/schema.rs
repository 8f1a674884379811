//! `schema`: the SQL that creates a store on PostgreSQL.

use eventstore::backend::{Error, is_postgres};
use eventstore::postgres::{Options, schema};

use super::Ending;
use crate::failure::Failure;
use crate::output::Output;

pub(crate) fn run(url: &str) -> Result<Ending, Failure> {
    if !is_postgres(url) {
        let reason =
            "`schema` prints the SQL of a store on PostgreSQL, and needs --store postgres://user@host/database";
        return Err(Error::InvalidOption { option: "store".to_owned(), reason: reason.to_owned() }.into());
    }
    let statements = schema(&Options::from_url(url)?)?;
    let mut output = Output::of_printing();
    output.text(&statements)?;
    output.flush()?;
    Ok(Ending::Finished)
}
