use std::future::Future;
use std::pin::Pin;

use crate::Profile;
use crate::env::{Env, Ways};
use crate::failure::Checked;

pub(crate) type Body = for<'env> fn(&'env Env) -> Pin<Box<dyn Future<Output = Checked> + 'env>>;

/// One check of one rule, defined by [`checks!`](crate::check).
pub(crate) struct Check {
    /// `area::rule_number_and_rule_in_words`.
    pub(crate) name: String,
    /// The rule in a sentence, printed when the check fails.
    pub(crate) rule: String,
    pub(crate) needs: Needs,
    pub(crate) runtimes: Runtimes,
    pub(crate) body: Body,
}

/// What a check requires of the store.
#[derive(Clone, Copy)]
pub(crate) enum Needs {
    Nothing,
    /// Events that survive closing.
    Persistence,
    /// The declared absence of persistence.
    NoPersistence,
    /// A lock on an open store.
    Locking,
    /// The declared absence of a lock.
    NoLocking,
    /// Backups.
    Backup,
    /// The declared absence of backups.
    NoBackup,
    /// Verification.
    Verification,
    /// The declared absence of verification.
    NoVerification,
    /// A way to open it read-only.
    ReadOnly,
    /// The declared absence of read-only opening.
    NoReadOnly,
    /// More than one process can do through the trait, for this reason.
    More(&'static str),
}

impl Needs {
    /// Why the check does not run for a store with this profile and these ways to open it.
    pub(crate) fn missing(self, profile: &Profile, ways: &Ways) -> Option<&'static str> {
        match self {
            Needs::Persistence if !profile.survives_closing() => Some("needs a store that survives closing"),
            Needs::NoPersistence if profile.survives_closing() => {
                Some("only for a store that does not survive closing")
            }
            Needs::Locking if !profile.locks() => Some("needs a store that locks"),
            Needs::NoLocking if profile.locks() => Some("only for a store that does not lock"),
            Needs::Backup if !profile.takes_backups() => Some("needs a store that takes backups"),
            Needs::NoBackup if profile.takes_backups() => Some("only for a store that takes no backups"),
            Needs::Verification if !profile.verifies() => Some("needs a store that verifies"),
            Needs::NoVerification if profile.verifies() => Some("only for a store that does not verify"),
            Needs::ReadOnly if !profile.opens_read_only() => Some("needs a store that can be opened read-only"),
            Needs::NoReadOnly if profile.opens_read_only() => Some("only for a store that cannot be opened read-only"),
            Needs::ReadOnly | Needs::NoReadOnly if ways.read_only.is_none() => {
                Some("needs a way to open the store read-only: `Suite::read_only`")
            }
            Needs::More(reason) => Some(reason),
            _ => None,
        }
    }
}

/// The Tokio runtimes on which a check runs, one after the other, each with a fresh store.
#[derive(Clone, Copy)]
pub(crate) enum Runtimes {
    MultiThread,
    /// In addition, a current-thread runtime, where blocking the thread blocks everything.
    Both,
}

/// Defines and registers the checks of one rules module, so that none can be forgotten.
///
/// The module gives the area, and the function the name. The doc comment is the rule, which a failure prints.
/// Attributes: `#[needs(Persistence)]`, `#[on(Both)]` for a second run on a current-thread runtime, and
/// `#[ignore = "…"]` for a rule that cannot be checked through the trait in one process. The body need not end in `Ok`.
macro_rules! checks {
    ($(
        $(#[doc = $rule:literal])+
        $(#[needs($needs:ident)])?
        $(#[on($runtimes:ident)])?
        $(#[ignore = $reason:literal])?
        async fn $name:ident($env:ident: &Env) $body:block
    )+) => {
        $(
            $(#[doc = $rule])+
            async fn $name($env: &$crate::env::Env) -> $crate::failure::Checked {
                $body
                Ok(())
            }
        )+

        pub(super) fn checks() -> Vec<$crate::check::Check> {
            let area = module_path!().rsplit("::").next().unwrap_or_default();
            vec![$(
                $crate::check::Check {
                    name: format!("{area}::{}", stringify!($name)),
                    rule: concat!($($rule),+).trim().to_owned(),
                    needs: checks!(@needs $($needs)? $($reason)?),
                    runtimes: checks!(@runtimes $($runtimes)?),
                    body: |env| Box::pin($name(env)),
                }
            ),+]
        }
    };
    (@needs) => { $crate::check::Needs::Nothing };
    (@needs $needs:ident) => { $crate::check::Needs::$needs };
    (@needs $reason:literal) => { $crate::check::Needs::More($reason) };
    (@runtimes) => { $crate::check::Runtimes::MultiThread };
    (@runtimes $runtimes:ident) => { $crate::check::Runtimes::$runtimes };
}
pub(crate) use checks;
