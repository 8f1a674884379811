//! `todo DIR [--hub URL] COMMAND`

use std::io::BufRead as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use eventstore::{BoxError, CancellationToken, Cursor};
use synckit::SyncState;
use todo::domain::Wish;
use todo::{Item, Todos};
use tokio::sync::mpsc;

/// A to-do list that works offline
#[derive(Parser)]
struct Cli {
    /// The directory of the to-dos, a replica; it is made if it is missing
    directory: PathBuf,
    /// The address of the hub, which the directory remembers: needed once
    #[arg(long, global = true, value_name = "URL")]
    hub: Option<String>,
    #[command(subcommand)]
    command: Command,
}

/// A command in a line of `watch`.
#[derive(Parser)]
#[command(name = "", no_binary_name = true, disable_help_flag = true)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Add a to-do
    Add {
        #[arg(required = true, allow_hyphen_values = true)]
        text: Vec<String>,
    },
    /// It is done: the to-do with this number in the list that was shown last
    Done { number: usize },
    /// Give the to-do with this number a new text
    Rename {
        number: usize,
        #[arg(required = true, allow_hyphen_values = true)]
        text: Vec<String>,
    },
    /// Show the to-dos; * is what the hub does not have yet
    List,
    /// Fetch what others did, send what was done here, and show the to-dos
    Sync {
        /// If the hub was restored from a backup, or replaced, go on with what it has. Nothing that was done here is lost
        #[arg(long)]
        accept_history: bool,
    },
    /// Sync all the time, and show what changes; commands may be typed meanwhile
    Watch,
    /// Show which changes could not stay, and why
    Rejected {
        /// And forget them
        #[arg(long)]
        forget: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Err(error) = run(Cli::parse()).await {
        eprintln!("todo: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(cli: Cli) -> Result<(), BoxError> {
    let todos = Todos::open(&cli.directory, cli.hub.as_deref()).await?;
    let done = match cli.command {
        Command::Watch => watch(&todos).await,
        command => {
            let list = todos.list().await?;
            execute(&todos, command, &list).await
        }
    };
    todos.replica.close().await?;
    done
}

/// Does what a command says. Its numbers are those of the list.
async fn execute(todos: &Todos, command: Command, list: &[Item]) -> Result<(), BoxError> {
    match command {
        Command::Add { text } => {
            let text = text.join(" ");
            todos.add(&text).await?;
            println!("added: {text}");
        }
        Command::Done { number } => match decide(todos, list, number, Wish::Finish).await? {
            (text, true) => println!("done: {text}"),
            (text, false) => println!("done already: {text}"),
        },
        Command::Rename { number, text } => {
            let wish = Wish::Rename { text: text.join(" ") };
            println!("renamed: {}", decide(todos, list, number, wish).await?.0);
        }
        Command::List => show(&todos.list().await?),
        Command::Sync { accept_history } => {
            match todos.sync(accept_history).await {
                Err(error) if error.is_offline() => {
                    return Err(format!("{error}; what was done here is kept for the next sync").into());
                }
                done => done?,
            };
            show(&todos.list().await?);
            rejected(todos, false).await?;
        }
        Command::Rejected { forget } => rejected(todos, forget).await?,
        Command::Watch => return Err("it is watched already".into()),
    }
    Ok(())
}

async fn decide(todos: &Todos, list: &[Item], number: usize, wish: Wish) -> Result<(String, bool), BoxError> {
    let item = number.checked_sub(1).and_then(|place| list.get(place));
    let item = item.ok_or_else(|| format!("there is no number {number} in the list"))?;
    let (todo, happened) = todos.decide(&item.id, wish).await?;
    Ok((todo.text.unwrap_or_default(), happened))
}

fn show(list: &[Item]) {
    for (place, Item { todo, is_confirmed, .. }) in list.iter().enumerate() {
        let (done, mark) = (if todo.is_done { 'x' } else { ' ' }, if *is_confirmed { ' ' } else { '*' });
        println!("{:3} [{done}]{mark}{}", place + 1, todo.text.as_deref().unwrap_or_default());
    }
}

async fn rejected(todos: &Todos, forget: bool) -> Result<(), BoxError> {
    for (number, reason) in todos.rejected() {
        println!("rejected: {reason}");
        if forget {
            todos.replica.delete_rejected(number).await?;
        }
    }
    Ok(())
}

/// Syncs in the background, shows the list when it changes, and does what is typed.
async fn watch(todos: &Todos) -> Result<(), BoxError> {
    let mut state = todos.replica.watch_sync();
    let mut changes = todos.replica.subscribe(Cursor::START);
    let stop = CancellationToken::new();
    let (syncing, stopping) = (todos.clone(), stop.clone());
    let mut syncing = tokio::spawn(async move { syncing.run(stopping).await });
    let mut lines = typed();
    let mut list = todos.list().await?;
    show(&list);
    let mut reasons = Vec::new();
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let done = loop {
        tokio::select! {
            notice = changes.next() => {
                if let Err(error) = notice {
                    break Err(error.into());
                }
                while changes.try_next().await?.is_some() {} // they are shown together
                let now = todos.list().await?;
                if now != list {
                    list = now;
                    show(&list);
                }
                let now = todos.rejected();
                for (_, reason) in now.iter().filter(|rejected| !reasons.contains(*rejected)) {
                    println!("rejected: {reason}");
                }
                reasons = now;
            }
            _ = state.changed() => {
                match &*state.borrow_and_update() {
                    SyncState::Behind(_) => {} // not for long
                    state => println!("-- {state}"),
                }
            }
            Some(line) = lines.recv() => match Line::try_parse_from(line.split_whitespace()) {
                Ok(Line { command }) => {
                    if let Err(error) = execute(todos, command, &list).await {
                        println!("no: {error}");
                    }
                }
                Err(_) if line.trim().is_empty() => {}
                Err(_) => println!("no: write add TEXT, done N, rename N TEXT, list or rejected; Ctrl-C ends it"),
            },
            _ = &mut interrupted => break Ok(()),
            ended = &mut syncing => return Ok(ended??),
        }
    };
    stop.cancel();
    syncing.await??;
    done
}

/// The lines that are typed. Reading them holds up its thread, and a process may end meanwhile.
fn typed() -> mpsc::Receiver<String> {
    let (send, lines) = mpsc::channel(64);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if send.blocking_send(line).is_err() {
                break;
            }
        }
    });
    lines
}
