//! What is lost: a machine with its PostgreSQL, its Patroni and its etcd.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Every process of the primary's machine is killed: its connections are reset.
    PrimaryKilled,
    /// Every process of the primary's machine is frozen: nothing answers any more, as when its network is gone.
    PrimarySilent,
    /// The same with the standby that commits wait for.
    StandbySilent,
}

pub const KINDS: [Kind; 3] = [Kind::PrimaryKilled, Kind::PrimarySilent, Kind::StandbySilent];
