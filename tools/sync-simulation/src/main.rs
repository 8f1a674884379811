//! Runs random schedules of replicas and a hub, and looks for what may never happen.

#![allow(clippy::print_stdout, reason = "it is a command")]

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Parser;
use sync_simulation::{Healed, run};
use synckit::core::Rule;

/// Runs random schedules of replicas and a hub, and looks for what may never happen.
///
/// Ends with 1 if something did; with --without, if a rule was switched off and nothing did.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many schedules.
    #[arg(short = 'n', long, default_value_t = 10_000)]
    schedules: u64,
    /// The seed of the first.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many things happen in each before messages flow again.
    #[arg(long, default_value_t = 120)]
    steps: usize,
    /// Runs only this one, and tells its story.
    #[arg(long)]
    seed: Option<u64>,
    /// Switches a rule off, by its name.
    #[arg(long, value_name = "RULE", value_parser = rule)]
    off: Option<Rule>,
    /// Switches each rule off in turn, until a schedule breaks.
    #[arg(long)]
    without: bool,
    /// Lists the rules.
    #[arg(long)]
    list: bool,
}

fn rule(name: &str) -> Result<Rule, String> {
    let found = Rule::ALL.iter().find(|rule| format!("{rule:?}").eq_ignore_ascii_case(name));
    found.copied().ok_or_else(|| format!("{name:?} is none of the rules that --list shows"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        Rule::ALL.iter().for_each(|rule| println!("{rule:?}: {}", rule.about()));
        return ExitCode::SUCCESS;
    }
    if arguments.without {
        let found: Vec<_> = Rule::ALL.iter().map(|rule| finds(*rule, &arguments)).collect();
        return if found.into_iter().all(|found| found) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let all = || match arguments.seed {
        Some(seed) => one(seed, arguments.steps),
        None => many(&arguments),
    };
    match arguments.off {
        Some(rule) => rule.without(all),
        None => all(),
    }
}

fn one(seed: u64, steps: usize) -> ExitCode {
    match run(seed, steps, true) {
        Ok(Healed { batches, rounds }) => {
            println!("{batches} batches, healed after {rounds} rounds");
            ExitCode::SUCCESS
        }
        Err(broken) => {
            println!("BROKEN {}", broken.0);
            ExitCode::FAILURE
        }
    }
}

fn many(arguments: &Arguments) -> ExitCode {
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let off = arguments.off;
    let work = |worker: u64| {
        let (mut batches, mut rounds, mut broken) = (0, 0, BTreeMap::<String, (u64, u64)>::new());
        let mut all = || {
            for number in (worker..arguments.schedules).step_by(workers as usize) {
                let seed = arguments.first + number;
                match run(seed, arguments.steps, false) {
                    Ok(healed) => {
                        batches += healed.batches;
                        rounds = rounds.max(healed.rounds);
                    }
                    Err(what) => {
                        let (count, first) = broken.entry(what.0).or_insert((0, seed));
                        *count += 1;
                        *first = seed.min(*first);
                    }
                }
            }
        };
        match off {
            Some(rule) => rule.without(all),
            None => all(),
        }
        (batches, rounds, broken)
    };
    let parts: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a schedule does not panic")).collect()
    });
    let (mut batches, mut rounds, mut broken) = (0, 0, BTreeMap::<String, (u64, u64)>::new());
    for (more, most, others) in parts {
        batches += more;
        rounds = rounds.max(most);
        for (what, (count, first)) in others {
            let known = broken.entry(what).or_insert((0, first));
            *known = (known.0 + count, known.1.min(first));
        }
    }
    let count: u64 = broken.values().map(|(count, _)| count).sum();
    let schedules = arguments.schedules;
    println!("{schedules} schedules, {batches} batches, {count} broken, healed after at most {rounds} rounds");
    for (what, (count, first)) in &broken {
        println!("    {count:6} {what} (--seed {first})");
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether a schedule breaks without the rule.
fn finds(rule: Rule, arguments: &Arguments) -> bool {
    let seeds = arguments.first..arguments.first + arguments.schedules;
    let found =
        rule.without(|| seeds.into_iter().find_map(|seed| Some((seed, run(seed, arguments.steps, false).err()?))));
    match &found {
        Some((seed, broken)) => println!("{rule:?}: {} (--off {rule:?} --seed {seed})", broken.0),
        None => println!("{rule:?}: NOTHING broke in {} schedules", arguments.schedules),
    }
    found.is_some()
}
