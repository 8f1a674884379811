//! The rules of syncing. Each can be switched off, so that the simulation can show what it is for.

#[cfg(feature = "mutants")]
use std::cell::Cell;

/// A rule of syncing. Without it, events are lost or corrupted, which the simulation detects.
///
/// All rules apply. Only a build with the feature `mutants` has `Rule::without`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "`about` says what each is")]
pub enum Rule {
    AckIsNoConfirmation,
    Basis,
    NoSilentMove,
    Dependencies,
    LatestOnAll,
    PublishAtHeads,
    HeadOfSamePage,
    ExistsIsLocal,
    ConfirmedWins,
    AnywayHasCondition,
    DuplicateNoAnyway,
    FreshIds,
    OwnIsKept,
    MarkIsKept,
    PageFits,
    AllIds,
    DecideFromPull,
    OutcomeFirst,
    RejectedIdsKnown,
    AsideFirst,
    HeadFirst,
    LostBasisMarks,
    AnswerNamesSeen,
    OwnIsNotForeign,
    LaterIsForeign,
    OwnIsAsDecided,
    TimeAfterSeen,
    SkipSharesAny,
    StopAtRefusal,
    DigestOnPull,
    DigestOnPush,
    PullSyncedOnly,
    DurableBeforeShown,
    ToldOnPublish,
    ReplacedIsTold,
}

#[cfg(feature = "mutants")]
thread_local! {
    static OFF: Cell<Option<Rule>> = const { Cell::new(None) };
}

impl Rule {
    /// Every rule.
    pub const ALL: &[Rule] = &[
        Rule::AckIsNoConfirmation,
        Rule::Basis,
        Rule::NoSilentMove,
        Rule::Dependencies,
        Rule::LatestOnAll,
        Rule::PublishAtHeads,
        Rule::HeadOfSamePage,
        Rule::ExistsIsLocal,
        Rule::ConfirmedWins,
        Rule::AnywayHasCondition,
        Rule::DuplicateNoAnyway,
        Rule::FreshIds,
        Rule::OwnIsKept,
        Rule::MarkIsKept,
        Rule::PageFits,
        Rule::AllIds,
        Rule::DecideFromPull,
        Rule::OutcomeFirst,
        Rule::RejectedIdsKnown,
        Rule::AsideFirst,
        Rule::HeadFirst,
        Rule::LostBasisMarks,
        Rule::AnswerNamesSeen,
        Rule::OwnIsNotForeign,
        Rule::LaterIsForeign,
        Rule::OwnIsAsDecided,
        Rule::TimeAfterSeen,
        Rule::SkipSharesAny,
        Rule::StopAtRefusal,
        Rule::DigestOnPull,
        Rule::DigestOnPush,
        Rule::PullSyncedOnly,
        Rule::DurableBeforeShown,
        Rule::ToldOnPublish,
        Rule::ReplacedIsTold,
    ];

    /// The rule in a sentence, and what happens without it.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Rule::AckIsNoConfirmation => {
                "a batch leaves pending only when its events were pulled; without: when the push was answered"
            }
            Rule::Basis => "a condition is about what its decision saw; without: about a count",
            Rule::NoSilentMove => {
                "a condition covers only what its own decision saw; without: a decision on an earlier batch extends it"
            }
            Rule::Dependencies => {
                "batches on top of a rejected, dropped or replaced one go to the resolver; without: they are pushed if the revision fits"
            }
            Rule::LatestOnAll => {
                "a batch with `latest` depends on every own batch before it; without: on those of its aggregates"
            }
            Rule::PublishAtHeads => {
                "pulled events become visible up to a version that was a head; without: page by page"
            }
            Rule::HeadOfSamePage => "the head is that of the answer whose page reaches it; without: any known head",
            Rule::ExistsIsLocal => {
                "the replica checks `exists` when the batch is appended, and sends `any`; without: nobody checks it"
            }
            Rule::ConfirmedWins => "a rejected batch whose events are pulled is confirmed; without: it stays rejected",
            Rule::AnywayHasCondition => {
                "append-anyway is sent with the revision that its decision saw; without: as `any`"
            }
            Rule::DuplicateNoAnyway => {
                "a used id can be replaced or rejected, not appended anyway; without: anyway is accepted"
            }
            Rule::FreshIds => "a replacement has ids that were never used; without: the old ids",
            Rule::OwnIsKept => "compaction keeps which confirmed events are own; without: it loses that",
            Rule::MarkIsKept => {
                "deleting a rejected batch keeps its mark for those on top; without: it deletes the mark"
            }
            Rule::PageFits => {
                "a page is accepted only if it begins at the end of the confirmed events; without: its unknown events are accepted"
            }
            Rule::AllIds => {
                "a batch is confirmed when all its ids exist with equal content; without: when the first does"
            }
            Rule::DecideFromPull => {
                "conflicts are decided from pulled events, and an answer is a hint; without: a refusal opens the conflict with what is known"
            }
            Rule::OutcomeFirst => "an outcome is durable before its batch is sent; without: it is sent first",
            Rule::RejectedIdsKnown => "appending a rejected id is an error; without: a new pending batch",
            Rule::AsideFirst => "recovery replaces the journal before it moves the old events aside; without: after",
            Rule::HeadFirst => {
                "recovery copies everything up to the hub's head before it replaces the journal; without: only the common part, which may end inside a batch"
            }
            Rule::LostBasisMarks => {
                "recovery sends batches on top of lost foreign events to the resolver; without: it does not"
            }
            Rule::AnswerNamesSeen => {
                "a resolver's answer covers what it was shown; without: everything that is there when it answers"
            }
            Rule::OwnIsNotForeign => "own events do not count as unknown; without: everything after the basis does",
            Rule::LaterIsForeign => {
                "own later batches that a copy of the directory got confirmed first are unknown to earlier ones; without: they are own"
            }
            Rule::OwnIsAsDecided => {
                "only events of batches as they are decided now are own; without: also those of rejected and replaced ones"
            }
            Rule::TimeAfterSeen => "the time of a write is later than what it saw; without: the clock's",
            Rule::SkipSharesAny => {
                "a batch does not overtake a waiting one if they share any aggregate; without: only its first aggregate counts"
            }
            Rule::StopAtRefusal => "the hub stops a push at its first refusal; without: it goes on with the next batch",
            Rule::DigestOnPull => "a pull names version and digest; without: only a shorter hub is noticed",
            Rule::DigestOnPush => "a push names version and digest; without: it does not",
            Rule::PullSyncedOnly => "the hub gives replicas only what is synced; without: all",
            Rule::DurableBeforeShown => "an own batch is shown when it is durable; without: before that",
            Rule::ToldOnPublish => {
                "subscribers are notified of confirmed events when they become visible; without: when they are staged"
            }
            Rule::ReplacedIsTold => {
                "subscribers are notified of a batch again if its events have changed; without: only of batches not announced before"
            }
        }
    }

    /// Runs `work` with this rule switched off, on this thread.
    #[cfg(feature = "mutants")]
    pub fn without<T>(self, work: impl FnOnce() -> T) -> T {
        let before = OFF.replace(Some(self));
        let done = work();
        OFF.set(before);
        done
    }

    /// Whether the rule applies: always, except inside `without`.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn is_kept(self) -> bool {
        OFF.get() != Some(self)
    }

    /// Whether the rule applies: always.
    #[cfg(not(feature = "mutants"))]
    #[must_use]
    pub const fn is_kept(self) -> bool {
        let _ = self;
        true
    }
}
