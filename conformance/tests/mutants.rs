//! Tests of the suite itself: a check that cannot fail proves nothing, so for each there is a store that it must
//! refuse.
//!
//! Every such store is the reference store with one fault.

mod reference_store;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use conformance::{Outcome, Profile, Suite};
use eventstore_api::{
    BackupReport, Batch, Context, Direction, Durability, Error, Event, EventStore, Expected, Finding, Gc, GcReport,
    LoadOptions, Page, PageSize, RecordedEvent, Result, Stats, StoreOutcome, Stored, VerifyReport, Version,
    async_trait,
};
use libtest_mimic::{Arguments, Failed, Trial};
use reference_store::Reference;
use tokio::sync::{RwLock, Semaphore};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    AcceptsAnyTimes,
    AggregateByPrefix,
    BackupLagsBehind,
    BackupLeavesHalf,
    BackupLosesTheFirst,
    BackupOverwrites,
    BackupSplitsBatches,
    BackupWantsEvents,
    BackwardBeforeIsInclusive,
    BatchReversed,
    BufferedIsNotWritten,
    CancelledReadIsEmpty,
    ChecksConditionTooEarly,
    ChecksIdsTooEarly,
    CloseDoesNothing,
    CloseStopsWhenDropped,
    ConflictGuesses,
    ConflictTellsNothing,
    DemandsASecond,
    DropsSomeWrites,
    DuplicateIsIgnored,
    EmptyBatchIsRefused,
    ExistsNeverHolds,
    EndedIsAnEngineError,
    FoldsIds,
    ForgetsWhenReopened,
    GcIgnoresContext,
    GcLosesTheFirst,
    GetIsStaleBesideWriters,
    GetLagsBehind,
    HasOnlyRequiredMethods,
    HeadRunsAhead,
    HeadRunsAheadOfWriters,
    IgnoresContext,
    IgnoresExpectation,
    IgnoresLimit,
    IgnoresTimes,
    IsNeverDropped,
    LatestGoesBack,
    LeaksMaintenance,
    LeaksPlaces,
    LeaksReadSlots,
    LeaksWaits,
    LoadFollowsWriters,
    LongIdsAreInvalid,
    LosesUpdates,
    MixedBatchIsUnconditional,
    NormalisesMetadata,
    OpensTwice,
    OutOfOrder,
    RefusedIsWritten,
    RepeatChecksCondition,
    RepeatIsDuplicate,
    RepeatTakesTheNewTime,
    SecondCloseFails,
    SinceIsInclusive,
    SkipsAnEvent,
    SmallPagesAreEmpty,
    SplitsBatches,
    StaleBesideWriters,
    StatsCountAppends,
    StatsCountSinceOpening,
    TextOnly,
    TimesAreAlwaysPast,
    UnknownIsHalf,
    VerifyCountsTwice,
    VerifyFindsWriters,
    WaitEndsTooSoon,
    WaitIgnoresContext,
    WaitMissesClose,
    WaitersBlockWriters,
    WritesBeforePolled,
    WritesWhenCancelled,
    WrittenAlways,
    WrongRevision,
}

const MODEL: &str = "model::random_programs_agree_with_the_model";

/// The checks, each with the fault that it must find.
const FINDS: &[(&str, Fault)] = &[
    ("order::o1_versions_run_from_one_without_a_gap", Fault::SkipsAnEvent),
    ("order::o1_a_refused_append_leaves_no_gap", Fault::RefusedIsWritten),
    ("order::o1_an_empty_store_is_at_version_zero", Fault::EmptyBatchIsRefused),
    ("order::o1_versions_are_the_same_after_reopening", Fault::ForgetsWhenReopened),
    ("order::o1_garbage_collection_changes_nothing", Fault::GcLosesTheFirst),
    ("order::o2_a_batch_has_consecutive_versions_in_its_order", Fault::BatchReversed),
    ("order::o2_a_batch_has_consecutive_versions_in_its_order", Fault::SplitsBatches),
    ("order::o3_revisions_count_each_aggregate_in_version_order", Fault::WrongRevision),
    ("order::o4_a_load_gives_exactly_what_is_after_the_version", Fault::SinceIsInclusive),
    ("order::o5_a_load_while_writers_write_shows_a_prefix", Fault::OutOfOrder),
    ("order::o5_a_load_while_writers_write_shows_a_prefix", Fault::SkipsAnEvent),
    ("order::o5_a_load_ends_while_writers_never_stop", Fault::LoadFollowsWriters),
    ("order::o6_a_read_after_an_append_sees_it", Fault::GetLagsBehind),
    ("order::o6_a_read_after_an_append_sees_it", Fault::DropsSomeWrites),
    ("order::o7_latest_version_never_goes_back_and_counts_the_events", Fault::LatestGoesBack),
    ("order::o8_a_load_by_aggregate_is_the_load_filtered", Fault::AggregateByPrefix),
    ("order::o8_looking_for_what_cannot_be_there_finds_nothing", Fault::LongIdsAreInvalid),
    ("order::o9_loads_keep_direction_bounds_and_limits", Fault::IgnoresLimit),
    ("order::o9_loads_keep_direction_bounds_and_limits", Fault::BackwardBeforeIsInclusive),
    ("order::o9_pages_of_any_size_give_the_same_events", Fault::SmallPagesAreEmpty),
    ("order::o9_paging_with_the_last_version_misses_nothing_while_writers_write", Fault::SinceIsInclusive),
    ("order::o9_paging_backward_misses_nothing_while_writers_write", Fault::BackwardBeforeIsInclusive),
    ("writing::w1_readers_see_a_batch_whole_or_not_at_all", Fault::SplitsBatches),
    ("writing::w1_a_batch_with_a_refused_event_writes_nothing", Fault::SplitsBatches),
    ("writing::w1_a_batch_whose_condition_fails_writes_nothing", Fault::RefusedIsWritten),
    ("writing::w2_a_repeated_event_returns_its_first_place", Fault::RepeatIsDuplicate),
    ("writing::w2_a_repeated_event_returns_its_first_place", Fault::WrongRevision),
    ("writing::w2_a_repeated_batch_returns_its_first_places", Fault::RepeatIsDuplicate),
    ("writing::w2_a_repetition_inside_one_batch_is_written_once", Fault::RepeatIsDuplicate),
    ("writing::w2_other_content_inside_one_batch_is_a_duplicate", Fault::DuplicateIsIgnored),
    ("writing::w2_the_same_id_with_other_content_is_a_duplicate", Fault::DuplicateIsIgnored),
    ("writing::w2_a_repetition_checks_no_condition", Fault::RepeatChecksCondition),
    ("writing::w2_a_mixed_batch_writes_what_is_new", Fault::RepeatIsDuplicate),
    ("writing::w2_a_mixed_batch_needs_its_condition", Fault::MixedBatchIsUnconditional),
    ("writing::w2_repetitions_are_known_after_reopening", Fault::ForgetsWhenReopened),
    ("writing::w2_the_same_event_appended_at_once_is_written_once", Fault::WrittenAlways),
    ("writing::w2_different_events_with_one_id_appended_at_once_have_one_winner", Fault::DuplicateIsIgnored),
    ("writing::w3_each_condition_accepts_or_refuses_and_tells_what_was_found", Fault::ConflictTellsNothing),
    ("writing::w3_each_condition_accepts_or_refuses_and_tells_what_was_found", Fault::IgnoresExpectation),
    ("writing::w3_of_racing_appends_on_a_revision_exactly_one_wins", Fault::IgnoresExpectation),
    ("writing::w3_of_racing_appends_on_the_latest_version_exactly_one_wins", Fault::IgnoresExpectation),
    ("writing::w3_racing_appends_on_following_revisions_win_as_a_chain", Fault::IgnoresExpectation),
    ("writing::w3_racing_appends_without_a_revision_all_succeed", Fault::ExistsNeverHolds),
    ("writing::w4_both_durabilities_are_acknowledged_and_readable", Fault::BufferedIsNotWritten),
    ("writing::w4_closing_keeps_the_events_of_both_durabilities", Fault::ForgetsWhenReopened),
    ("writing::w5_an_over_large_batch_is_refused_and_leaves_no_trace", Fault::SplitsBatches),
    ("writing::w5_a_condition_that_does_not_fit_the_batch_is_refused", Fault::IgnoresExpectation),
    ("writing::w5_what_is_at_the_limits_is_accepted", Fault::LongIdsAreInvalid),
    ("writing::w6_data_come_back_byte_for_byte", Fault::TextOnly),
    ("writing::w6_metadata_come_back_byte_for_byte", Fault::NormalisesMetadata),
    ("writing::w6_names_of_any_characters_come_back_and_are_kept_apart", Fault::FoldsIds),
    ("writing::w6_names_of_any_characters_come_back_and_are_kept_apart", Fault::AggregateByPrefix),
    ("writing::w6_everything_comes_back_after_reopening", Fault::ForgetsWhenReopened),
    ("writing::w7_times_that_are_named_come_back", Fault::IgnoresTimes),
    ("writing::w7_times_that_are_named_come_back", Fault::ForgetsWhenReopened),
    ("writing::w7_the_time_of_an_append_that_names_none_is_its_own", Fault::TimesAreAlwaysPast),
    ("writing::w7_a_wrong_number_of_times_is_refused", Fault::AcceptsAnyTimes),
    ("writing::w7_a_repeated_append_keeps_the_first_time", Fault::RepeatTakesTheNewTime),
    ("writing::w7_a_copy_has_the_places_and_times_of_the_first", Fault::IgnoresTimes),
    ("writing::w7_a_copy_has_the_places_and_times_of_the_first", Fault::IgnoresExpectation),
    ("context::c1_a_cancelled_context_is_refused_by_every_method", Fault::IgnoresContext),
    ("context::c1_a_cancelled_context_is_refused_by_every_method", Fault::WritesWhenCancelled),
    ("context::c1_an_expired_context_is_refused_by_every_method", Fault::IgnoresContext),
    ("context::c2_an_append_cancelled_while_it_waits_is_not_written", Fault::WritesWhenCancelled),
    ("context::c2_an_append_whose_deadline_passes_while_it_waits_is_not_written", Fault::WritesWhenCancelled),
    ("context::c3_an_unknown_outcome_is_resolved_by_repeating_the_append", Fault::UnknownIsHalf),
    ("context::c4_a_dropped_append_is_written_whole_or_not_at_all", Fault::SplitsBatches),
    ("context::c4_an_append_that_was_never_polled_writes_nothing", Fault::WritesBeforePolled),
    ("context::c4_dropped_appends_give_their_places_back", Fault::LeaksPlaces),
    ("context::c4_a_dropped_append_stops_no_other", Fault::LeaksPlaces),
    ("context::c5_a_cancelled_load_ends_within_a_page", Fault::IgnoresContext),
    ("context::c5_a_read_that_runs_out_of_time_gives_all_or_an_error", Fault::CancelledReadIsEmpty),
    ("context::c5_waiting_ends_with_its_context", Fault::WaitIgnoresContext),
    ("context::c5_dropped_reads_leave_nothing_behind", Fault::LeaksWaits),
    ("context::c4_an_append_may_be_ended_at_every_await", Fault::WritesWhenCancelled),
    ("context::c4_an_append_may_be_ended_at_every_await", Fault::UnknownIsHalf),
    ("context::c4_an_append_may_be_ended_at_every_await", Fault::SplitsBatches),
    ("context::c4_an_append_may_be_ended_at_every_await", Fault::LeaksPlaces),
    ("context::c5_a_read_may_be_ended_at_every_await", Fault::CancelledReadIsEmpty),
    ("context::c5_a_read_may_be_ended_at_every_await", Fault::LeaksReadSlots),
    ("context::c5_a_stream_may_be_ended_at_every_await", Fault::CancelledReadIsEmpty),
    ("context::c5_a_stream_may_be_ended_at_every_await", Fault::LeaksWaits),
    ("context::c5_maintenance_may_be_ended_at_every_await", Fault::LeaksMaintenance),
    ("context::c5_maintenance_may_be_ended_at_every_await", Fault::EndedIsAnEngineError),
    ("context::c6_a_short_deadline_is_no_reason_to_refuse", Fault::DemandsASecond),
    ("concurrency::o1_appends_at_once_have_one_order_that_agrees_with_time", Fault::LosesUpdates),
    ("concurrency::o1_everything_at_once_leaves_one_history", Fault::ChecksIdsTooEarly),
    ("concurrency::o1_everything_at_once_leaves_one_history", Fault::ChecksConditionTooEarly),
    ("concurrency::o1_everything_at_once_leaves_one_history", Fault::LosesUpdates),
    ("concurrency::o5_readers_beside_writers_see_prefixes_that_never_go_back", Fault::StaleBesideWriters),
    ("concurrency::o5_readers_beside_writers_see_prefixes_that_never_go_back", Fault::SplitsBatches),
    ("concurrency::o6_what_anyone_was_told_of_everyone_finds", Fault::GetIsStaleBesideWriters),
    ("concurrency::w2_repetitions_at_once_all_get_the_first_place", Fault::ChecksIdsTooEarly),
    ("concurrency::w3_each_condition_has_one_winner_and_conflicts_are_true", Fault::ChecksConditionTooEarly),
    ("concurrency::w3_each_condition_has_one_winner_and_conflicts_are_true", Fault::ConflictGuesses),
    ("concurrency::c4_dropped_appends_among_others_leave_one_history", Fault::SplitsBatches),
    ("concurrency::s1_subscribers_beside_writers_lose_and_repeat_nothing", Fault::HeadRunsAheadOfWriters),
    ("life::l1_a_closed_store_refuses_everything_with_closed", Fault::CloseDoesNothing),
    ("life::l1_close_may_be_called_again", Fault::SecondCloseFails),
    ("life::l1_close_finishes_what_was_accepted", Fault::DropsSomeWrites),
    ("life::l1_a_closed_store_can_be_opened_again_at_once", Fault::CloseDoesNothing),
    ("life::l1_dropping_the_last_handle_closes_the_store", Fault::IsNeverDropped),
    ("life::l1_dropping_everything_leaves_whole_batches", Fault::SplitsBatches),
    ("life::l1_a_dropped_close_still_closes", Fault::CloseStopsWhenDropped),
    ("life::l1_closing_ends_those_who_wait", Fault::WaitMissesClose),
    ("life::l1_closing_ends_loads", Fault::CloseDoesNothing),
    ("life::l2_a_second_opening_is_locked_and_harms_nothing", Fault::OpensTwice),
    ("life::l2_of_openings_at_once_one_succeeds", Fault::OpensTwice),
    ("following::s1_a_subscription_goes_from_what_is_there_to_what_comes_without_a_seam", Fault::HeadRunsAhead),
    ("following::s1_a_subscription_goes_from_what_is_there_to_what_comes_without_a_seam", Fault::SkipsAnEvent),
    ("following::s1_a_subscription_gives_each_event_as_it_comes", Fault::HeadRunsAhead),
    ("following::s1_a_subscription_with_a_limit_ends_after_it", Fault::IgnoresLimit),
    ("following::s1_a_cancelled_subscription_ends_with_its_error", Fault::WaitIgnoresContext),
    ("following::s1_waiting_for_events_misses_no_event", Fault::WaitEndsTooSoon),
    ("following::s2_a_subscriber_that_does_not_read_never_blocks_the_writer", Fault::WaitersBlockWriters),
    ("following::s2_a_waiter_that_is_never_polled_blocks_nobody", Fault::WaitersBlockWriters),
    (
        "maintenance::m1_a_backup_while_writers_write_has_the_first_events_and_no_batch_in_part",
        Fault::BackupSplitsBatches,
    ),
    (
        "maintenance::m1_a_backup_while_writers_write_has_the_first_events_and_no_batch_in_part",
        Fault::HasOnlyRequiredMethods,
    ),
    ("maintenance::m1_a_backup_has_all_that_was_acknowledged_before_it", Fault::BackupLagsBehind),
    ("maintenance::m1_a_backup_is_a_store_of_its_own", Fault::BackupLosesTheFirst),
    ("maintenance::m1_a_backup_of_an_empty_store_is_empty", Fault::BackupWantsEvents),
    ("maintenance::m2_a_target_that_is_not_empty_is_refused_and_not_touched", Fault::BackupOverwrites),
    ("maintenance::m2_a_backup_that_is_ended_leaves_nothing_that_opens", Fault::BackupLeavesHalf),
    ("maintenance::m2_a_backup_that_is_ended_leaves_nothing_that_opens", Fault::EndedIsAnEngineError),
    ("maintenance::m3_a_sound_store_has_no_findings", Fault::VerifyCountsTwice),
    ("maintenance::m3_a_sound_store_has_no_findings", Fault::HasOnlyRequiredMethods),
    ("maintenance::m3_a_store_that_is_written_to_has_no_findings", Fault::VerifyFindsWriters),
    ("maintenance::m3_a_verification_that_is_ended_says_so", Fault::EndedIsAnEngineError),
    ("maintenance::m4_collections_beside_readers_and_writers_change_no_event", Fault::GcLosesTheFirst),
    ("maintenance::m4_a_collection_that_is_ended_changes_no_event", Fault::GcIgnoresContext),
    ("maintenance::m4_a_collection_that_is_ended_changes_no_event", Fault::GcLosesTheFirst),
    ("maintenance::m4_a_collection_that_is_ended_changes_no_event", Fault::EndedIsAnEngineError),
    ("maintenance::m5_stats_count_events_and_aggregates", Fault::StatsCountAppends),
    ("maintenance::m5_stats_count_events_and_aggregates", Fault::StatsCountSinceOpening),
    ("maintenance::m5_stats_count_while_writers_write", Fault::StatsCountSinceOpening),
    ("model::random_programs_agree_with_the_model", Fault::BackupLagsBehind),
    ("model::random_programs_agree_with_the_model", Fault::VerifyCountsTwice),
    ("model::random_programs_agree_with_the_model", Fault::AggregateByPrefix),
    ("model::random_programs_agree_with_the_model", Fault::RepeatChecksCondition),
    ("model::random_programs_agree_with_the_model", Fault::ForgetsWhenReopened),
    (MODEL, Fault::AcceptsAnyTimes),
    (MODEL, Fault::IgnoresTimes),
    (MODEL, Fault::RepeatTakesTheNewTime),
    (MODEL, Fault::CancelledReadIsEmpty),
    (MODEL, Fault::WritesWhenCancelled),
    (MODEL, Fault::StatsCountSinceOpening),
    (MODEL, Fault::LongIdsAreInvalid),
    (MODEL, Fault::WaitMissesClose),
    (MODEL, Fault::HeadRunsAhead),
    (MODEL, Fault::CloseDoesNothing),
    ("model::racing_writers_leave_one_history", Fault::DropsSomeWrites),
    ("model::racing_writers_leave_one_history", Fault::IgnoresExpectation),
];

/// Faults that show as a check that does not end; with all others the check has to find something.
const HANGS: &[Fault] = &[
    Fault::CloseStopsWhenDropped,
    Fault::HeadRunsAhead,
    Fault::HeadRunsAheadOfWriters,
    Fault::LeaksPlaces,
    Fault::LeaksReadSlots,
    Fault::LeaksWaits,
    Fault::WaitIgnoresContext,
    Fault::WaitMissesClose,
    Fault::WaitersBlockWriters,
];

/// Absences that are declared and not true: the reference store survives closing, locks, takes backups and verifies.
const FINDS_FALSE_DECLARATIONS: &[&str] = &[
    "life::l1_without_persistence_a_reopened_store_is_empty",
    "life::l2_without_locking_a_second_opening_harms_nothing",
    "maintenance::m1_without_backups_the_call_is_unsupported",
    "maintenance::m3_without_verification_the_call_is_unsupported",
];

/// Set for a process that is to be the suite over a store with a fault, as a user sees it.
const AS_MUTANT: &str = "EVENTSTORE_CONFORMANCE_AS_MUTANT";

fn main() -> ExitCode {
    if std::env::var_os(AS_MUTANT).is_some() {
        let opened = Arc::new(AtomicU64::new(0));
        return conformance::run("mutant", Profile::persistent(), move |directory| {
            open(directory, Fault::AggregateByPrefix, opened.clone())
        });
    }
    let mut trials: Vec<_> = FINDS
        .iter()
        .map(|&(check, fault)| {
            Trial::test(format!("{check} finds {fault:?}"), move || fails(check, Profile::persistent(), fault))
        })
        .collect();
    trials.extend(FINDS_FALSE_DECLARATIONS.iter().map(|&check| {
        Trial::test(format!("{check} finds a false declaration"), move || {
            fails(check, Profile::in_memory().without_verification(), Fault::None)
        })
    }));
    trials.push(Trial::test("the required methods are enough for what they are about", required_methods_are_enough));
    trials.push(Trial::test("every check is known to find a fault", every_check_finds_a_fault));
    trials.push(Trial::test("every rule of the contract has a check", every_rule_has_a_check));
    trials.push(Trial::test("a hanging store is reported with the rule", a_hanging_store_is_reported_with_the_rule));
    trials.push(Trial::test("the seed of a program that fails shows it again", a_seed_shows_the_program_again));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn suite(profile: Profile, fault: Fault) -> Suite {
    let opened = Arc::new(AtomicU64::new(0));
    let profile = if HANGS.contains(&fault) { profile.time_limit(Duration::from_secs(3)) } else { profile };
    Suite::new(&format!("{fault:?}"), profile, move |directory| open(directory, fault, opened.clone()))
}

fn fails(check: &str, profile: Profile, fault: Fault) -> Result<(), Failed> {
    match suite(profile, fault).run_check(check) {
        Some(Outcome::Failed(failure)) if HANGS.contains(&fault) || !failure.to_string().contains("hangs") => Ok(()),
        other => Err(format!("the check has to fail, but ended with {other:?}").into()),
    }
}

fn every_check_finds_a_fault() -> Result<(), Failed> {
    let known: BTreeSet<_> =
        FINDS.iter().map(|(check, _)| *check).chain(FINDS_FALSE_DECLARATIONS.iter().copied()).collect();
    let suite = suite(Profile::persistent(), Fault::None);
    for check in suite.names().filter(|name| !known.contains(name)) {
        let Some(Outcome::Ignored(_)) = suite.run_check(check) else {
            return Err(format!("no store is known that {check} refuses").into());
        };
    }
    let names: BTreeSet<_> = suite.names().collect();
    let gone: Vec<_> = known.difference(&names).collect();
    if gone.is_empty() { Ok(()) } else { Err(format!("these checks are not in the suite: {gone:?}").into()) }
}

/// A store that implements no more than it has to, and says so, keeps all rules.
fn required_methods_are_enough() -> Result<(), Failed> {
    let suite = suite(Profile::persistent().without_backup().without_verification(), Fault::HasOnlyRequiredMethods);
    for (check, outcome) in suite.outcomes() {
        match outcome {
            Outcome::Passed => {}
            Outcome::Ignored(_) if !check.contains("without_backups") && !check.contains("without_verification") => {}
            other => return Err(format!("{check} ended with {other:?}").into()),
        }
    }
    Ok(())
}

fn every_rule_has_a_check() -> Result<(), Failed> {
    let suite = suite(Profile::persistent(), Fault::None);
    for (area, letter, count) in [
        ("order", 'o', 9),
        ("writing", 'w', 7),
        ("context", 'c', 6),
        ("life", 'l', 3),
        ("faults", 'f', 4),
        ("following", 's', 2),
        ("maintenance", 'm', 5),
    ] {
        for number in 1..=count {
            let begins = format!("{area}::{letter}{number}_");
            if !suite.names().any(|name| name.starts_with(&begins)) {
                return Err(format!("no check begins with {begins}").into());
            }
        }
    }
    match suite.outcomes().next() {
        Some((first, Outcome::Passed)) if Some(first) == suite.names().next() => {}
        other => return Err(format!("the first check of the reference store ended with {other:?}").into()),
    }
    match suite.run_check("order::o0_no_such_rule") {
        None => Ok(()),
        other => Err(format!("a check that does not exist ended with {other:?}").into()),
    }
}

fn a_hanging_store_is_reported_with_the_rule() -> Result<(), Failed> {
    let profile = Profile::persistent().time_limit(Duration::from_millis(100));
    let suite = Suite::new("hanging", profile, |_directory| std::future::pending());
    match suite.run_check("order::o1_versions_run_from_one_without_a_gap") {
        Some(Outcome::Failed(failure)) if failure.to_string().contains("O1: Versions are 1 to") => Ok(()),
        other => Err(format!("expected a failure that names O1, got {other:?}").into()),
    }
}

/// The seed and the program that a run of the model check prints, from a process of its own.
fn shown_program(seed: Option<&str>, cases: &str) -> Result<(String, String), Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([MODEL, "--exact"]).env(AS_MUTANT, "").env("EVENTSTORE_CONFORMANCE_CASES", cases);
    match seed {
        Some(seed) => command.env("EVENTSTORE_CONFORMANCE_SEED", seed),
        None => command.env_remove("EVENTSTORE_CONFORMANCE_SEED"),
    };
    let output = String::from_utf8(command.output()?.stdout)?;
    let between = |from: &str, to: &str| Some(output.split_once(from)?.1.split_once(to)?.0.to_owned());
    between("EVENTSTORE_CONFORMANCE_SEED=", " ")
        .zip(between("  program ", "  rule "))
        .ok_or_else(|| format!("no seed or no program was printed: {output}").into())
}

fn a_seed_shows_the_program_again() -> Result<(), Failed> {
    let (seed, program) = shown_program(None, "unbounded")?;
    // One program is enough: the seed is its own, and not that of a run that came to it in the end.
    let again = shown_program(Some(&seed), "1")?;
    if again != (seed.clone(), program.clone()) {
        return Err(format!("with the seed {seed}, {program} was shown first, and then {again:?}").into());
    }
    if program.lines().filter(|line| line.contains(". ")).count() > 10 {
        return Err(format!("a program that is too long to be read: {program}").into());
    }
    Ok(())
}

async fn open(directory: PathBuf, fault: Fault, opened: Arc<AtomicU64>) -> Result<Arc<dyn EventStore>> {
    let number = opened.fetch_add(1, Ordering::Relaxed).to_string();
    let inner = match fault {
        Fault::ForgetsWhenReopened => Reference::open(&directory.join(number))?,
        Fault::OpensTwice => Reference::open(&directory).or_else(|_| Reference::open(&directory.join(number)))?,
        _ => Reference::open(&directory)?,
    };
    let at_opening = inner.stats(&Context::background()).await?.aggregates;
    if fault == Fault::IsNeverDropped {
        std::mem::forget(inner.clone());
    }
    Ok(Arc::new(Mutant {
        inner,
        fault,
        calls: AtomicU64::new(0),
        at_opening,
        happened: AtomicBool::new(false),
        places: Semaphore::new(4),
        writing: AtomicU64::new(0),
        slots: Semaphore::new(126),
        waiting: RwLock::new(()),
    }))
}

/// The reference store with one fault.
#[derive(Debug)]
struct Mutant {
    inner: Reference,
    fault: Fault,
    calls: AtomicU64,
    /// Aggregates that were there when it was opened.
    at_opening: u64,
    happened: AtomicBool,
    places: Semaphore,
    /// For readers.
    slots: Semaphore,
    /// How many appends are under way.
    writing: AtomicU64,
    waiting: RwLock<()>,
}

impl Mutant {
    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// True every so many calls.
    fn every(&self, calls: u64) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed) % calls == calls - 1
    }

    fn context(&self, ctx: &Context) -> Result<Context> {
        let short = ctx.deadline().is_some_and(|deadline| deadline < Instant::now() + Duration::from_secs(1));
        match self.fault {
            Fault::IgnoresContext => Ok(Context::background()),
            Fault::DemandsASecond if short => Err(Error::DeadlineExceeded),
            _ => Ok(ctx.clone()),
        }
    }

    async fn append(&self, ctx: &Context, mut batch: Batch) -> Result<Vec<Stored>> {
        let ctx = &self.context(ctx)?;
        if self.has(Fault::StatsCountAppends) {
            self.calls.fetch_add(1, Ordering::Relaxed);
        }
        let background = &Context::background();
        let given = batch.clone();
        match self.fault {
            Fault::IgnoresExpectation => batch.expected = Expected::Any,
            Fault::EmptyBatchIsRefused if batch.events.is_empty() => {
                return Err(Error::invalid_event("batch", "it is empty"));
            }
            Fault::ExistsNeverHolds if batch.expected == Expected::Exists => batch.expected = Expected::NoEvents,
            Fault::LongIdsAreInvalid if batch.events.iter().any(|event| event.id().len() > 254) => {
                return Err(Error::invalid_event("id", "it is long"));
            }
            Fault::BatchReversed => batch.events.reverse(),
            Fault::IgnoresTimes => batch.recorded_at = None,
            Fault::TimesAreAlwaysPast if batch.recorded_at.is_none() => {
                batch.recorded_at = Some(vec![SystemTime::UNIX_EPOCH; batch.events.len()]);
            }
            Fault::AcceptsAnyTimes => {
                if let Some(times) = &mut batch.recorded_at {
                    times.resize(batch.events.len(), SystemTime::UNIX_EPOCH);
                }
            }
            Fault::TextOnly | Fault::NormalisesMetadata | Fault::FoldsIds => {
                batch.events = batch.events.iter().map(|event| self.rewritten(event)).collect();
            }
            Fault::MixedBatchIsUnconditional => {
                for event in &given.events {
                    if self.inner.get(background, event.id()).await.is_ok() {
                        batch.expected = Expected::Any;
                    }
                }
            }
            _ => {}
        }
        let dropped = self.has(Fault::DropsSomeWrites) && self.every(7);
        let buffered = self.has(Fault::BufferedIsNotWritten) && batch.durability == Some(Durability::Buffered);
        if dropped || buffered {
            let next = self.inner.latest_version(ctx).await?.next();
            return Ok(vec![Stored::new(next, 1, StoreOutcome::Written); batch.events.len()]);
        }
        if self.has(Fault::SplitsBatches) && batch.events.len() > 1 {
            let mut stored = Vec::new();
            for event in batch.events {
                stored.extend(self.inner.store_batch(ctx, event.into()).await?);
            }
            return Ok(stored);
        }
        if self.has(Fault::LeaksPlaces)
            && let Ok(place) = self.places.acquire().await
        {
            place.forget();
        }
        let _writing = Writing::begin(&self.writing);
        let found = self.inner.latest_version(background).await;
        if self.has(Fault::ChecksConditionTooEarly) {
            batch.expected = self.checked_too_early(&batch).await?;
        }
        let _blocked = match self.fault {
            Fault::WaitersBlockWriters => Some(self.waiting.write().await),
            _ => None,
        };
        let result = self.inner.store_batch(ctx, batch).await;
        if self.has(Fault::LeaksPlaces) {
            self.places.add_permits(1);
        }
        match (self.fault, result) {
            (Fault::BatchReversed, Ok(mut stored)) => {
                stored.reverse();
                Ok(stored)
            }
            (Fault::WrongRevision, Ok(stored)) => {
                Ok(stored.iter().map(|s| Stored::new(s.version, s.version.get(), s.outcome)).collect())
            }
            (Fault::RepeatTakesTheNewTime, Ok(stored)) => {
                let is_repeated = stored.iter().any(|stored| stored.outcome == StoreOutcome::AlreadyStored);
                self.happened.fetch_or(is_repeated, Ordering::Relaxed);
                Ok(stored)
            }
            (Fault::LosesUpdates, Ok(stored)) => {
                // Whoever had looked at the same time has the same places.
                let first = stored.iter().find(|stored| stored.outcome == StoreOutcome::Written);
                let shift = first.map_or(0, |first| first.version.get()).saturating_sub(found?.next().get());
                let earlier = |s: &Stored| match s.outcome {
                    StoreOutcome::Written => Stored::new((s.version.get() - shift).into(), s.revision, s.outcome),
                    StoreOutcome::AlreadyStored => *s,
                };
                Ok(stored.iter().map(earlier).collect())
            }
            (Fault::ChecksIdsTooEarly, Ok(stored)) => {
                let found = found?;
                let not_seen = |s: &Stored| if s.version > found { StoreOutcome::Written } else { s.outcome };
                Ok(stored.iter().map(|s| Stored::new(s.version, s.revision, not_seen(s))).collect())
            }
            (Fault::WrittenAlways, Ok(stored)) => {
                Ok(stored.iter().map(|s| Stored::new(s.version, s.revision, StoreOutcome::Written)).collect())
            }
            (Fault::RepeatIsDuplicate, Ok(stored)) => {
                match stored.iter().position(|stored| stored.outcome == StoreOutcome::AlreadyStored) {
                    Some(at) => {
                        let id = given.events[at].id().to_owned();
                        Err(Error::DuplicateEvent { id, version: Some(stored[at].version) })
                    }
                    None => Ok(stored),
                }
            }
            (Fault::RepeatChecksCondition, Ok(stored)) => {
                let aggregate_id = given.events.first().map_or("", Event::aggregate_id);
                let revision = self.inner.aggregate_revision(background, aggregate_id).await?;
                let latest = self.inner.latest_version(background).await?;
                if stored.iter().any(|s| s.outcome == StoreOutcome::Written) || given.expected.holds(revision, latest) {
                    return Ok(stored);
                }
                let aggregate_id = given.expected.is_about_aggregate().then(|| aggregate_id.to_owned());
                Err(Error::VersionConflict { aggregate_id, expected: given.expected, actual: revision })
            }
            (Fault::DuplicateIsIgnored, Err(Error::DuplicateEvent { version, .. })) => {
                let version = version.unwrap_or(Version::new(1));
                Ok(vec![Stored::new(version, 1, StoreOutcome::AlreadyStored); given.events.len()])
            }
            (Fault::ConflictTellsNothing, Err(Error::VersionConflict { aggregate_id, expected, .. })) => {
                Err(Error::VersionConflict { aggregate_id, expected, actual: 0 })
            }
            (Fault::ConflictGuesses, Err(Error::VersionConflict { aggregate_id, expected, actual })) => {
                let others = self.writing.load(Ordering::Relaxed) - 1;
                Err(Error::VersionConflict { aggregate_id, expected, actual: actual + others * 100 })
            }
            (Fault::RefusedIsWritten, Err(error)) => {
                let filler = Event::builder("Refused", "refused").build()?;
                self.inner.append(filler.into())?;
                Err(error)
            }
            (Fault::WritesWhenCancelled, Err(error @ (Error::Cancelled | Error::DeadlineExceeded))) => {
                self.inner.append(given)?;
                Err(error)
            }
            (Fault::UnknownIsHalf, Err(Error::Cancelled)) => {
                self.inner.append(given.events[..1].to_vec().into())?;
                Err(Error::OutcomeUnknown { reason: "half".to_owned(), source: None })
            }
            (_, result) => result,
        }
    }

    /// Checks the condition before it is this append's turn: what is left of it afterwards.
    async fn checked_too_early(&self, batch: &Batch) -> Result<Expected> {
        let background = &Context::background();
        let aggregate_id = batch.events.first().map_or("", Event::aggregate_id);
        let revision = self.inner.aggregate_revision(background, aggregate_id).await?;
        let latest = self.inner.latest_version(background).await?;
        Ok(if batch.expected.holds(revision, latest) { Expected::Any } else { batch.expected })
    }

    fn is_beside_writers(&self) -> bool {
        self.writing.load(Ordering::Relaxed) > 0
    }

    /// The outcome of work that was ended.
    fn ended<T>(&self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Err(ended @ (Error::Cancelled | Error::DeadlineExceeded)) if self.has(Fault::EndedIsAnEngineError) => {
                Err(Error::engine("go on", ended))
            }
            outcome => outcome,
        }
    }

    fn rewritten(&self, event: &Event) -> Event {
        let mut builder = Event::builder(event.event_type(), event.aggregate_id())
            .id(event.id())
            .data(event.data().to_vec())
            .metadata_json(event.metadata());
        match self.fault {
            Fault::TextOnly => builder = builder.data(String::from_utf8_lossy(event.data()).into_owned()),
            Fault::NormalisesMetadata => builder = builder.metadata_json(event.metadata().replace(' ', "")),
            Fault::FoldsIds => builder = builder.id(event.id().to_lowercase()),
            _ => {}
        }
        builder.build().expect("it was valid before")
    }

    async fn page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        if self.has(Fault::LeaksReadSlots)
            && let Ok(slot) = self.slots.acquire().await
        {
            slot.forget();
            tokio::task::yield_now().await;
            self.slots.add_permits(1);
        }
        let ctx = &self.context(ctx)?;
        let mut asked = options.clone();
        match self.fault {
            Fault::SinceIsInclusive => asked.since = Version::new(options.since.get().saturating_sub(1)),
            Fault::BackwardBeforeIsInclusive if options.direction == Direction::Backward => {
                asked.before = options.before.map(Version::next);
            }
            Fault::IgnoresLimit => asked.limit = None,
            Fault::AggregateByPrefix if options.aggregate_id.is_some() => asked.aggregate_id = None,
            _ => {}
        }
        let mut page = match (self.fault, self.inner.load_page(ctx, &asked, size).await) {
            (Fault::CancelledReadIsEmpty, Err(Error::Cancelled | Error::DeadlineExceeded)) => {
                Page::new(options, vec![], Version::ZERO, true)
            }
            (_, page) => page?,
        };
        match self.fault {
            Fault::SkipsAnEvent => page.events.retain(|event| event.version != Version::new(3)),
            Fault::RepeatTakesTheNewTime if self.happened.load(Ordering::Relaxed) => {
                page.events.iter_mut().for_each(|event| event.recorded_at = SystemTime::UNIX_EPOCH);
            }
            Fault::GcLosesTheFirst | Fault::BackupLosesTheFirst if self.happened.load(Ordering::Relaxed) => {
                page.events.retain(|event| event.version != Version::new(1));
            }
            Fault::OutOfOrder if page.events.len() > 1 => page.events.swap(0, 1),
            Fault::SmallPagesAreEmpty if size.bytes < 100 => page = Page::new(options, vec![], page.head, true),
            Fault::HeadRunsAhead => page.head = page.head.next(),
            Fault::HeadRunsAheadOfWriters if self.is_beside_writers() => page.head = page.head.next(),
            Fault::StaleBesideWriters if self.is_beside_writers() => {
                page.head = Version::new(page.head.get().saturating_sub(1));
                page.events.retain(|event| event.version <= page.head);
            }
            Fault::LoadFollowsWriters => {
                if let Some(next) = &mut page.next {
                    next.before = options.before;
                }
            }
            Fault::AggregateByPrefix => {
                let prefix = options.aggregate_id.as_deref().unwrap_or_default();
                page.events.retain(|event| event.event.aggregate_id().starts_with(prefix));
                if let Some(next) = &mut page.next {
                    next.aggregate_id.clone_from(&options.aggregate_id);
                }
            }
            _ => {}
        }
        Ok(page)
    }
}

/// Counts an append as under way until it is dropped.
struct Writing<'a>(&'a AtomicU64);

impl<'a> Writing<'a> {
    fn begin(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Writing(count)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl EventStore for Mutant {
    // Written out, so that something can happen before the future is polled.
    fn store_batch<'store, 'ctx, 'both>(
        &'store self,
        ctx: &'ctx Context,
        batch: Batch,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Vec<Stored>>> + Send + 'both>>
    where
        'store: 'both,
        'ctx: 'both,
        Self: 'both,
    {
        if self.has(Fault::WritesBeforePolled) {
            let stored = self.inner.append(batch);
            return Box::pin(async { stored });
        }
        Box::pin(self.append(ctx, batch))
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        self.page(ctx, options, size).await
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        if self.has(Fault::LongIdsAreInvalid) && id.len() > 254 {
            return Err(Error::invalid_event("id", "it is long"));
        }
        let event = self.inner.get(&self.context(ctx)?, id).await?;
        if self.has(Fault::GetLagsBehind) && event.version == self.inner.latest_version(ctx).await? {
            return Err(Error::EventNotFound { id: id.to_owned() });
        }
        let is_newest = event.version == self.inner.latest_version(ctx).await?;
        if self.has(Fault::GetIsStaleBesideWriters) && self.is_beside_writers() && is_newest {
            return Err(Error::EventNotFound { id: id.to_owned() });
        }
        Ok(event)
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        let latest = self.inner.latest_version(&self.context(ctx)?).await?;
        let back = u64::from(self.has(Fault::LatestGoesBack) && self.every(3));
        Ok(Version::new(latest.get().saturating_sub(back)))
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<u64> {
        self.inner.aggregate_revision(&self.context(ctx)?, aggregate_id).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        if self.has(Fault::WaitEndsTooSoon) {
            return Ok(after);
        }
        if self.has(Fault::LeaksWaits)
            && let Ok(place) = self.places.acquire().await
        {
            place.forget();
        }
        let _blocking = match self.fault {
            Fault::WaitersBlockWriters => Some(self.waiting.read().await),
            _ => None,
        };
        let background = Context::background();
        let ctx = if self.has(Fault::WaitIgnoresContext) { &background } else { &self.context(ctx)? };
        let reached = self.inner.wait_for_events(ctx, after).await;
        if self.has(Fault::LeaksWaits) {
            self.places.add_permits(1);
        }
        match (self.fault, reached) {
            (Fault::WaitMissesClose, Err(Error::Closed)) => std::future::pending().await,
            (_, reached) => reached,
        }
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        if self.has(Fault::LeaksMaintenance) {
            if self.happened.swap(true, Ordering::Relaxed) {
                return Err(Error::engine("collect garbage", "somebody else does already"));
            }
            let report = self.inner.run_gc(ctx, gc).await;
            self.happened.store(false, Ordering::Relaxed);
            return report;
        }
        self.happened.store(true, Ordering::Relaxed);
        if self.has(Fault::GcIgnoresContext) {
            return self.inner.run_gc(&Context::background(), gc).await;
        }
        self.ended(self.inner.run_gc(&self.context(ctx)?, gc).await)
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        let ctx = &self.context(ctx)?;
        self.happened.store(true, Ordering::Relaxed);
        let latest = self.inner.latest_version(ctx).await?.get();
        match self.fault {
            Fault::HasOnlyRequiredMethods => {
                return Err(Error::Unsupported { what: "backups".to_owned() });
            }
            Fault::BackupWantsEvents if latest == 0 => return Err(Error::invalid_event("backup", "it is empty")),
            Fault::BackupLeavesHalf => self.inner.write_copy(target, latest / 2),
            Fault::BackupOverwrites => {
                self.inner.write_copy(target, latest);
                return Ok(BackupReport::default());
            }
            _ => {}
        }
        let mut report = self.ended(self.inner.backup(ctx, target).await)?;
        let missing = match self.fault {
            Fault::BackupLagsBehind => 1,
            Fault::BackupSplitsBatches if latest > 3 => 1,
            _ => return Ok(report),
        };
        report.latest_version = Version::new(report.latest_version.get().saturating_sub(missing));
        self.inner.write_copy(target, report.latest_version.get());
        Ok(report)
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        let ctx = &self.context(ctx)?;
        if self.has(Fault::HasOnlyRequiredMethods) {
            return Err(Error::Unsupported { what: "verification".to_owned() });
        }
        let before = self.inner.latest_version(ctx).await?;
        let mut report = self.ended(self.inner.verify(ctx).await)?;
        if self.has(Fault::VerifyCountsTwice) {
            report.events *= 2;
        }
        if self.has(Fault::VerifyFindsWriters) && self.inner.latest_version(ctx).await? > before {
            report.findings.push(Finding::new(None, "an entry that leads beyond the newest event"));
        }
        Ok(report)
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        let mut stats = self.inner.stats(&self.context(ctx)?).await?;
        match self.fault {
            Fault::StatsCountAppends => stats.aggregates = self.calls.load(Ordering::Relaxed),
            Fault::StatsCountSinceOpening => stats.aggregates = stats.aggregates.saturating_sub(self.at_opening),
            _ => {}
        }
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        match self.fault {
            Fault::CloseDoesNothing => return Ok(()),
            Fault::SecondCloseFails if self.happened.swap(true, Ordering::Relaxed) => return Err(Error::Closed),
            Fault::CloseStopsWhenDropped => {
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
            }
            _ => {}
        }
        self.inner.close().await
    }
}
