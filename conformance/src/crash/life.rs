//! A store and the child processes that work on it in sequence, until one breaks a rule or the life is over.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::child::{STORE, WITNESS_FILE};
use super::plan::{Incident, Phase, Plan, Role};
use super::scenario::{Kind, Learned};
use super::witness::{Line, Witness};
use super::{CHILD, Kit, PLAN, POWER_CUT};
use crate::failure::{Checked, Failure};
use crate::random::Random;

/// The stderr of the newest child.
const STDERR: &str = "stderr";

/// The result of a cycle in which no rule was broken.
#[derive(Debug, Default)]
pub(crate) struct Cycle {
    /// Whether the planned incident happened.
    pub(crate) hit: bool,
    /// Where it happened, for the summary.
    pub(crate) place: Option<String>,
    /// The number of events acknowledged in it.
    pub(crate) acknowledged: u64,
    /// How damage was reported.
    pub(crate) told: Option<String>,
}

/// A directory with a store, its backups, and its witness.
pub(crate) struct Life {
    place: PathBuf,
    env: Vec<(String, String)>,
    limit: Duration,
    events_seed: u64,
    cycles: u64,
    witness: Witness,
    witness_file: File,
    /// The power was cut or a call failed, and the store was not opened since: nothing proves that its last groups were
    /// synced.
    is_end_unproven: bool,
}

impl Life {
    /// Starts in an empty directory.
    pub(crate) fn begin(kit: &Kit, place: PathBuf, seed: u64) -> Checked<Self> {
        fs::create_dir_all(&place)?;
        let witness_file = OpenOptions::new().create(true).append(true).open(place.join(WITNESS_FILE))?;
        let (env, limit) = (kit.env.clone(), kit.profile.limit());
        Ok(Life {
            place,
            env,
            limit,
            events_seed: seed,
            cycles: 0,
            witness: Witness::default(),
            witness_file,
            is_end_unproven: false,
        })
    }

    /// Runs one child, and fails if it broke a rule or found one broken.
    pub(crate) fn cycle(
        &mut self,
        kind: Option<Kind>,
        incident: Incident,
        learned: &mut Learned,
        random: &mut Random,
    ) -> Checked<Cycle> {
        let damaged = match kind {
            Some(kind) if kind.is_damage() => Some(damage(&self.place.join(STORE), kind, random)?),
            _ => None,
        };
        self.cycles += 1;
        let plan = Plan {
            seed: random.below(u64::MAX),
            events_seed: self.events_seed,
            first_batch: self.cycles * 1_000,
            role: if damaged.is_some() { Role::LookAtDamage } else { Role::Work },
            incident,
        };
        let before = self.witness.acknowledged.len();
        let outcome = self.run(&plan, learned);
        let acknowledged = (self.witness.acknowledged.len() - before) as u64;
        match outcome {
            Ok(cycle) => Ok(Cycle { acknowledged, ..cycle }),
            Err(failure) => {
                let failure = match &damaged {
                    Some(damage) => failure.note("damage", damage.clone()),
                    None => failure,
                };
                Err(failure.note("plan", format!("{plan:?}")).note("cycle", format!("{} of this store", self.cycles)))
            }
        }
    }

    fn run(&mut self, plan: &Plan, learned: &mut Learned) -> Checked<Cycle> {
        let mut child = self.spawn(plan)?;
        let lines = lines_of(&mut child);
        let (mut heard, mut answers, mut killed) = (Heard::default(), 0, false);
        // A child that works on a slow machine says something now and then; one that never ends is stopped as well.
        let until = Instant::now() + 10 * self.limit;
        loop {
            if let Incident::Kill { answers: wanted, micros } = plan.incident
                && !killed
                && answers >= wanted
            {
                // Any moment is as good as another, and there is nothing to wait for.
                thread::sleep(Duration::from_micros(micros));
                child.kill()?;
                killed = true;
            }
            match lines.recv_timeout(self.limit.min(until.saturating_duration_since(Instant::now()))) {
                Ok(line) => {
                    answers += u64::from(matches!(line, Line::Stored { .. }));
                    self.is_end_unproven &= !matches!(line, Line::Audited { .. });
                    self.witness.take(&line);
                    let mut text = serde_json::to_vec(&line).map_err(std::io::Error::from)?;
                    text.push(b'\n');
                    self.witness_file.write_all(&text)?;
                    heard.take(line, learned);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    child.kill()?;
                    child.wait()?;
                    return Err(Failure::elsewhere(format!(
                        "the child neither ended nor said anything for {:?}: something hangs",
                        self.limit
                    )));
                }
            }
        }
        let status = child.wait()?;
        let was_killed = was_killed(status);
        if was_killed && plan.incident.cuts_power() && !heard.done {
            self.witness.power_was_cut();
            self.is_end_unproven = true;
            writeln!(self.witness_file, "{POWER_CUT}")?;
        }
        self.is_end_unproven |= heard.fired && plan.incident.is_fault();
        if let Some(violation) = heard.violation {
            return Err(Failure::elsewhere(violation));
        }
        let ended_as_planned = match plan.incident {
            Incident::None => false,
            _ => was_killed,
        };
        let ended_well = status.success() && heard.done;
        if !ended_as_planned && !ended_well {
            let text = fs::read(self.place.join(STDERR))?;
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<_> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(30)..].join("\n    ");
            return Err(Failure::elsewhere(format!("the process ended by itself: {status}\n    {end}")));
        }
        Ok(Cycle {
            hit: plan.role == Role::LookAtDamage || ended_as_planned || heard.fired,
            place: place_of(&plan.incident, heard.phase),
            acknowledged: 0,
            told: heard.told,
        })
    }

    fn spawn(&self, plan: &Plan) -> Checked<Child> {
        let stdin = if plan.role == Role::Hold { Stdio::piped() } else { Stdio::null() };
        let program = std::env::current_exe()?;
        let mut command = match plan.role {
            Role::RunOutOfFiles => {
                // Few enough that they can be used up.
                let mut shell = Command::new("sh");
                shell.args(["-c", "ulimit -n 256 && exec \"$0\" \"$@\""]).arg(program);
                shell
            }
            _ => Command::new(program),
        };
        let child = command
            .args(std::env::args_os().skip(1))
            .env(CHILD, &self.place)
            .env(PLAN, serde_json::to_string(plan).map_err(std::io::Error::from)?)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(File::create(self.place.join(STDERR))?)
            .spawn()?;
        Ok(child)
    }

    /// Opens the store in one process and then in another (rule L2).
    pub(crate) fn open_twice(&mut self) -> Checked {
        let plan = |role| Plan { seed: 0, events_seed: 0, first_batch: 0, role, incident: Incident::None };
        let mut holder = self.spawn(&plan(Role::Hold))?;
        let lines = lines_of(&mut holder);
        let opened = lines.recv_timeout(self.limit);
        ensure!(matches!(opened, Ok(Line::Began(_))), "a process that opens the store did not: {opened:?}");
        let mut learned = Learned::default();
        let second = self.run(&plan(Role::OpenSecond), &mut learned);
        drop(holder.stdin.take());
        let status = holder.wait()?;
        second?;
        ensure!(status.success(), "the process that had the store open ended with {status}");
        // It is closed now and can be opened.
        self.run(&Plan { seed: 1, first_batch: 1, ..plan(Role::Work) }, &mut learned).map(drop)
    }

    /// Runs this many undisturbed children, then one with this role, then another, which checks what that one left.
    pub(crate) fn visit(&mut self, after: usize, role: Role) -> Checked {
        let mut learned = Learned::default();
        for role in std::iter::repeat_n(Role::Work, after).chain([role, Role::Work]) {
            self.cycles += 1;
            let plan = Plan {
                // It selects the runtime of a child, among other things.
                seed: self.events_seed.wrapping_add(self.cycles),
                events_seed: self.events_seed,
                first_batch: self.cycles * 1_000,
                role,
                incident: Incident::None,
            };
            self.run(&plan, &mut learned).map_err(|failure| failure.note("plan", format!("{plan:?}")))?;
        }
        Ok(())
    }

    /// Whether there is something to damage, and nothing else has happened to it.
    pub(crate) fn can_be_damaged(&self) -> bool {
        self.witness.seen > 0 && !self.is_end_unproven
    }
}

/// Interprets the lines from a child.
#[derive(Default)]
struct Heard {
    phase: Option<Phase>,
    fired: bool,
    done: bool,
    violation: Option<String>,
    told: Option<String>,
}

impl Heard {
    fn take(&mut self, line: Line, learned: &mut Learned) {
        match line {
            Line::Began(phase) => self.phase = Some(phase),
            Line::Fired => self.fired = true,
            Line::Done => self.done = true,
            Line::Violation { text } => self.violation = Some(text),
            Line::Damage { told } => self.told = Some(told),
            Line::Counted { phase, calls } => {
                for (kinds, count) in calls {
                    let most = learned.calls.entry((phase, kinds)).or_default();
                    *most = count.max(*most);
                }
            }
            Line::Passed { points } => {
                for (point, count) in points {
                    let most: &mut u64 = learned.points.entry(point).or_default();
                    *most = count.max(*most);
                }
            }
            _ => {}
        }
    }
}

/// The child's lines as they arrive. A line that was cut off by a kill does not count.
fn lines_of(child: &mut Child) -> mpsc::Receiver<Line> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut text = Vec::new();
            while stdout.read_until(b'\n', &mut text).is_ok_and(|len| len > 0) {
                if let Ok(line) = serde_json::from_slice(&text)
                    && sender.send(line).is_err()
                {
                    return;
                }
                text.clear();
            }
        });
    }
    receiver
}

fn was_killed(status: ExitStatus) -> bool {
    #[cfg(unix)]
    {
        std::os::unix::process::ExitStatusExt::signal(&status) == Some(9)
    }
    #[cfg(not(unix))]
    {
        !status.success()
    }
}

/// Describes where an incident happened.
fn place_of(incident: &Incident, phase: Option<Phase>) -> Option<String> {
    match incident {
        Incident::AtPoint { point, .. } => Some(format!("at `{point}`")),
        _ => phase.map(|phase| format!("while {phase}")),
    }
}

/// Damages a file of the store, and describes the damage.
fn damage(store: &Path, kind: Kind, random: &mut Random) -> Checked<String> {
    let mut files = BTreeMap::new();
    find_files(store, &mut files)?;
    files.retain(|_, len| *len > 0);
    // Larger files are chosen more often.
    let mut at = random.below(files.values().sum::<u64>().max(1));
    for (path, len) in files {
        if at >= len {
            at -= len;
            continue;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let name = path.strip_prefix(store).unwrap_or(&path).display().to_string();
        if kind == Kind::CutFile {
            file.set_len(at)?;
            return Ok(format!("{name} was cut from {len} to {at} bytes"));
        }
        let bit = random.below(8);
        flip(&file, at, bit)?;
        return Ok(format!("bit {bit} of byte {at} of {name} was flipped"));
    }
    Err(Failure::new(format!("there is no file to damage in {}", store.display())))
}

fn flip(mut file: &File, at: u64, bit: u64) -> Checked {
    use std::io::{Seek, SeekFrom};
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&[byte[0] ^ (1 << bit)])?;
    Ok(())
}

fn find_files(directory: &Path, files: &mut BTreeMap<PathBuf, u64>) -> Checked {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            find_files(&entry.path(), files)?;
        } else if metadata.is_file() {
            files.insert(entry.path(), metadata.len());
        }
    }
    Ok(())
}
