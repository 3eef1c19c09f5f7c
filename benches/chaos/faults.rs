//! What is broken, and the world that it is broken in.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{Rng, RngExt as _};
use time::OffsetDateTime;
use tokio::sync::Mutex;

use crate::Failure;
use crate::harness::cluster::Cluster;
use crate::names::Names;
use crate::postfix::Postfix;
use crate::proxy::{Mode, Proxy};
use crate::replica::Replica;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    // First: where several could have had a mail sent again, it is this one.
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
    ClockAhead,
    ClockBehind,
}

impl Kind {
    /// Whether it can fall between the relay's 250 and the commit of the deletion, so that the mail is sent again.
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
                | Self::ClockAhead
                | Self::ClockBehind
        )
    }

    /// Two faults of one part are not injected together.
    fn part(self) -> u8 {
        match self {
            Self::ReplicaKilled | Self::ClockAhead | Self::ClockBehind => 0,
            Self::PostgresKilled | Self::PostgresStopped => 1,
            Self::DatabaseReset | Self::DatabaseStalled | Self::DatabaseSlow => 2,
            Self::RelayKilled | Self::RelayDiskFull => 3,
            Self::RelayAddressDead => 4,
            _ => 5,
        }
    }
}

/// One fault of the schedule.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    /// Which replica, or the path to which.
    place: usize,
    lasts: Duration,
    pub with_the_one_before: bool,
}

/// When a fault was there.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub kind: Kind,
    pub from: OffsetDateTime,
    pub to: OffsetDateTime,
}

/// Every kind once, then at random; some together with the one before.
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
        let longest = if matches!(kind, Kind::RelayStalled | Kind::RelayGreetsLate) { 25.0 } else { 8.0 };
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

/// A replica, which may be gone, the command it is started by, and the file that its clock goes by.
pub struct Member {
    inside: Vec<String>,
    environment: Vec<(&'static str, String)>,
    clock: PathBuf,
    running: Mutex<Option<Replica>>,
}

impl Member {
    pub async fn start(
        inside: Vec<String>,
        environment: Vec<(&'static str, String)>,
        clock: PathBuf,
    ) -> Result<Self, Failure> {
        let member = Self { inside, environment, clock, running: Mutex::new(None) };
        member.is_off_by("+0")?;
        member.starts_again().await?;
        Ok(member)
    }

    async fn is_killed(&self) {
        *self.running.lock().await = None;
    }

    /// As a supervisor does it: again and again.
    async fn starts_again(&self) -> Result<(), Failure> {
        let environment: Vec<_> =
            self.environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for _ in 0..120 {
            if let Ok(replica) = Replica::start_inside(&self.inside, &environment).await {
                *self.running.lock().await = Some(replica);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Err("a replica does not start".into())
    }

    /// As a whole: a file that is written in place is empty for a moment.
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
    pub names: Names,
    pub members: [Member; 2],
}

impl World {
    /// Breaks something, and sets it right again.
    pub async fn suffers(&self, fault: Fault) -> Result<Window, Failure> {
        let from = crate::now();
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
            Kind::DatabaseReset => through(database, Mode::Resets, lasts).await,
            Kind::DatabaseStalled => through(database, Mode::Stalls, lasts).await,
            Kind::DatabaseSlow => through(database, Mode::IsSlow, lasts).await,
            Kind::RelayKilled => {
                let mut postfix = self.postfix.lock().await;
                postfix.is_killed();
                lasts.await;
                postfix.starts_again()?;
            }
            Kind::RelayDiskFull => {
                let postfix = self.postfix.lock().await;
                postfix.disk_is_full()?;
                lasts.await;
                postfix.disk_has_room()?;
            }
            Kind::RelayStalled => through(&self.relay, Mode::Stalls, lasts).await,
            Kind::RelaySlow => through(&self.relay, Mode::IsSlow, lasts).await,
            Kind::RelayReset => through(&self.relay, Mode::Resets, lasts).await,
            Kind::RelayPutsOff => through(&self.relay, Mode::PutsOff, lasts).await,
            Kind::RelayRefusesAll => through(&self.relay, Mode::RefusesAll, lasts).await,
            Kind::RelayHangsUp => through(&self.relay, Mode::HangsUp, lasts).await,
            Kind::RelayGreetsLate => through(&self.relay, Mode::GreetsLate, lasts).await,
            Kind::RelayAddressDead => {
                let _silent = self.names.first_is_silent()?;
                lasts.await;
            }
            Kind::RelayAnswerLost => through(&self.relay, Mode::DropsAnswers, lasts).await,
            Kind::ClockAhead | Kind::ClockBehind => {
                member.is_off_by(if fault.kind == Kind::ClockAhead { "+1h" } else { "-30m" })?;
                lasts.await;
                member.is_off_by("+0")?;
            }
        }
        Ok(Window { kind: fault.kind, from, to: crate::now() })
    }
}

async fn through(proxy: &Proxy, mode: Mode, lasts: impl Future<Output = ()>) {
    proxy.is(mode);
    lasts.await;
    proxy.is(Mode::Passes);
}
