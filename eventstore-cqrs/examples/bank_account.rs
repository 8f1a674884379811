//! A bank account with cqrs-es over a store: commands, a service outside, a view, tests.
//!
//! `cargo run -p synckit-eventstore-cqrs --example bank_account -- lmdb:./bank`, again and again: the account is still there.

#![allow(clippy::print_stdout, reason = "it shows what it does")]

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use cqrs_es::event_sink::EventSink;
use cqrs_es::persist::{GenericQuery, PersistedEventStore, PersistenceError, QueryReplay, ViewContext, ViewRepository};
use cqrs_es::{Aggregate, AggregateError, CqrsFramework, DomainEvent, EventEnvelope, View};
use eventstore::Store;
use eventstore_cqrs::StoreRepository;
use serde::{Deserialize, Serialize};

/// What a customer asks for.
#[derive(Clone, Debug)]
enum Command {
    Open { owner: String },
    Deposit { cents: u64 },
    Withdraw { cents: u64, atm: String },
    WriteCheck { number: String, cents: u64 },
}

/// What happens to an account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum AccountEvent {
    Opened { owner: String },
    Deposited { cents: u64, balance: u64 },
    Withdrawn { cents: u64, balance: u64 },
    CheckWritten { number: String, cents: u64, balance: u64 },
}

impl DomainEvent for AccountEvent {
    fn event_type(&self) -> String {
        let name = match self {
            AccountEvent::Opened { .. } => "AccountOpened",
            AccountEvent::Deposited { .. } => "MoneyDeposited",
            AccountEvent::Withdrawn { .. } => "MoneyWithdrawn",
            AccountEvent::CheckWritten { .. } => "CheckWritten",
        };
        name.to_owned()
    }

    fn event_version(&self) -> String {
        "1.0".to_owned()
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
enum Refused {
    #[error("the account is open already")]
    AlreadyOpen,
    #[error("the account is not open")]
    NotOpen,
    #[error("there are only {balance} cents in the account")]
    Overdrawn { balance: u64 },
    #[error("the cash machine does not have so much")]
    NoCash,
    #[error("the check was written before")]
    CheckUsed,
}

/// What the bank has outside of its accounts. A command may be decided more than once, so it only asks: the cash is given because
/// of the event.
trait Machines: Send + Sync {
    /// Whether there is so much cash.
    fn has_cash(&self, atm: &str, cents: u64) -> bool;
}

type Services = Box<dyn Machines>;

/// Cash machines that have so much each.
struct Filled(u64);

impl Machines for Filled {
    fn has_cash(&self, _: &str, cents: u64) -> bool {
        cents <= self.0
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Account {
    owner: Option<String>,
    balance: u64,
    checks: Vec<String>,
}

impl Account {
    /// What is left after so much was taken.
    fn left(&self, cents: u64) -> Result<u64, Refused> {
        self.balance.checked_sub(cents).ok_or(Refused::Overdrawn { balance: self.balance })
    }
}

impl Aggregate for Account {
    const TYPE: &'static str = "Account";
    type Command = Command;
    type Event = AccountEvent;
    type Error = Refused;
    type Services = Services;

    async fn handle(&mut self, command: Command, machines: &Services, sink: &EventSink<Self>) -> Result<(), Refused> {
        let event = match (command, &self.owner) {
            (Command::Open { owner }, None) => AccountEvent::Opened { owner },
            (Command::Open { .. }, Some(_)) => return Err(Refused::AlreadyOpen),
            (_, None) => return Err(Refused::NotOpen),
            (Command::Deposit { cents }, _) => AccountEvent::Deposited { cents, balance: self.balance + cents },
            (Command::Withdraw { cents, atm }, _) => {
                let balance = self.left(cents)?;
                if !machines.has_cash(&atm, cents) {
                    return Err(Refused::NoCash);
                }
                AccountEvent::Withdrawn { cents, balance }
            }
            (Command::WriteCheck { number, .. }, _) if self.checks.contains(&number) => return Err(Refused::CheckUsed),
            (Command::WriteCheck { number, cents }, _) => {
                AccountEvent::CheckWritten { number, cents, balance: self.left(cents)? }
            }
        };
        sink.write(event, self).await;
        Ok(())
    }

    fn apply(&mut self, event: AccountEvent) {
        match event {
            AccountEvent::Opened { owner } => self.owner = Some(owner),
            AccountEvent::Deposited { balance, .. } | AccountEvent::Withdrawn { balance, .. } => self.balance = balance,
            AccountEvent::CheckWritten { number, balance, .. } => {
                self.balance = balance;
                self.checks.push(number);
            }
        }
    }
}

/// What a customer sees of an account.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Statement {
    owner: String,
    balance: u64,
    lines: Vec<String>,
}

impl View<Account> for Statement {
    fn update(&mut self, event: &EventEnvelope<Account>) {
        let (line, balance) = match &event.payload {
            AccountEvent::Opened { owner } => {
                self.owner.clone_from(owner);
                return;
            }
            AccountEvent::Deposited { cents, balance } => (format!("deposit +{cents}"), *balance),
            AccountEvent::Withdrawn { cents, balance } => (format!("cash -{cents}"), *balance),
            AccountEvent::CheckWritten { number, cents, balance } => (format!("check {number} -{cents}"), *balance),
        };
        self.lines.push(line);
        self.balance = balance;
    }
}

/// Statements in memory, which a replay makes again when the program starts. One that is kept in a database, and is never behind
/// after a crash, is an `eventstore::Projection`.
#[derive(Default)]
struct Statements(Mutex<HashMap<String, (Statement, i64)>>);

impl ViewRepository<Statement, Account> for Statements {
    async fn load(&self, id: &str) -> Result<Option<Statement>, PersistenceError> {
        Ok(self.load_with_context(id).await?.map(|(statement, _)| statement))
    }

    async fn load_with_context(&self, id: &str) -> Result<Option<(Statement, ViewContext)>, PersistenceError> {
        let statements = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = statements.get(id).cloned();
        Ok(found.map(|(statement, version)| (statement, ViewContext::new(id.to_owned(), version))))
    }

    async fn update_view(&self, statement: Statement, context: ViewContext) -> Result<(), PersistenceError> {
        let mut statements = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let version = statements.get(&context.view_instance_id).map_or(0, |(_, version)| *version);
        if version != context.version {
            return Err(PersistenceError::OptimisticLockError);
        }
        statements.insert(context.view_instance_id, (statement, version + 1));
        Ok(())
    }
}

/// A bank over a store.
struct Bank {
    cqrs: CqrsFramework<Account, PersistedEventStore<StoreRepository, Account>>,
    statements: Arc<Statements>,
}

impl Bank {
    async fn open(store: &Store, services: Services) -> Result<Bank, AggregateError<Refused>> {
        let repository = StoreRepository::new(store.clone());
        let statements = Arc::new(Statements::default());
        let query = || GenericQuery::<Statements, Statement, Account>::new(statements.clone());
        QueryReplay::new(repository.clone(), query()).replay_all().await?;
        let events = PersistedEventStore::new_snapshot_store(repository, 10);
        Ok(Bank { cqrs: CqrsFramework::new(events, vec![Box::new(query())], services), statements })
    }

    /// A command that another one overtook is decided again.
    async fn execute(&self, account: &str, command: Command) -> Result<(), AggregateError<Refused>> {
        loop {
            match self.cqrs.execute(account, command.clone()).await {
                Err(AggregateError::AggregateConflict) => {}
                result => return result,
            }
        }
    }

    async fn statement(&self, account: &str) -> Result<Statement, PersistenceError> {
        Ok(self.statements.load(account).await?.unwrap_or_default())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let store = eventstore::open(&url).await?;
    let bank = Bank::open(&store, Box::new(Filled(50_000))).await?;
    let commands = [
        Command::Open { owner: "Ada".into() },
        Command::Deposit { cents: 10_000 },
        Command::Withdraw { cents: 2_500, atm: "station".into() },
        Command::WriteCheck { number: "1001".into(), cents: 1_250 },
        Command::Withdraw { cents: 1_000_000, atm: "station".into() },
    ];
    for command in commands {
        match bank.execute("account-7", command.clone()).await {
            Ok(()) => println!("{command:?}"),
            Err(AggregateError::UserError(refused)) => println!("{command:?} was refused: {refused}"),
            Err(error) => return Err(error.into()),
        }
    }
    println!("{:#?}", bank.statement("account-7").await?);
    store.close().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use cqrs_es::test::TestFramework;

    use super::*;

    fn bank() -> TestFramework<Account> {
        let machines: Services = Box::new(Filled(100));
        TestFramework::with(machines)
    }

    fn opened(balance: u64) -> Vec<AccountEvent> {
        let owner = AccountEvent::Opened { owner: "Ada".into() };
        vec![owner, AccountEvent::Deposited { cents: balance, balance }]
    }

    fn withdraw(cents: u64) -> Command {
        Command::Withdraw { cents, atm: "station".into() }
    }

    fn check(cents: u64) -> Command {
        Command::WriteCheck { number: "1001".into(), cents }
    }

    #[test]
    fn an_account_is_opened_once_and_before_anything_else() {
        let open = || Command::Open { owner: "Ada".into() };
        let event = AccountEvent::Opened { owner: "Ada".into() };
        bank().given_no_previous_events().when(open()).then_expect_events(vec![event]);
        bank().given(opened(1)).when(open()).then_expect_error(Refused::AlreadyOpen);
        for command in [Command::Deposit { cents: 1 }, withdraw(1), check(1)] {
            bank().given_no_previous_events().when(command).then_expect_error(Refused::NotOpen);
        }
    }

    #[test]
    fn nobody_takes_more_than_there_is() {
        let withdrawn = AccountEvent::Withdrawn { cents: 30, balance: 20 };
        bank().given(opened(50)).when(withdraw(30)).then_expect_events(vec![withdrawn.clone()]);
        bank().given(opened(50)).when(withdraw(51)).then_expect_error(Refused::Overdrawn { balance: 50 });
        bank()
            .given(opened(50))
            .and(vec![withdrawn])
            .when(check(21))
            .then_expect_error(Refused::Overdrawn { balance: 20 });
    }

    #[test]
    fn without_cash_nothing_is_withdrawn() {
        bank().given(opened(500)).when(withdraw(101)).then_expect_error(Refused::NoCash);
    }

    #[test]
    fn a_check_counts_once() {
        let written = AccountEvent::CheckWritten { number: "1001".into(), cents: 5, balance: 45 };
        bank().given(opened(50)).when(check(5)).then_expect_events(vec![written.clone()]);
        bank().given(opened(50)).and(vec![written]).when(check(5)).then_expect_error(Refused::CheckUsed);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_bank_goes_on_where_it_was_with_many_at_the_counter() {
        let directory = tempfile::tempdir().expect("made");
        let url = format!("lmdb:{}", directory.path().join("bank").display());
        let store = eventstore::open(&url).await.expect("opened");
        let bank = Arc::new(Bank::open(&store, Box::new(Filled(100))).await.expect("opened"));
        bank.execute("account-7", Command::Open { owner: "Ada".into() }).await.expect("opened");
        bank.execute("account-7", Command::Deposit { cents: 100 }).await.expect("deposited");
        let customers = (0..8).map(|_| {
            let bank = bank.clone();
            tokio::spawn(async move {
                let mut taken = 0;
                while bank.execute("account-7", withdraw(3)).await.is_ok() {
                    taken += 3;
                }
                taken
            })
        });
        let mut taken = 0;
        for customer in customers.collect::<Vec<_>>() {
            taken += customer.await.expect("no panic");
        }
        assert_eq!(taken, 99, "33 times and not once more");
        drop(bank);
        store.close().await.expect("closed");

        let store = eventstore::open(&url).await.expect("opened again");
        let bank = Bank::open(&store, Box::new(Filled(100))).await.expect("opened again");
        bank.execute("account-7", Command::Deposit { cents: 9 }).await.expect("deposited");
        let statement = bank.statement("account-7").await.expect("there");
        assert_eq!((statement.owner.as_str(), statement.balance, statement.lines.len()), ("Ada", 10, 35));
        assert_eq!(statement.lines.iter().filter(|line| *line == "cash -3").count(), 33);
    }
}
