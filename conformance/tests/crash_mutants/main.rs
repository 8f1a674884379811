//! Tests of the crash kit itself: a store on disk that passes every check, and for each check one that it must reject.

#![cfg(unix)]

mod log_store;
#[path = "../reference_store/mod.rs"]
mod reference_store;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use conformance::crash::Kit;
use conformance::{Outcome, Profile};
use eventstore_api::EventStore;
use libtest_mimic::{Arguments, Failed, Trial};
use log_store::{Fault, LogStore};

/// Tells a child its kind of store.
const FAULT: &str = "CRASH_MUTANTS_FAULT";

/// The checks, each with the fault that it must find.
const FINDS: &[(&str, Fault)] = &[
    ("crash::f2_a_kill_at_any_moment_loses_nothing", Fault::AnswersBeforeWriting),
    ("crash::f2_a_kill_at_each_point_that_the_store_names_loses_nothing", Fault::SplitsBatches),
    ("crash::f2_a_kill_while_opening_loses_nothing", Fault::RewritesWhenOpening),
    ("crash::f2_a_kill_amid_an_append_loses_nothing", Fault::SplitsBatches),
    ("crash::f2_a_kill_amid_an_append_loses_nothing", Fault::AnswersBeforeWriting),
    ("crash::f2_a_kill_amid_a_collection_loses_nothing", Fault::CollectsInPlace),
    ("crash::f2_a_kill_amid_a_backup_loses_nothing", Fault::BackupOpensHalf),
    ("crash::f2_a_kill_while_closing_loses_nothing", Fault::RewritesWhenClosing),
    ("crash::w4_a_power_cut_at_each_point_that_the_store_names_takes_nothing_synced", Fault::AnswersBeforeSync),
    ("crash::w4_a_power_cut_at_each_point_that_the_store_names_takes_nothing_synced", Fault::TrustsTheLength),
    ("crash::w4_a_power_cut_at_each_point_that_the_store_names_takes_nothing_synced", Fault::TrustsTheOrderOfSectors),
    ("crash::w4_a_power_cut_while_opening_takes_nothing_synced", Fault::RewritesWhenOpening),
    ("crash::w4_a_power_cut_amid_an_append_takes_nothing_synced", Fault::AnswersBeforeSync),
    ("crash::w4_a_power_cut_amid_a_collection_takes_nothing_synced", Fault::CollectsWithoutSync),
    ("crash::w4_a_power_cut_amid_a_collection_takes_nothing_synced", Fault::ForgetsItsDirectory),
    ("crash::w4_a_power_cut_amid_a_backup_takes_nothing_synced", Fault::BackupOpensHalf),
    ("crash::w4_a_power_cut_while_closing_takes_nothing_synced", Fault::RewritesWhenClosing),
    ("crash::w4_a_power_cut_right_after_the_answers_takes_nothing_synced", Fault::AnswersBeforeSync),
    ("crash::l1_a_power_cut_after_close_takes_nothing", Fault::BufferedIsNeverSynced),
    ("crash::w4_a_power_cut_right_after_the_answers_takes_nothing_synced", Fault::ForgetsItsDirectory),
    ("crash::m1_a_backup_is_synced_when_the_call_returns", Fault::BackupIsNotSynced),
    ("crash::m1_a_backup_is_synced_when_the_call_returns", Fault::ForgetsItsDirectory),
    ("crash::f1_a_failed_sync_fences_and_acknowledges_nothing_false", Fault::RetriesFailedSyncs),
    ("crash::f1_a_failed_sync_fences_and_acknowledges_nothing_false", Fault::IgnoresFailedWrites),
    ("crash::f1_a_failed_write_acknowledges_nothing_false", Fault::IgnoresFailedWrites),
    ("crash::f1_a_failed_write_acknowledges_nothing_false", Fault::RefusesWhatMayBeThere),
    ("crash::f4_a_full_disk_loses_nothing_and_opens_again", Fault::IgnoresFailedWrites),
    ("crash::f4_a_write_cut_short_loses_nothing", Fault::IgnoresShortWrites),
    ("crash::f1_an_opening_with_a_failing_disk_harms_nothing", Fault::DeletesWhatCannotBeRead),
    ("crash::w4_a_power_cut_after_a_kill_takes_nothing_synced", Fault::TrustsTheCache),
    ("crash::f3_a_flipped_bit_is_told_and_never_a_wrong_event", Fault::ChecksumIsNotLookedAt),
    ("crash::f3_a_flipped_bit_is_told_and_never_a_wrong_event", Fault::PanicsOnDamage),
    ("crash::f3_a_file_cut_short_is_told_and_never_a_wrong_event", Fault::EndIsNotLookedAt),
    ("crash::l2_an_opening_from_another_process_is_locked", Fault::LocksNothing),
    ("crash::w7_no_clock_keeps_anybody_from_appending", Fault::RecordsAnyTime),
    ("crash::w7_no_clock_keeps_anybody_from_appending", Fault::RefusesAClockThatGoesBack),
    ("crash::m3_a_store_is_not_called_damaged_for_want_of_files", Fault::CallsShortageDamage),
    ("crash::f5_recorders_and_subscribers_that_panic_stop_nobody", Fault::SubscribersBreakIt),
];

/// So many incidents that each fault is met with near certainty: the rarest one shows in one of a hundred. A check ends
/// with the first.
const CYCLES: u64 = 5000;

fn kit(fault: Fault) -> Kit {
    let kit = Kit::new("log", Profile::persistent(), move |directory| async move {
        Ok(Arc::new(LogStore::open(&directory, fault)?) as Arc<dyn EventStore>)
    });
    kit.env(FAULT, &format!("{fault:?}"))
}

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(FAULT) {
        let fault = Fault::ALL.iter().find(|fault| format!("{fault:?}") == name);
        return kit(*fault.expect("the parent names a fault that there is")).run();
    }
    let right = kit(Fault::None);
    let passes = right.checks().map(|check| {
        let name = format!("{} passes a store that keeps the rule", check.name);
        Trial::test(name, move || match kit(Fault::None).run_check(&check.name) {
            Some(Outcome::Passed) => Ok(()),
            // This store does nothing when it is closed.
            Some(Outcome::Ignored(_)) if check.name.contains("while_closing") => Ok(()),
            other => Err(format!("it ended with {other:?}").into()),
        })
    });
    let finds = FINDS.iter().map(|&(check, fault)| {
        Trial::test(format!("{check} finds {fault:?}"), move || match kit(fault).cycles(CYCLES).run_check(check) {
            Some(Outcome::Failed(failure)) if !failure.to_string().contains("happened in") => Ok(()),
            other => Err(format!("the check has to fail, but ended with {other:?}").into()),
        })
    });
    let mut trials: Vec<_> = passes.chain(finds).collect();
    trials.push(Trial::test("every check is known to find a fault", every_check_finds_a_fault));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn every_check_finds_a_fault() -> Result<(), Failed> {
    let known: BTreeSet<_> = FINDS.iter().map(|(check, _)| (*check).to_owned()).collect();
    let checks: BTreeSet<_> = kit(Fault::None).checks().map(|check| check.name).collect();
    if known == checks {
        return Ok(());
    }
    let differs: Vec<_> = known.symmetric_difference(&checks).collect();
    Err(format!("without a fault, or without a check: {differs:?}").into())
}
