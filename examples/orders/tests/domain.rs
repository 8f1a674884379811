//! What may happen to an order, in memory.

use eventstore::testing::given;
use orders::domain::{Cancel, Command, MOST_CENTS, Order, OrderEvent, Pay, Place, Refused, Ship};

fn placed(cents: u32) -> OrderEvent {
    OrderEvent::Placed { customer: "Ada".into(), cents }
}

fn paid(cents: u32) -> OrderEvent {
    OrderEvent::Paid { cents }
}

fn shipped() -> OrderEvent {
    OrderEvent::Shipped { tracking: "T-1".into() }
}

fn cancelled() -> OrderEvent {
    OrderEvent::Cancelled { reason: "changed my mind".into() }
}

fn place(cents: u32) -> Command {
    Command::Place(Place { customer: "Ada".into(), cents })
}

fn pay(cents: u32) -> Command {
    Command::Pay(Pay { cents })
}

fn ship() -> Command {
    Command::Ship(Ship { tracking: "T-1".into() })
}

fn cancel() -> Command {
    Command::Cancel(Cancel { reason: "changed my mind".into() })
}

#[track_caller]
fn leads_to(events: impl IntoIterator<Item = OrderEvent>, command: Command, event: OrderEvent) {
    given::<Order>(events).when(|order| order.decide(&command)).then([event]);
}

#[track_caller]
fn is_refused(events: impl IntoIterator<Item = OrderEvent>, command: Command, refused: Refused) {
    given::<Order>(events).when(|order| order.decide(&command)).then_error(refused);
}

#[test]
fn an_order_is_placed_once_by_somebody_and_costs_something() {
    leads_to([], place(10), placed(10));
    is_refused([placed(10)], place(10), Refused::AlreadyPlaced);
    is_refused([], place(0), Refused::Empty);
    is_refused([], place(MOST_CENTS + 1), Refused::Empty);
    is_refused([], Command::Place(Place { customer: String::new(), cents: 1 }), Refused::Empty);
}

#[test]
fn what_was_not_placed_is_not_known() {
    for command in [pay(1), ship(), cancel()] {
        is_refused([], command, Refused::Unknown);
    }
}

#[test]
fn an_order_is_paid_at_once_or_in_instalments_and_never_twice() {
    leads_to([placed(10)], pay(10), paid(10));
    leads_to([placed(10), paid(4)], pay(6), paid(6));
    is_refused([placed(10), paid(4)], pay(7), Refused::WrongAmount { due: 6 });
    is_refused([placed(10), paid(10)], pay(10), Refused::WrongAmount { due: 0 });
    is_refused([placed(10)], pay(0), Refused::WrongAmount { due: 10 });
}

#[test]
fn an_order_is_shipped_once_it_is_paid() {
    leads_to([placed(10), paid(10)], ship(), shipped());
    is_refused([placed(10), paid(4)], ship(), Refused::NotPaid { due: 6 });
    is_refused([placed(10), paid(10), shipped()], ship(), Refused::AlreadyShipped);
}

#[test]
fn an_order_is_cancelled_until_it_is_shipped() {
    leads_to([placed(10)], cancel(), cancelled());
    leads_to([placed(10), paid(10)], cancel(), cancelled());
    is_refused([placed(10), paid(10), shipped()], cancel(), Refused::AlreadyShipped);
    for command in [pay(10), ship(), cancel()] {
        is_refused([placed(10), cancelled()], command, Refused::Cancelled);
    }
}
