//! The checks, one module for each area of the contract.

mod concurrency;
mod context;
mod faults;
mod filtering;
mod following;
mod life;
mod maintenance;
mod model;
mod order;
mod replicas;
mod writing;

use crate::check::Check;

/// Every check.
pub(crate) fn checks() -> Vec<Check> {
    let areas = [
        order::checks,
        writing::checks,
        context::checks,
        concurrency::checks,
        life::checks,
        faults::checks,
        following::checks,
        filtering::checks,
        maintenance::checks,
        replicas::checks,
        model::checks,
    ];
    areas.into_iter().flat_map(|area| area()).collect()
}
