//! Following: the head as this process knows it, and a task that learns of appends by other processes.
//!
//! A notification only says that there may be new events; then the head is read. The head is also read whenever
//! listening begins, and periodically without a notification. So nothing is missed.

use std::sync::Arc;
use std::time::Duration;

use eventstore_api::{Context, Error, Result, Version};
use futures_util::TryStreamExt as _;
use tokio::sync::mpsc;

use crate::connect::Session;
use crate::error::{ConnectError, LONGEST_PAUSE, PgError, pauses};
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

impl Shared {
    pub(crate) async fn wait(self: &Arc<Self>, ctx: &Context, after: Version) -> Result<Version> {
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
                }
            };
            if let Some(newer) = ctx.run(until_closed).await?? {
                return Ok(newer);
            }
        }
    }

    /// Starts the task that learns of appends by others, unless it is running.
    fn follow(self: &Arc<Self>) {
        self.following.get_or_init(|| {
            let shared = self.clone();
            self.connector.handle().spawn(async move {
                let mut pauses = pauses();
                loop {
                    let ended = tokio::select! {
                        () = shared.closing.cancelled() => return,
                        ended = listen(&shared) => ended,
                    };
                    if let Err(error) = ended {
                        tracing::debug!(%error, "nothing can be followed");
                    }
                    let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
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
            let until = tokio::time::Instant::now() + PROBE_AGAIN;
            while tokio::time::Instant::now() < until {
                read_head(shared, &session).await?;
                tokio::time::sleep(shared.poll_interval).await;
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
    if let Some(head) = rows.first().and_then(|row| read::number(row, 0).ok()) {
        shared.has_seen(Version::new(head));
    }
    Ok(())
}
