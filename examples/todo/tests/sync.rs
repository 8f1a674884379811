//! Two lists and their hub, a store in memory: what becomes of changes of the same to-do.

use eventstore::{Store, Version};
use synckit::{Options, SyncReport};
use tempfile::TempDir;
use todo::domain::{TodoEvent, Wish};
use todo::{Item, Todos};

struct Lists {
    hub: Store,
    ada: Todos,
    ben: Todos,
    _directory: TempDir,
}

impl Lists {
    /// Both have one to-do, `buy milk`.
    async fn with_milk() -> Self {
        let hub = eventstore::open("memory:").await.expect("opened");
        let directory = tempfile::tempdir().expect("made");
        let open = async |name: &str| {
            let options = Options::new(directory.path().join(name)).hub_store(hub.clone());
            Todos { replica: options.open().await.expect("opened") }
        };
        let (ada, ben) = (open("ada").await, open("ben").await);
        ada.add("buy milk").await.expect("added");
        sync(&ada).await;
        sync(&ben).await;
        Lists { hub, ada, ben, _directory: directory }
    }

    /// Ada comes to the hub first. In the end both have the same.
    async fn sync(&self) -> Vec<Item> {
        for todos in [&self.ada, &self.ben, &self.ada] {
            sync(todos).await;
        }
        let (of_ada, of_ben) = (self.ada.list().await.expect("read"), self.ben.list().await.expect("read"));
        assert_eq!(of_ada, of_ben);
        of_ada
    }

    async fn events(&self) -> Vec<TodoEvent> {
        let events = self.hub.load(Version::ZERO).await.expect("loaded");
        events.iter().map(|recorded| recorded.decode().expect("an event of a to-do")).collect()
    }
}

async fn sync(todos: &Todos) -> SyncReport {
    let report = todos.sync(false).await.expect("synced");
    assert_eq!(report.waiting, None);
    report
}

async fn change(todos: &Todos, wish: Wish) {
    let id = todos.list().await.expect("read")[0].id.clone();
    todos.decide(&id, wish).await.expect("decided");
}

fn rename(text: &str) -> Wish {
    Wish::Rename { text: text.to_owned() }
}

fn reasons(todos: &Todos) -> Vec<String> {
    todos.rejected().into_iter().map(|(_, reason)| reason).collect()
}

#[tokio::test]
async fn what_two_have_done_is_done_once_and_nobody_is_bothered() {
    let lists = Lists::with_milk().await;
    change(&lists.ada, Wish::Finish).await;
    change(&lists.ben, Wish::Finish).await;
    assert!(!lists.ben.list().await.expect("read")[0].is_confirmed);
    let list = lists.sync().await;
    assert!(list[0].todo.is_done && list[0].is_confirmed);
    assert_eq!(lists.events().await, [TodoEvent::Added { text: "buy milk".into() }, TodoEvent::Done]);
    assert_eq!(lists.ben.replica.rejected().len(), 0);
}

#[tokio::test]
async fn a_rename_of_what_is_done_meanwhile_is_rejected_with_a_reason_and_what_stands_on_it_is_decided_again() {
    let lists = Lists::with_milk().await;
    change(&lists.ada, Wish::Finish).await;
    change(&lists.ben, rename("buy oat milk")).await;
    change(&lists.ben, Wish::Finish).await;
    lists.ben.add("call Eve").await.expect("added");
    let list = lists.sync().await;
    let texts: Vec<_> = list.iter().map(|item| (item.todo.text.as_deref(), item.todo.is_done)).collect();
    assert_eq!(texts, [(Some("buy milk"), true), (Some("call Eve"), false)]);
    assert_eq!(reasons(&lists.ben), [r#""buy milk" is done, so it was not renamed to "buy oat milk""#]);
    assert_eq!(reasons(&lists.ada), [""; 0]);
}

#[tokio::test]
async fn of_two_new_texts_the_one_that_comes_last_to_the_hub_stays() {
    let lists = Lists::with_milk().await;
    change(&lists.ada, rename("buy oat milk")).await;
    change(&lists.ben, rename("buy soy milk")).await;
    assert_eq!(lists.sync().await[0].todo.text.as_deref(), Some("buy soy milk"));
    assert_eq!(lists.events().await.len(), 3);
    // And the same text twice is one change.
    change(&lists.ada, rename("buy milk")).await;
    change(&lists.ben, rename("buy milk")).await;
    lists.sync().await;
    assert_eq!(lists.events().await.len(), 4);
}
