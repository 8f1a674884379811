//! Following: the head as this process knows it, and a task that learns of appends by other processes.
//!
//! A notification only says that there may be new events; then the head is read. The head is also read whenever
//! listening begins, and periodically without a notification. So nothing is missed.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use eventstore_api::{Context, Error, Result, Version};
use futures_util::TryStreamExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::connect::Session;
use crate::error::{ConnectError, Failed, LONGEST_PAUSE, PgError, pauses};
use crate::mutants::Mutant;
use crate::read;
use crate::store::Shared;

/// How long a listener waits to hear itself before it counts as deaf: a pooler that shares the connection does not pass
/// notifications on.
const PROBE: Duration = Duration::from_secs(2);

/// How often the head is read without a notification.
const IN_ANY_CASE: Duration = Duration::from_secs(10);

/// How often a deaf listener tries again.
const PROBE_AGAIN: Duration = Duration::from_secs(60);

/// The following task has no connection.
#[derive(Debug)]
pub(crate) struct Away {
    /// When the connection was lost, or the first attempt began.
    since: Instant,
    failed: Option<Attempt>,
}

/// The last attempt to connect that failed.
#[derive(Debug)]
struct Attempt {
    began: Instant,
    error: Error,
}

impl Away {
    /// When a call that began at this time gives up, and its error. As long as no attempt failed that began later, the
    /// server may be there.
    fn end(&self, began: Instant, retry_for: Duration) -> Option<(Instant, &Error)> {
        let failed = self.failed.as_ref().filter(|failed| failed.began >= began)?;
        Some((began.max(self.since).checked_add(retry_for)?, &failed.error))
    }
}

impl Shared {
    pub(crate) async fn wait(self: &Arc<Self>, ctx: &Context, after: Version) -> Result<Version> {
        let began = Instant::now();
        loop {
            let mut seen = self.seen.subscribe();
            let known = *seen.borrow();
            if known > after {
                // The known head may be out of date; another process may know a newer one.
                let (head, _) = self.head(ctx).await?;
                if head > after {
                    return Ok(head);
                }
            }
            self.follow();
            let waiting = async {
                if known > after {
                    // The server has lost what was not on its disk. There is no notification when the head is reached
                    // again.
                    tokio::time::sleep(self.poll_interval).await;
                    return Ok(None);
                }
                let newer = seen.wait_for(|seen| *seen > after).await;
                newer.map(|seen| Some(*seen)).map_err(|_| Error::Closed)
            };
            let until_closed = async {
                tokio::select! {
                    biased;
                    newer = waiting => newer,
                    () = self.closing.cancelled() => Err(Error::Closed),
                    () = self.ended.cancelled() => Err(Error::Closed), // together with the runtime of the store
                    error = self.given_up(began) => Err(error),
                }
            };
            let newer = match ctx.run(until_closed).await {
                Ok(newer) => newer?,
                Err(Error::DeadlineExceeded) => return Err(self.failure().unwrap_or(Error::DeadlineExceeded)),
                Err(ended) => return Err(ended),
            };
            if let Some(newer) = newer {
                return Ok(newer);
            }
        }
    }

    /// Ends, with the error, when a wait that began at this time has to: the server has been away for `retry_for`.
    async fn given_up(&self, began: Instant) -> Error {
        let mut away = self.away.subscribe();
        loop {
            let end = match away.borrow_and_update().as_ref().and_then(|away| away.end(began, self.retry_for)) {
                Some((end, error)) if end <= Instant::now() => return error.clone(),
                Some((end, _)) => Some(end),
                None => None,
            };
            let ending = async {
                match end {
                    Some(end) => sleep_until(end).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                _ = away.changed() => {} // never fails: the sender is here
                () = ending => {}
            }
        }
    }

    /// Why the server cannot be reached now.
    fn failure(&self) -> Option<Error> {
        Some(self.away.borrow().as_ref()?.failed.as_ref()?.error.clone())
    }

    /// The following task has no connection, perhaps since an attempt failed.
    fn is_away(&self, failed: Option<Attempt>) {
        self.away.send_if_modified(|away| {
            let away = away.get_or_insert_with(|| Away { since: Instant::now(), failed: None });
            let has_failed = failed.is_some();
            away.failed = failed.or(away.failed.take());
            has_failed // no waiting call has to know anything else
        });
    }

    /// The following task has a connection.
    fn is_there(&self) {
        self.away.send_if_modified(|away| away.take().is_some());
    }

    /// Starts the task that learns of appends by others, unless it is running.
    fn follow(self: &Arc<Self>) {
        self.following.get_or_init(|| {
            let shared = self.clone();
            self.connector.handle().spawn(async move {
                let mut attempts = pauses();
                loop {
                    let began = Instant::now();
                    shared.is_away(None);
                    let ended = tokio::select! {
                        () = shared.closing.cancelled() => return,
                        ended = listen(&shared) => ended,
                    };
                    let had_connection = shared.away.borrow().is_none();
                    let failed = ended.err().map(|error| {
                        tracing::debug!(%error, "nothing can be followed");
                        let error = Failed::of(error, &shared.url, "wait for events").into_error(&shared.url);
                        Attempt { began, error }
                    });
                    // A connection that is lost says nothing of the next one.
                    shared.is_away(failed.filter(|_| !had_connection));
                    if had_connection && began.elapsed() > LONGEST_PAUSE {
                        attempts = pauses(); // it lasted: the next attempt is soon
                    }
                    let pause = attempts.next().unwrap_or(LONGEST_PAUSE);
                    tokio::select! {
                        () = shared.closing.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            });
        });
    }
}

/// Listens until the connection is lost, and reads the head whenever there may be something new.
async fn listen(shared: &Shared) -> Result<(), ConnectError> {
    let (sender, mut heard) = mpsc::unbounded_channel();
    let session = shared.connector.connect(Some(sender)).await?;
    read_head(shared, &session).await?;
    loop {
        if !hears(shared, &session, &mut heard).await? {
            tracing::warn!(
                store = shared.url,
                "notifications do not arrive, so the head is polled every {:?}; the usual reason is a connection \
                 pooler or a standby",
                shared.poll_interval
            );
            let until = Instant::now() + PROBE_AGAIN;
            while Instant::now() < until {
                read_head(shared, &session).await?;
                // It may hear something all the same, only late.
                if let Ok(None) = tokio::time::timeout(shared.poll_interval, heard.recv()).await {
                    return Ok(()); // the connection is lost
                }
            }
            continue;
        }
        // Appends before the listening began were not notified.
        read_head(shared, &session).await?;
        loop {
            match tokio::time::timeout(IN_ANY_CASE, heard.recv()).await {
                Ok(None) => return Ok(()), // the connection is lost
                Ok(Some(first)) => {
                    let mut newest = first;
                    while let Ok(newer) = heard.try_recv() {
                        newest = newer;
                    }
                    let is_known = newest.parse().is_ok_and(|version: Version| version <= *shared.seen.borrow());
                    if is_known {
                        continue;
                    }
                }
                Err(_) if shared.mutants.has(Mutant::NotifiesBeforeCommit) => continue,
                Err(_) => {}
            }
            read_head(shared, &session).await?;
        }
    }
}

/// Whether notifications on the channel arrive.
async fn hears(
    shared: &Shared,
    session: &Session,
    heard: &mut mpsc::UnboundedReceiver<String>,
) -> Result<bool, ConnectError> {
    let listens = session.batch_execute(&format!("LISTEN \"{}\"", shared.channel)).await;
    if let Err(error) = listens {
        return if session.is_closed() { Err(error.into()) } else { Ok(false) };
    }
    let token = uuid::Uuid::new_v4().simple().to_string();
    let probe =
        format!("SELECT set_config('synchronous_commit', 'off', true), pg_notify('{}', '{token}')", shared.channel);
    // On another connection: a session receives its own notifications in any case.
    let other = shared.connector.connect(None).await?;
    if let Err(error) = other.batch_execute(&probe).await {
        return if other.is_closed() { Err(error.into()) } else { Ok(false) };
    }
    let coming = async {
        while let Some(text) = heard.recv().await {
            if text == token {
                return true;
            }
        }
        false
    };
    Ok(tokio::time::timeout(PROBE, coming).await.unwrap_or(false))
}

async fn read_head(shared: &Shared, session: &Session) -> Result<(), PgError> {
    let rows: Vec<_> = session.query(&shared.queries.head, &[]).await?.try_collect().await?;
    shared.is_there();
    if let Some(head) = rows.first().and_then(|row| read::number(row, 0).ok()) {
        shared.has_seen(Version::new(head));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_counted_from_the_loss_or_from_its_own_beginning_once_an_attempt_has_failed_meanwhile() {
        const SECOND: Duration = Duration::from_secs(1);
        let lost = Instant::now();
        let mut away = Away { since: lost, failed: None };
        assert!(away.end(lost, Duration::ZERO).is_none(), "the server may be there");
        away.failed = Some(Attempt { began: lost + SECOND, error: Error::Closed });
        for (began, from) in [(lost - SECOND, lost), (lost, lost), (lost + SECOND, lost + SECOND)] {
            for retry_for in [Duration::ZERO, SECOND] {
                let (end, error) = away.end(began, retry_for).expect("an end");
                assert_eq!(end, from + retry_for);
                assert!(matches!(error, Error::Closed));
            }
        }
        assert!(away.end(lost + 2 * SECOND, Duration::ZERO).is_none(), "the server may be there again");
        assert!(away.end(lost, Duration::MAX).is_none());
    }
}
