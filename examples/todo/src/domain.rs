//! What a to-do is: what can happen to it, and when.

use eventstore::Aggregate;
use serde::{Deserialize, Serialize};

/// What happens to a to-do. The names in the store stay; those in Rust may change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TodoEvent {
    #[serde(rename = "TodoAdded")]
    Added { text: String },
    #[serde(rename = "TodoRenamed")]
    Renamed { text: String },
    #[serde(rename = "TodoDone")]
    Done,
}

/// What somebody wants to happen to a to-do.
#[derive(Clone, Debug, PartialEq)]
pub enum Wish {
    Add { text: String },
    Rename { text: String },
    Finish,
}

/// What somebody wanted when this happened: so that it can be decided again.
impl From<TodoEvent> for Wish {
    fn from(event: TodoEvent) -> Self {
        match event {
            TodoEvent::Added { text } => Wish::Add { text },
            TodoEvent::Renamed { text } => Wish::Rename { text },
            TodoEvent::Done => Wish::Finish,
        }
    }
}

/// The longest text, in characters.
pub const LONGEST: usize = 200;

/// Why something may not happen to a to-do now. A person reads it, perhaps days after the wish.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("a to-do is one line of 1 to {LONGEST} characters")]
    NoText,
    #[error("it was added already")]
    AlreadyAdded,
    #[error("the to-do is not there any more")]
    Unknown,
    #[error("{text:?} is done, so it was not renamed to {wanted:?}")]
    RenameOfDone { text: String, wanted: String },
}

/// A to-do, as far as decisions need to know it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Todo {
    /// `None` before it is added.
    pub text: Option<String>,
    pub is_done: bool,
}

impl Aggregate for Todo {
    type Event = TodoEvent;
    type Error = Refused;

    fn apply(&mut self, event: TodoEvent) {
        match event {
            TodoEvent::Added { text } | TodoEvent::Renamed { text } => self.text = Some(text),
            TodoEvent::Done => self.is_done = true,
        }
    }
}

impl Todo {
    /// What a wish leads to. No events: what is wanted is so already.
    pub fn decide(&self, wish: &Wish) -> Result<Vec<TodoEvent>, Refused> {
        if let Wish::Add { text } | Wish::Rename { text } = wish
            && (text.trim().is_empty() || text.chars().count() > LONGEST || text.contains(char::is_control))
        {
            return Err(Refused::NoText);
        }
        match (wish, &self.text) {
            (Wish::Add { text }, None) => Ok(vec![TodoEvent::Added { text: text.clone() }]),
            (Wish::Add { .. }, Some(_)) => Err(Refused::AlreadyAdded),
            (_, None) => Err(Refused::Unknown),
            (Wish::Rename { text: wanted }, Some(text)) if text == wanted => Ok(Vec::new()),
            (Wish::Rename { text: wanted }, Some(text)) if self.is_done => {
                Err(Refused::RenameOfDone { text: text.clone(), wanted: wanted.clone() })
            }
            (Wish::Rename { text }, Some(_)) => Ok(vec![TodoEvent::Renamed { text: text.clone() }]),
            (Wish::Finish, Some(_)) if self.is_done => Ok(Vec::new()),
            (Wish::Finish, Some(_)) => Ok(vec![TodoEvent::Done]),
        }
    }
}
