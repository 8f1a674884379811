//! A to-do list that works offline. See `README.md`.

pub mod domain;
pub mod resolver;

use std::collections::HashMap;
use std::path::Path;

use eventstore::{Aggregate, CancellationToken, Event};
use synckit::core::Number;
use synckit::{DecideAgain, DecideError, Entry, Options, Replica, Result, SyncOptions, SyncReport};

use crate::domain::{Refused, Todo, Wish};
use crate::resolver::decide_again;

/// The to-dos of a directory, which is a replica of the hub's.
#[derive(Clone, Debug)]
pub struct Todos {
    pub replica: Replica,
}

/// A to-do in the list.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The id of its aggregate.
    pub id: String,
    pub todo: Todo,
    /// Whether all that happened to it is confirmed by the hub.
    pub is_confirmed: bool,
}

impl Todos {
    /// A new replica needs the address of its hub, which it remembers. The hub need not be there.
    pub async fn open(directory: &Path, hub: Option<&str>) -> Result<Self> {
        let options = Options::new(directory);
        let options = hub.into_iter().fold(options, |options, hub| options.hub(hub));
        Ok(Todos { replica: options.open().await? })
    }

    /// Adds a to-do. It is on this disk when it returns, whether there is a hub or not.
    pub async fn add(&self, text: &str) -> Result<Todo, DecideError<Refused>> {
        let id = format!("todo-{}", Event::new_id());
        Ok(self.decide(&id, Wish::Add { text: text.to_owned() }).await?.0)
    }

    /// Decides on a to-do as it is here, with all that is not confirmed yet. Gives it as it is then, and whether anything
    /// happened.
    pub async fn decide(&self, id: &str, wish: Wish) -> Result<(Todo, bool), DecideError<Refused>> {
        let (todo, appended) = self.replica.decide::<Todo>(id, |todo| todo.decide(&wish)).await?;
        Ok((todo, appended.batch.is_some()))
    }

    /// All to-dos: those that are confirmed, in the hub's order, then those that are not.
    pub async fn list(&self) -> Result<Vec<Item>> {
        let mut items: Vec<Item> = Vec::new();
        let mut places = HashMap::new();
        for entry in self.replica.load().await?.entries {
            let event = entry.event();
            let place = *places.entry(event.aggregate_id().to_owned()).or_insert_with(|| {
                items.push(Item { id: event.aggregate_id().to_owned(), todo: Todo::default(), is_confirmed: true });
                items.len() - 1
            });
            items[place].todo.apply(event.decode()?);
            items[place].is_confirmed &= matches!(entry, Entry::Confirmed(_));
        }
        Ok(items)
    }

    fn options(&self) -> SyncOptions {
        SyncOptions::new().resolver(DecideAgain::new(decide_again))
    }

    /// Fetches what others did, and sends what was done here.
    pub async fn sync(&self, accept_history: bool) -> Result<SyncReport> {
        let options = self.options();
        self.replica.sync_once(&if accept_history { options.accept_history() } else { options }).await
    }

    /// Syncs at once whatever is done here or elsewhere, until it is stopped.
    pub async fn run(&self, stop: CancellationToken) -> Result<()> {
        self.replica.run(&self.options().stop(stop)).await
    }

    /// What was done here and could not stay, with the reasons.
    pub fn rejected(&self) -> Vec<(Number, String)> {
        let rejected = self.replica.rejected();
        rejected.iter().filter_map(|batch| Some((batch.number, batch.reason()?.to_owned()))).collect()
    }
}
