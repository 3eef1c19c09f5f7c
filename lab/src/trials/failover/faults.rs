//! The faults. In each of them, a machine is lost with its PostgreSQL, its Patroni and its etcd.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Every process of the primary's machine is killed, so its connections are reset.
    PrimaryKilled,
    /// Every process of the primary's machine is frozen, so nothing answers any more, as when its
    /// network fails.
    PrimarySilent,
    /// Every process of the standby's machine is frozen. Commits wait for that standby.
    StandbySilent,
}

pub const KINDS: [Kind; 3] = [Kind::PrimaryKilled, Kind::PrimarySilent, Kind::StandbySilent];
