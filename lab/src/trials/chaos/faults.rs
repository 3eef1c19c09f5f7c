//! The faults, and the components in which they are injected.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{Rng, RngExt as _};
use tokio::sync::Mutex;
use vos_auth_lab::cluster::Cluster;
use vos_auth_lab::ledger::Window;
use vos_auth_lab::postfix::Postfix;
use vos_auth_lab::proxy::{Proxy, Way};
use vos_auth_lab::replica::Replica;
use vos_auth_lab::webhook::{Mood, Webhook};
use vos_auth_lab::{Failure, now};

use super::names::Names;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    // The first in the order, because a second copy of a mail is attributed to the first kind that
    // may have caused it.
    RelayAnswerLost,
    ReplicaKilled,
    PostgresKilled,
    PostgresStopped,
    DatabaseReset,
    DatabaseStalled,
    DatabaseSlow,
    RelayKilled,
    RelayStalled,
    RelaySlow,
    RelayReset,
    RelayPutsOff,
    RelayRefusesAll,
    RelayHangsUp,
    RelayGreetsLate,
    RelayAddressDead,
    RelayDiskFull,
    ReceiverKilled,
    ReceiverRefuses,
    ReceiverStalled,
    ClockAhead,
    ClockBehind,
}

impl Kind {
    /// Whether the fault can occur between the relay's 250 and the commit that deletes the row, so
    /// that the mail is sent again.
    pub fn may_duplicate(self) -> bool {
        !matches!(
            self,
            Self::DatabaseSlow
                | Self::RelaySlow
                | Self::RelayPutsOff
                | Self::RelayRefusesAll
                | Self::RelayHangsUp
                | Self::RelayGreetsLate
                | Self::RelayAddressDead
                | Self::RelayDiskFull
                | Self::ReceiverKilled
                | Self::ReceiverRefuses
                | Self::ReceiverStalled
                | Self::ClockAhead
                | Self::ClockBehind
        )
    }

    /// The part that the fault breaks. Two faults of the same part are not injected together.
    fn part(self) -> u8 {
        match self {
            Self::ReplicaKilled | Self::ClockAhead | Self::ClockBehind => 0,
            Self::PostgresKilled | Self::PostgresStopped => 1,
            Self::DatabaseReset | Self::DatabaseStalled | Self::DatabaseSlow => 2,
            Self::RelayKilled | Self::RelayDiskFull => 3,
            Self::RelayAddressDead => 4,
            Self::ReceiverKilled | Self::ReceiverRefuses | Self::ReceiverStalled => 5,
            _ => 6,
        }
    }
}

/// One fault of the schedule.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    /// The index of the replica that is broken, or whose path to PostgreSQL is broken.
    place: usize,
    lasts: Duration,
    pub with_the_one_before: bool,
}

/// A schedule: every kind once in random order, then again in another order, up to `faults` faults.
/// Some faults overlap with the one before.
pub fn schedule(random: &mut SmallRng, faults: usize, kinds: &[Kind]) -> Vec<Fault> {
    let mut order = Vec::new();
    while order.len() < faults {
        let mut round = kinds.to_vec();
        round.shuffle(random);
        order.extend(round);
    }
    order.truncate(faults);
    let mut before = None;
    let faults = order.into_iter().map(|kind| {
        let is_long = matches!(kind, Kind::RelayStalled | Kind::RelayGreetsLate | Kind::ReceiverStalled);
        let longest = if is_long { 25.0 } else { 8.0 };
        let together =
            random.random_bool(0.25) && before.is_some_and(|before: Kind| before.part() != kind.part());
        before = (!together).then_some(kind);
        Fault {
            kind,
            place: usize::from(random.next_u32() % 2 == 1),
            lasts: Duration::from_secs_f64(random.random_range(2.0..longest)),
            with_the_one_before: together,
        }
    });
    faults.collect()
}

/// A replica that may not be running, the command that starts it, and the file that shifts its
/// clock.
pub struct Member {
    inside: Vec<String>,
    database_url: String,
    relay: String,
    changes: Vec<(&'static str, String)>,
    clock: PathBuf,
    running: Mutex<Option<Replica>>,
}

impl Member {
    pub async fn start(
        inside: Vec<String>,
        database_url: String,
        relay: String,
        changes: Vec<(&'static str, String)>,
        clock: PathBuf,
    ) -> Result<Self, Failure> {
        let member = Self { inside, database_url, relay, changes, clock, running: Mutex::new(None) };
        member.is_off_by("+0")?;
        member.starts_again().await?;
        Ok(member)
    }

    async fn is_killed(&self) {
        *self.running.lock().await = None;
    }

    /// Starts the replica, and retries as a supervisor does.
    async fn starts_again(&self) -> Result<(), Failure> {
        let inside: Vec<_> = self.inside.iter().map(String::as_str).collect();
        let changes: Vec<_> = self.changes.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for _ in 0..120 {
            let replica = Replica::start_under(&inside, &self.database_url, &self.relay, &changes).await;
            if let Ok(replica) = replica {
                *self.running.lock().await = Some(replica);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Err("a replica does not start".into())
    }

    /// Shifts the replica's clock. Replaces the whole file, because a file that is written in place
    /// is empty for a moment.
    fn is_off_by(&self, by: &str) -> std::io::Result<()> {
        let next = self.clock.with_extension("next");
        std::fs::write(&next, by)?;
        std::fs::rename(next, &self.clock)
    }
}

pub struct World {
    pub cluster: Mutex<Cluster>,
    pub postfix: Mutex<Postfix>,
    pub databases: [Proxy; 2],
    pub relay: Proxy,
    pub webhook: Mutex<Webhook>,
    pub names: Names,
    pub members: [Member; 2],
}

impl World {
    /// Injects a fault and repairs it. Returns the period from the injection to the repair.
    pub async fn suffers(&self, fault: Fault) -> Result<Window<Kind>, Failure> {
        let from = now();
        let (member, database) = (&self.members[fault.place], &self.databases[fault.place]);
        let lasts = tokio::time::sleep(fault.lasts);
        match fault.kind {
            Kind::ReplicaKilled => {
                member.is_killed().await;
                lasts.await;
                member.starts_again().await?;
            }
            Kind::PostgresKilled | Kind::PostgresStopped => {
                let mut cluster = self.cluster.lock().await;
                if fault.kind == Kind::PostgresKilled {
                    cluster.is_killed();
                } else {
                    cluster.stops_at_once();
                }
                lasts.await;
                cluster.starts_again();
                cluster.connect().await;
            }
            Kind::DatabaseReset => through(database, Way::Reset, lasts).await,
            Kind::DatabaseStalled => through(database, Way::Held, lasts).await,
            Kind::DatabaseSlow => through(database, Way::Slow, lasts).await,
            Kind::RelayKilled => {
                let mut postfix = self.postfix.lock().await;
                postfix.is_killed();
                lasts.await;
                postfix.starts_again();
            }
            Kind::RelayDiskFull => {
                let postfix = self.postfix.lock().await;
                let disk = postfix.disk().ok_or("the relay has no disk that can be full")?;
                disk.fills();
                lasts.await;
                disk.has_room_again();
            }
            Kind::RelayStalled => through(&self.relay, Way::Held, lasts).await,
            Kind::RelaySlow => through(&self.relay, Way::Slow, lasts).await,
            Kind::RelayReset => through(&self.relay, Way::Reset, lasts).await,
            Kind::RelayPutsOff => through(&self.relay, Way::PutsOff, lasts).await,
            Kind::RelayRefusesAll => through(&self.relay, Way::RefusesAll, lasts).await,
            Kind::RelayHangsUp => through(&self.relay, Way::HangsUp, lasts).await,
            Kind::RelayGreetsLate => through(&self.relay, Way::GreetsLate, lasts).await,
            Kind::RelayAddressDead => {
                let _silent = self.names.first_is_silent()?;
                lasts.await;
            }
            Kind::ReceiverKilled => {
                let mut webhook = self.webhook.lock().await;
                webhook.goes_down();
                lasts.await;
                webhook.is_back();
            }
            Kind::ReceiverRefuses | Kind::ReceiverStalled => {
                let webhook = self.webhook.lock().await;
                let refuses = fault.kind == Kind::ReceiverRefuses;
                webhook.is_in_mood(if refuses { Mood::Answers(503) } else { Mood::Stalls });
                lasts.await;
                webhook.is_in_mood(Mood::Takes);
            }
            Kind::RelayAnswerLost => through(&self.relay, Way::DropsAnswers, lasts).await,
            Kind::ClockAhead | Kind::ClockBehind => {
                member.is_off_by(if fault.kind == Kind::ClockAhead { "+1h" } else { "-30m" })?;
                lasts.await;
                member.is_off_by("+0")?;
            }
        }
        Ok(Window { kind: fault.kind, from, to: now() })
    }
}

async fn through(proxy: &Proxy, way: Way, lasts: impl Future<Output = ()>) {
    proxy.is(way);
    lasts.await;
    proxy.is(Way::Open);
}
