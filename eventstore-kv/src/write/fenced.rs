//! The answer of a fenced store to an append (rule F1). Nothing is written. But the append may be a retry, and `Fenced`
//! guarantees that no earlier attempt has written it either.

use eventstore_api::{Error, Result, StoreOutcome, Stored, Version};

use crate::engine::Engine;
use crate::format::keys;
use crate::read::reader;
use crate::shared::{Shared, with_causes};
use crate::write::queue::Request;
use crate::write::staging::require_same;

/// The answer to a request. No commit is running.
///
/// # Errors
///
/// `Fenced` if none of its events is or may be stored; `OutcomeUnknown` if one may be; `DuplicateEvent`. Never anything
/// else.
pub(crate) fn answer<E: Engine>(shared: &Shared<E>, request: &Request) -> Result<Vec<Stored>> {
    let fenced = || Error::Fenced { reason: shared.fence_reason().unwrap_or_default().to_owned() };
    match look_up(shared, request) {
        Ok(Some(places)) => Ok(places),
        Ok(None) => Err(fenced()),
        Err(Doubt::Duplicate(error)) => Err(error),
        Err(Doubt::Unknown(why)) => Err(Error::OutcomeUnknown {
            reason: format!("{why}, and the writer is fenced; close and reopen the store first"),
            source: Some(fenced().into()),
        }),
    }
}

/// Why there are no positions to return.
enum Doubt {
    /// Rule W2.
    Duplicate(Error),
    Unknown(String),
}

/// The positions of the events if all are stored; `None` if one is not.
fn look_up<E: Engine>(shared: &Shared<E>, request: &Request) -> Result<Option<Vec<Stored>>, Doubt> {
    let failed = |error: Error| Doubt::Unknown(format!("it could not be looked up ({})", with_causes(&error)));
    let (stored, doubtful) = (shared.log.last(), shared.doubtful());
    let mut places = Vec::with_capacity(request.events.len());
    let mut key = Vec::new();
    for event in &request.events {
        keys::write_id(&mut key, event.id());
        let found = shared.with_parts(|parts| shared.index.view(parts.engine()?).find_id(&key));
        match found.map_err(failed)? {
            Some(version) if version <= stored => {
                let first = reader::read_found(&shared.log, event.id(), version).map_err(failed)?;
                require_same(request.idempotency, &first, event).map_err(Doubt::Duplicate)?;
                if request.is_sync() && shared.log.synced() < version {
                    return Err(Doubt::Unknown("it is stored but not synced".to_owned()));
                }
                places.push(Stored::new(Version::new(version), first.revision, StoreOutcome::AlreadyStored));
            }
            Some(version) if version <= doubtful => {
                return Err(Doubt::Unknown("an earlier attempt was in the commit that failed".to_owned()));
            }
            _ => {}
        }
    }
    Ok((places.len() == request.events.len()).then_some(places))
}
