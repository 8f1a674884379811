//! What may happen to a to-do, in memory.

use eventstore::testing::given;
use todo::domain::{LONGEST, Refused, Todo, TodoEvent, Wish};

fn added() -> TodoEvent {
    TodoEvent::Added { text: "buy milk".into() }
}

fn renamed() -> TodoEvent {
    TodoEvent::Renamed { text: "buy oat milk".into() }
}

fn rename() -> Wish {
    renamed().into()
}

#[track_caller]
fn leads_to<const N: usize>(events: impl IntoIterator<Item = TodoEvent>, wish: Wish, then: [TodoEvent; N]) {
    given::<Todo>(events).when(|todo| todo.decide(&wish)).then(then);
}

#[track_caller]
fn is_refused(events: impl IntoIterator<Item = TodoEvent>, wish: Wish, refused: Refused) {
    given::<Todo>(events).when(|todo| todo.decide(&wish)).then_error(refused);
}

#[test]
fn a_todo_is_one_line() {
    leads_to([], added().into(), [added()]);
    is_refused([added()], added().into(), Refused::AlreadyAdded);
    for text in ["", "  ", "two\nlines", &"x".repeat(LONGEST + 1)] {
        is_refused([], Wish::Add { text: text.into() }, Refused::NoText);
        is_refused([added()], Wish::Rename { text: text.into() }, Refused::NoText);
    }
    leads_to([], Wish::Add { text: "é".repeat(LONGEST) }, [TodoEvent::Added { text: "é".repeat(LONGEST) }]);
}

#[test]
fn done_twice_is_done_once() {
    leads_to([added()], Wish::Finish, [TodoEvent::Done]);
    leads_to([added(), TodoEvent::Done], Wish::Finish, []);
    is_refused([], Wish::Finish, Refused::Unknown);
}

#[test]
fn what_is_done_keeps_its_text() {
    leads_to([added()], rename(), [renamed()]);
    leads_to([added(), renamed()], rename(), []);
    is_refused([], rename(), Refused::Unknown);
    let refused = Refused::RenameOfDone { text: "buy milk".into(), wanted: "buy oat milk".into() };
    is_refused([added(), TodoEvent::Done], rename(), refused);
}
