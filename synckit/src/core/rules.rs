//! The rules of syncing, each of which can be switched off, so that the simulation can show what it is for.

#[cfg(feature = "mutants")]
use std::cell::Cell;

/// A rule of syncing. Without it events get lost or twisted, and the simulation breaks.
///
/// Rules are constants: only a build with the feature `mutants` has `Rule::without`.
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

    /// The rule in a sentence, and what is done without it.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Rule::AckIsNoConfirmation => {
                "a batch leaves pending only when its events were pulled; without: when the push was answered"
            }
            Rule::Basis => "a condition is about what its decision saw; without: about a count",
            Rule::NoSilentMove => {
                "a condition covers only what its own decision saw; without: it moves along with a decision on a batch below it"
            }
            Rule::Dependencies => {
                "batches on top of a rejected, dropped or replaced one go to the resolver; without: they are pushed where the revision fits"
            }
            Rule::LatestOnAll => {
                "a batch with `latest` stands on every own batch before it; without: on those of its aggregates"
            }
            Rule::PublishAtHeads => "pulled events are shown up to a version that was a head; without: page by page",
            Rule::HeadOfSamePage => {
                "the head is the one of the answer whose page reaches it; without: any head that was heard of"
            }
            Rule::ExistsIsLocal => {
                "`exists` is decided by the replica when the batch is appended, and sent as `any`; without: nobody decides it"
            }
            Rule::ConfirmedWins => "a rejected batch whose events are pulled is confirmed; without: it stays rejected",
            Rule::AnywayHasCondition => {
                "append-anyway is sent with the revision that its decision saw; without: as `any`"
            }
            Rule::DuplicateNoAnyway => {
                "a used id can be replaced or rejected, not appended anyway; without: anyway is accepted"
            }
            Rule::FreshIds => "a replacement has ids that were never used; without: the old ids",
            Rule::OwnIsKept => "compaction keeps which confirmed events are own; without: it forgets",
            Rule::MarkIsKept => "deleting a rejected batch keeps its mark for those on top; without: it forgets",
            Rule::PageFits => {
                "a page is taken only where it begins at the end of what is there; without: its unknown events are taken"
            }
            Rule::AllIds => {
                "a batch is confirmed when all its ids are there with equal content; without: when the first is"
            }
            Rule::DecideFromPull => {
                "conflicts are decided from pulled events, an answer is a hint; without: a refusal opens the conflict as it is known then"
            }
            Rule::OutcomeFirst => "an outcome is durable before its batch is sent; without: it is sent first",
            Rule::RejectedIdsKnown => "appending a rejected id is an error; without: a new pending batch",
            Rule::AsideFirst => "recovery: the new journal, then the old events leave; without: they leave first",
            Rule::HeadFirst => {
                "recovery: what the hub has up to its head, then the new journal; without: only what both have, which may end inside of a batch"
            }
            Rule::LostBasisMarks => {
                "recovery sends batches on top of lost foreign events to the resolver; without: it does not"
            }
            Rule::AnswerNamesSeen => {
                "a resolver's answer is about what it was shown; without: about everything that is there when it answers"
            }
            Rule::OwnIsNotForeign => "own events do not count as unknown; without: everything behind the basis does",
            Rule::LaterIsForeign => {
                "own later batches that are confirmed first, by a copy of the directory, are unknown to earlier ones; without: they are own"
            }
            Rule::OwnIsAsDecided => {
                "own are the events of batches as they are decided now; without: also those of rejected and replaced ones"
            }
            Rule::TimeAfterSeen => "the time of a write is later than what it saw; without: the clock's",
            Rule::SkipSharesAny => {
                "when others go on, any shared aggregate holds a batch back; without: its first aggregate only"
            }
            Rule::StopAtRefusal => "the hub stops a push at its first refusal; without: it goes on with the next batch",
            Rule::DigestOnPull => "a pull names version and digest; without: only a shorter hub is noticed",
            Rule::DigestOnPush => "a push names version and digest; without: it does not",
            Rule::PullSyncedOnly => "the hub gives replicas only what is synced; without: all",
            Rule::DurableBeforeShown => "an own batch is shown when it is durable; without: before that",
            Rule::ToldOnPublish => {
                "subscribers are told what is confirmed when it is shown; without: when it is staged"
            }
            Rule::ReplacedIsTold => {
                "subscribers are told a batch anew whose events are others than were told; without: when it was not told before"
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

    /// Whether the rule is kept: always, but inside of `without`.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn is_kept(self) -> bool {
        OFF.get() != Some(self)
    }

    /// Whether the rule is kept: always.
    #[cfg(not(feature = "mutants"))]
    #[must_use]
    pub const fn is_kept(self) -> bool {
        let _ = self;
        true
    }
}
