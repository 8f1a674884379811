//! Kills, power cuts and failing disks by the thousand, for any store of this repository.

fn main() {}
