//! What has happened.

use std::fmt;

use crate::witness::Counts;

/// What has happened in some rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Rounds that ended with everything as it has to be.
    pub rounds: u64,
    /// Processes of hubs and replicas.
    pub processes: u64,
    /// Replicas that were killed.
    pub replica_kills: u64,
    /// Hubs that were killed.
    pub hub_kills: u64,
    /// Replicas that lost power.
    pub replica_power_cuts: u64,
    /// Replicas that were stopped, opened again and appended to by the same process, and then lost power.
    pub stops: u64,
    /// Replicas that went on when their disk had failed, and then lost power.
    pub late_cuts: u64,
    /// Hubs that lost power.
    pub hub_power_cuts: u64,
    /// Disks that were full for a while.
    pub full_disks: u64,
    /// Disks on which writes or syncs failed.
    pub failing_disks: u64,
    /// Connections.
    pub connections: u64,
    /// Connections that were cut, or refused.
    pub cuts: u64,
    /// Connections over which nothing went any more.
    pub stalls: u64,
    /// How often a hub was restored from an older copy.
    pub restores: u64,
    /// How often a replica went over to another history.
    pub histories: u64,
    /// Events that a hub had lost, as often as replicas kept them aside.
    pub kept_aside: u64,
    /// How often all replicas had to sync, at most, until all was quiet.
    pub most_passes: u64,
    pub(crate) counts: Counts,
}

impl Summary {
    pub(crate) fn kills_of(&mut self, is_hub: bool) -> &mut u64 {
        if is_hub { &mut self.hub_kills } else { &mut self.replica_kills }
    }

    pub(crate) fn power_cuts_of(&mut self, is_hub: bool) -> &mut u64 {
        if is_hub { &mut self.hub_power_cuts } else { &mut self.replica_power_cuts }
    }

    /// How many batches were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.counts.acknowledged
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let (one, two) = (self.counts, other.counts);
        Summary {
            rounds: self.rounds + other.rounds,
            processes: self.processes + other.processes,
            replica_kills: self.replica_kills + other.replica_kills,
            hub_kills: self.hub_kills + other.hub_kills,
            replica_power_cuts: self.replica_power_cuts + other.replica_power_cuts,
            stops: self.stops + other.stops,
            late_cuts: self.late_cuts + other.late_cuts,
            hub_power_cuts: self.hub_power_cuts + other.hub_power_cuts,
            full_disks: self.full_disks + other.full_disks,
            failing_disks: self.failing_disks + other.failing_disks,
            connections: self.connections + other.connections,
            cuts: self.cuts + other.cuts,
            stalls: self.stalls + other.stalls,
            restores: self.restores + other.restores,
            histories: self.histories + other.histories,
            kept_aside: self.kept_aside + other.kept_aside,
            most_passes: self.most_passes.max(other.most_passes),
            counts: Counts {
                acknowledged: one.acknowledged + two.acknowledged,
                confirmed: one.confirmed + two.confirmed,
                replaced: one.replaced + two.replaced,
                rejected: one.rejected + two.rejected,
                gone: one.gone + two.gone,
                conditions: one.conditions + two.conditions,
            },
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { acknowledged, confirmed, replaced, rejected, gone, conditions } = self.counts;
        let rows = [
            ("rounds", self.rounds),
            ("processes", self.processes),
            ("replicas killed", self.replica_kills),
            ("hubs killed", self.hub_kills),
            ("power cuts of replicas", self.replica_power_cuts),
            ("replicas stopped, opened again and their power cut", self.stops),
            ("power cuts of replicas whose disk had failed", self.late_cuts),
            ("power cuts of hubs", self.hub_power_cuts),
            ("full disks", self.full_disks),
            ("failing writes or syncs", self.failing_disks),
            ("connections", self.connections),
            ("of these cut or refused", self.cuts),
            ("of these stalled", self.stalls),
            ("hubs restored from an older copy", self.restores),
            ("histories accepted by replicas", self.histories),
            ("lost events found aside", self.kept_aside),
            ("batches acknowledged", acknowledged),
            ("of these confirmed as they were", confirmed),
            ("replaced by a decision, and confirmed", replaced),
            ("rejected with a reason", rejected),
            ("dropped or deleted by a decision, or unsynced at the hub", gone),
            ("conditions that were checked", conditions),
            ("syncs of all until it was quiet, at most", self.most_passes),
        ];
        writeln!(f, "| what | how many |\n|---|---:|")?;
        rows.into_iter().try_for_each(|(what, count)| writeln!(f, "| {what} | {count} |"))
    }
}
