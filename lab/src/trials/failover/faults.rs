//! The faults. In each of them, a machine is lost with its PostgreSQL, its Patroni and its etcd.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Every process of the primary's machine is killed, so its connections are reset.
    PrimaryKilled,
    /// Every process of the primary's machine is frozen, so nothing answers any more, as when its
    /// network fails.
    PrimarySilent,
    /// The same with the machine of the standby that commits wait for.
    StandbySilent,
}

pub const KINDS: [Kind; 3] = [Kind::PrimaryKilled, Kind::PrimarySilent, Kind::StandbySilent];
