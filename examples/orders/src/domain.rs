//! What an order is: what can happen to it, and when.

use eventstore::Aggregate;
use serde::{Deserialize, Serialize};

/// What happens to an order. The names in the store stay; those in Rust may change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum OrderEvent {
    #[serde(rename = "OrderPlaced")]
    Placed { customer: String, cents: u32 },
    /// The whole price or an instalment.
    #[serde(rename = "OrderPaid")]
    Paid { cents: u32 },
    #[serde(rename = "OrderShipped")]
    Shipped { tracking: String },
    #[serde(rename = "OrderCancelled")]
    Cancelled { reason: String },
}

/// The most that an order may cost.
pub const MOST_CENTS: u32 = 100_000_000;

/// What somebody wants to happen to an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    Place(Place),
    Pay(Pay),
    Ship(Ship),
    Cancel(Cancel),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    pub customer: String,
    pub cents: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pay {
    pub cents: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ship {
    pub tracking: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cancel {
    pub reason: String,
}

/// Why something may not happen to an order now.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("there is no such order")]
    Unknown,
    #[error("the order was placed already")]
    AlreadyPlaced,
    #[error("an order has a customer, and costs from 1 to {MOST_CENTS} cents")]
    Empty,
    #[error("{due} cents are due, and a payment is at least 1 cent and not more than that")]
    WrongAmount { due: u32 },
    #[error("{due} cents have to be paid before the order is shipped")]
    NotPaid { due: u32 },
    #[error("the order was shipped already")]
    AlreadyShipped,
    #[error("the order was cancelled")]
    Cancelled,
}

impl Refused {
    /// The stable name, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Refused::Unknown => "unknown_order",
            Refused::AlreadyPlaced => "already_placed",
            Refused::Empty => "empty_order",
            Refused::WrongAmount { .. } => "wrong_amount",
            Refused::NotPaid { .. } => "not_paid",
            Refused::AlreadyShipped => "already_shipped",
            Refused::Cancelled => "order_cancelled",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// No event yet.
    #[default]
    New,
    Placed,
    Paid,
    Shipped,
    Cancelled,
}

/// An order, as far as decisions need to know it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Order {
    pub status: Status,
    pub customer: String,
    /// The price.
    pub cents: u32,
    /// What is left to pay.
    pub due: u32,
}

impl Aggregate for Order {
    type Event = OrderEvent;
    type Error = Refused;

    fn apply(&mut self, event: OrderEvent) {
        match event {
            OrderEvent::Placed { customer, cents } => {
                *self = Order { status: Status::Placed, customer, cents, due: cents };
            }
            OrderEvent::Paid { cents } => {
                self.due -= cents;
                if self.due == 0 {
                    self.status = Status::Paid;
                }
            }
            OrderEvent::Shipped { .. } => self.status = Status::Shipped,
            OrderEvent::Cancelled { .. } => self.status = Status::Cancelled,
        }
    }
}

impl Order {
    /// What a command leads to.
    pub fn decide(&self, command: &Command) -> Result<Vec<OrderEvent>, Refused> {
        match (command, self.status) {
            (Command::Place(Place { customer, cents }), Status::New) => {
                if customer.is_empty() || !(1..=MOST_CENTS).contains(cents) {
                    return Err(Refused::Empty);
                }
                Ok(vec![OrderEvent::Placed { customer: customer.clone(), cents: *cents }])
            }
            (Command::Place(_), _) => Err(Refused::AlreadyPlaced),
            (_, Status::New) => Err(Refused::Unknown),
            (_, Status::Cancelled) => Err(Refused::Cancelled),
            (Command::Pay(Pay { cents }), _) => match (1..=self.due).contains(cents) {
                true => Ok(vec![OrderEvent::Paid { cents: *cents }]),
                false => Err(Refused::WrongAmount { due: self.due }),
            },
            (_, Status::Shipped) => Err(Refused::AlreadyShipped),
            (Command::Ship(_), Status::Placed) => Err(Refused::NotPaid { due: self.due }),
            (Command::Ship(Ship { tracking }), Status::Paid) => {
                Ok(vec![OrderEvent::Shipped { tracking: tracking.clone() }])
            }
            (Command::Cancel(Cancel { reason }), Status::Placed | Status::Paid) => {
                Ok(vec![OrderEvent::Cancelled { reason: reason.clone() }])
            }
        }
    }
}
