//! The tables: created if they are missing, and migrated from older versions.

use std::str::FromStr as _;

use eventstore_api::{Error, Result};
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;

use crate::Options;
use crate::connect::Session;
use crate::error::{Failed, PgError};
use crate::options::invalid;

/// The version of the tables. Each step leads to the next version.
const FORMAT: i32 = STEPS.len() as i32;
const STEPS: [&str; 1] = [include_str!("schema.sql")];

/// The SQL statements that create the store of the options' schema, for users who may not create it themselves.
///
/// # Errors
///
/// `InvalidOption` for an invalid schema name.
pub fn statements(options: &Options) -> Result<String> {
    options.config()?;
    let id = uuid::Uuid::new_v4().simple().to_string();
    let schema = &options.schema;
    Ok(format!("BEGIN;\nCREATE SCHEMA IF NOT EXISTS \"{schema}\";\n\n{}COMMIT;\n", steps(schema, 0, &id)))
}

/// The steps from a version on.
fn steps(schema: &str, from: usize, store_id: &str) -> String {
    let schema = format!("\"{schema}\"");
    STEPS[from..].iter().map(|step| step.replace("{schema}", &schema).replace("{store_id}", store_id)).collect()
}

/// The content of the schema.
enum Found {
    Nothing,
    Store { format: i32, id: String },
}

async fn look(session: &Session, schema: &str) -> std::result::Result<Found, PgError> {
    let rows = session.simple_query(&format!("SELECT format, store_id FROM \"{schema}\".head")).await;
    let rows = match rows {
        Err(error) if matches!(error.code(), Some(&SqlState::INVALID_SCHEMA_NAME | &SqlState::UNDEFINED_TABLE)) => {
            return Ok(Found::Nothing);
        }
        rows => rows?,
    };
    for row in rows {
        if let SimpleQueryMessage::Row(row) = row {
            let format = row.try_get(0)?.and_then(|format| i32::from_str(format).ok()).unwrap_or_default();
            return Ok(Found::Store { format, id: row.try_get(1)?.unwrap_or_default().to_owned() });
        }
    }
    Ok(Found::Store { format: 0, id: String::new() })
}

/// Ensures that the store exists, and returns its id.
pub(crate) async fn prepare(session: &Session, options: &Options, url: &str) -> std::result::Result<String, Failed> {
    let failed = |error: PgError| match error.code() {
        // Tables with these names but other columns, or other objects with these names.
        Some(&SqlState::UNDEFINED_COLUMN | &SqlState::DUPLICATE_TABLE | &SqlState::WRONG_OBJECT_TYPE) => {
            let what = format!(
                "{url} has a table named events or head that does not belong to a store; choose another schema"
            );
            Failed::Final(invalid("schema", &what))
        }
        _ => Failed::of(error, url, "open the store"),
    };
    let of_store = |found| match found {
        Found::Store { format, id } if format == FORMAT => Ok(Some(id)),
        Found::Store { format, .. } if format > FORMAT => Err(Failed::Final(Error::Unsupported {
            what: format!(
                "the store at {url} has version {format} of its tables, and this program knows {FORMAT}; update it"
            ),
        })),
        Found::Store { format: 0, .. } => Err(Failed::Final(Error::Corrupt {
            version: None,
            reason: format!("{url} has no row in the table head; restore a backup of the database"),
        })),
        _ => Ok(None),
    };
    let found = look(session, &options.schema).await.map_err(failed)?;
    let is_missing = matches!(found, Found::Nothing);
    if let Some(id) = of_store(found)? {
        return Ok(id);
    }
    if !options.create_if_missing || options.read_only {
        let reason = match is_missing {
            true => "there is no store",
            false => "its tables have an older version; open it for writing once to update them",
        };
        return Err(Failed::Final(Error::Open { path: url.to_owned(), reason: reason.to_owned(), source: None }));
    }
    create(session, &options.schema).await.map_err(failed)?;
    match of_store(look(session, &options.schema).await.map_err(failed)?)? {
        Some(id) => Ok(id),
        None => Err(Failed::Final(invalid("schema", &format!("{url} has tables that do not belong to a store")))),
    }
}

/// Creates or migrates the tables; only one process at a time does so.
async fn create(session: &Session, schema: &str) -> std::result::Result<(), PgError> {
    // One advisory lock for all stores of the database: this is rare.
    const LOCK: i64 = 0x65_76_65_6e_74_73; // "events"
    session.batch_execute(&format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK})")).await?;
    let worked = async {
        // A user who may use a schema may not be allowed to create one.
        if !is_true(session, &format!("SELECT to_regnamespace('\"{schema}\"') IS NOT NULL")).await? {
            session.batch_execute(&format!("CREATE SCHEMA \"{schema}\"")).await?;
        }
        // Checked first, because an error would abort the transaction.
        let from = match is_true(session, &format!("SELECT to_regclass('\"{schema}\".head') IS NOT NULL")).await? {
            false => 0,
            true => match look(session, schema).await? {
                Found::Store { format, .. } => usize::try_from(format).unwrap_or_default().min(STEPS.len()),
                Found::Nothing => 0,
            },
        };
        session.batch_execute(&steps(schema, from, &uuid::Uuid::new_v4().simple().to_string())).await?;
        session.batch_execute("COMMIT").await
    };
    let worked = worked.await;
    if worked.is_err() {
        let _ = session.batch_execute("ROLLBACK").await; // if it fails, the connection is lost, which has the same effect
    }
    worked
}

async fn is_true(session: &Session, question: &str) -> std::result::Result<bool, PgError> {
    let rows = session.simple_query(question).await?;
    let is_true = |row: &SimpleQueryMessage| match row {
        SimpleQueryMessage::Row(row) => matches!(row.get(0), Some("t" | "true")),
        _ => false,
    };
    Ok(rows.iter().any(is_true))
}
