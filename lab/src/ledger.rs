//! The ledger of a trial: compares every 200 that a client saw with every mail that the relay
//! stored.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use mail_parser::MessageParser;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;
use vos_auth::config::CODE_LIFETIME;

use crate::Failure;
use crate::postfix::Postfix;
use crate::starts::{Start, address_of, number_of};

/// How far a mail may be outside the time of a fault that explains its second copy: Postfix records
/// whole seconds, and a fault has effects after it is fixed.
const BLUR: Duration = Duration::from_secs(3);

/// The time of one fault.
#[derive(Clone, Copy, Debug)]
pub struct Window<K> {
    pub kind: K,
    pub from: OffsetDateTime,
    pub to: OffsetDateTime,
}

/// A mail that the relay accepted.
#[derive(Clone)]
pub struct Kept {
    message_id: String,
    /// Postfix's queue id. If Postfix itself delivers a mail twice, both copies have the same queue
    /// id.
    queue_id: String,
    to: String,
    taken_at: OffsetDateTime,
}

impl Kept {
    /// The number of the start that requested the mail.
    pub fn number(&self) -> Option<usize> {
        number_of(&self.to)
    }
}

/// Reads a maildir.
pub fn kept(folder: &Path) -> Result<Vec<Kept>, Failure> {
    let mails = std::fs::read_dir(folder)?.map(|entry| -> Result<Kept, Failure> {
        let raw = std::fs::read(entry?.path())?;
        let mail = MessageParser::default().parse_headers(&raw).ok_or("a mail without headers")?;
        let received = mail.received().ok_or("a mail that says not when it came")?;
        let taken_at = received.date().ok_or("a Received without a date")?.to_timestamp();
        Ok(Kept {
            message_id: mail.message_id().ok_or("a mail without Message-ID")?.to_owned(),
            queue_id: received.id().ok_or("a Received without an id")?.to_owned(),
            to: mail.header_raw("X-Original-To").ok_or("a mail to nobody")?.trim().to_owned(),
            taken_at: OffsetDateTime::from_unix_timestamp(taken_at)?,
        })
    });
    mails.collect()
}

/// Waits until no mail is pending at the service or at the relay.
pub async fn drains(connection: &mut PgConnection, postfix: &Postfix) -> Result<(), sqlx::Error> {
    let mut pending = 1_i64;
    while pending > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        pending = sqlx::query("SELECT count(*) FROM outbox").fetch_one(&mut *connection).await?.get(0);
    }
    while postfix.pending() > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// The result of comparing starts with mails.
#[derive(Debug)]
pub struct Verdict<K> {
    pub answers: BTreeMap<String, usize>,
    pub mails: usize,
    pub lost: Vec<String>,
    late: usize,
    beyond: usize,
    unasked: usize,
    sessions_twice: usize,
    twice: BTreeMap<K, usize>,
    twice_unexplained: Vec<String>,
    by_postfix: usize,
    p50: Duration,
    p99: Duration,
}

impl<K> Default for Verdict<K> {
    fn default() -> Self {
        Self {
            answers: BTreeMap::new(),
            mails: 0,
            lost: Vec::new(),
            late: 0,
            beyond: 0,
            unasked: 0,
            sessions_twice: 0,
            twice: BTreeMap::new(),
            twice_unexplained: Vec::new(),
            by_postfix: 0,
            p50: Duration::ZERO,
            p99: Duration::ZERO,
        }
    }
}

impl<K: Copy + Debug + Ord> Verdict<K> {
    /// Compares starts and mails. `duplicating` are the faults that may cause a second copy.
    pub fn of(starts: &[Start], kept: &[Kept], duplicating: &[Window<K>]) -> Self {
        let mut verdict = Self::default();
        let by_number: HashMap<usize, &Start> = starts.iter().map(|start| (start.number, start)).collect();
        let mut took = Vec::new();
        let arrived: HashSet<&str> = kept.iter().map(|mail| mail.to.as_str()).collect();
        for start in starts {
            let answer = start.status.map_or("none".into(), |status| status.to_string());
            *verdict.answers.entry(answer).or_default() += 1;
            if start.status == Some(200) {
                took.push(start.took);
                let address = address_of(start.number);
                if !arrived.contains(address.as_str()) {
                    verdict.lost.push(address);
                }
            }
        }
        took.sort_unstable();
        if let Some(last) = took.len().checked_sub(1) {
            (verdict.p50, verdict.p99) = (took[last / 2], took[last * 99 / 100]);
        }
        let mut mails: HashMap<&str, BTreeMap<&str, &Kept>> = HashMap::new();
        for mail in kept {
            match mail.number().and_then(|number| by_number.get(&number)) {
                Some(start) if start.status == Some(200) => {
                    verdict.late += usize::from(mail.taken_at > start.ended_at + CODE_LIFETIME);
                }
                Some(_) => verdict.beyond += 1,
                None => verdict.unasked += 1,
            }
            let again = mails.entry(&mail.message_id).or_default().insert(&mail.queue_id, mail);
            verdict.by_postfix += usize::from(again.is_some());
        }
        verdict.mails = mails.len();
        verdict.sessions_twice = mails.len().saturating_sub(arrived.len());
        for (id, takes) in mails.iter().filter(|(_, takes)| takes.len() > 1) {
            match takes.values().filter_map(|mail| explains(duplicating, mail.taken_at)).min() {
                Some(kind) => *verdict.twice.entry(kind).or_default() += takes.len() - 1,
                None => verdict.twice_unexplained.push((*id).to_owned()),
            }
        }
        verdict
    }

    pub fn answered(&self, status: &str) -> usize {
        self.answers.get(status).copied().unwrap_or_default()
    }

    /// The number of second copies that a fault explains.
    pub fn twice(&self) -> usize {
        self.twice.values().sum()
    }

    /// Prints the results.
    ///
    /// # Errors
    ///
    /// If a mail was lost, came too late, was sent again without a fault that explains it, or
    /// belongs to no start, or if a start got two different mails.
    pub fn is_told(&self, windows: &[Window<K>], drained: Duration, took: Duration) -> Result<(), Failure> {
        println!("\nfault              injected   mails sent again");
        let mut injected: BTreeMap<K, usize> = BTreeMap::new();
        for window in windows {
            *injected.entry(window.kind).or_default() += 1;
        }
        for (kind, count) in &injected {
            let again = self.twice.get(kind).copied().unwrap_or_default();
            println!("{:18} {count:8}   {again:16}", format!("{kind:?}"));
        }
        println!("{:18} {:8}   {:16}\n", "together", windows.len(), self.twice());
        let answers: Vec<_> =
            self.answers.iter().map(|(answer, count)| format!("{answer}: {count}")).collect();
        println!("answers            {}", answers.join(", "));
        println!("200 after          p50 {:.1?}, p99 {:.1?}", self.p50, self.p99);
        println!("mails kept         {}", self.mails);
        println!("  of no 200        {} (the answer was lost, and the start was kept)", self.beyond);
        println!("  doubled inside   {} (by the relay itself, when it was killed)", self.by_postfix);
        println!("drained            {drained:.1?} after the last fault and the last start");
        println!("in all             {took:.0?}\n");
        println!("sent again, and no fault explains it   {}", self.twice_unexplained.len());
        println!("two mails of one start                 {}", self.sessions_twice);
        println!("mails without a start                  {}", self.unasked);
        println!("mails after the code's death           {}", self.late);
        for lost in self.lost.iter().take(10) {
            println!("lost: {lost}");
        }
        for id in self.twice_unexplained.iter().take(10) {
            println!("sent again: {id}");
        }
        println!("lost {}", self.lost.len());
        let broken =
            self.lost.len() + self.twice_unexplained.len() + self.sessions_twice + self.unasked + self.late;
        if broken == 0 { Ok(()) } else { Err("a promise was broken".into()) }
    }
}

fn explains<K: Copy + Ord>(windows: &[Window<K>], taken_at: OffsetDateTime) -> Option<K> {
    let near = |window: &&Window<K>| (window.from - BLUR..=window.to + BLUR).contains(&taken_at);
    windows.iter().filter(near).map(|window| window.kind).min()
}
