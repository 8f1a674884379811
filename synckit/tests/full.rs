//! A full disk, simulated by a limit on the size of files. It is a separate test binary, since the limit applies to the
//! process.

#![cfg(unix)]

use eventstore::Event;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use synckit::{Error, Options, SyncOptions, SyncState};
use tokio::signal::unix::{SignalKind, signal};

fn event(id: &str) -> Event {
    Event::builder("Happened", "x").id(id).data("0123456789".repeat(300)).build().expect("valid")
}

fn limit(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).expect("set");
}

#[tokio::test]
async fn what_has_no_room_is_not_there_and_what_comes_later_is() {
    let _ignored = signal(SignalKind::from_raw(25)).expect("SIGXFSZ is handled");
    let directory = tempfile::tempdir().expect("a directory");
    let hub = eventstore::open("memory:").await.expect("memory");
    let options = || Options::new(directory.path().join("a")).hub_store(hub.clone());
    let a = options().open().await.expect("a replica");
    let (mut acknowledged, mut refused) = (Vec::new(), Vec::new());
    for round in 0..3 {
        limit(Some(100 << 10));
        for number in 0..100 {
            let ids = [format!("{round}-{number}"), format!("{round}-{number} together")];
            // Two at once are one write.
            let (one, other) = tokio::join!(a.append(event(&ids[0])), a.append(event(&ids[1])));
            for (id, appended) in ids.into_iter().zip([one, other]) {
                match appended {
                    Ok(_) => acknowledged.push(id),
                    Err(Error::Store(eventstore::Error::Full { reason })) => {
                        assert!(reason.contains("make room on the replica's disk"), "{reason}");
                        refused.push(id);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
        let pending = a.pending();
        assert!(pending.iter().flat_map(|batch| &batch.events).map(Event::id).eq(&acknowledged), "round {round}");
        limit(None);
        // Also one of those that had no room.
        for id in [format!("{round} later"), refused[0].clone()] {
            if !acknowledged.contains(&id) {
                a.append(event(&id)).await.expect("there is room");
                acknowledged.push(id);
            }
        }
    }
    assert!(refused.len() > 10, "{}", refused.len());
    a.close().await.expect("closed");
    let a = options().open().await.expect("a replica");
    assert!(a.pending().iter().flat_map(|batch| &batch.events).map(Event::id).eq(&acknowledged));
    a.sync_once(&SyncOptions::new()).await.expect("a sync");
    let all = hub.load(eventstore::Version::ZERO).await.expect("a load");
    assert!(all.iter().map(|recorded| recorded.event.id()).eq(&acknowledged));

    // Pulled events have no room either, and come later.
    let many: Vec<_> = (0..1_000).map(|number| event(&format!("h{number}"))).collect();
    hub.append(many).await.expect("appended");
    limit(Some(100 << 10));
    let full = a.sync_once(&SyncOptions::new()).await;
    assert!(full.is_err(), "{full:?}");
    assert!(matches!(a.sync_state(), SyncState::Failed(_)), "{}", a.sync_state());
    assert_eq!(a.load().await.expect("a load").entries.len(), acknowledged.len());
    limit(None);
    a.sync_once(&SyncOptions::new()).await.expect("there is room");
    assert_eq!(a.cursor().await.expect("a cursor"), hub.cursor().await.expect("a cursor"));
}
