//! Loads one address with requests over kept connections, from a thread of its own: closed-loop, where each connection
//! waits for its answer before it asks again, or open-loop, where requests go out at their time whatever became of the
//! ones before, and an answer's time counts from when its request was meant to go.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::Failure;

/// How exactly an open loop keeps its times.
const TICK: Duration = Duration::from_micros(250);

/// The requests of a load, by their numbers.
pub type Requests = Arc<dyn Fn(u64) -> Vec<u8> + Send + Sync>;

/// One answer.
#[derive(Clone, Copy)]
pub struct Answer {
    pub status: u16,
    /// When it came, and what the client waited for it.
    pub at: Instant,
    pub took: Duration,
    /// How much later than it was meant to its request went out; zero in a closed loop.
    pub late: Duration,
}

/// What a load saw.
#[derive(Default)]
pub struct Loaded {
    pub answers: Vec<Answer>,
    pub seconds: f64,
}

impl Loaded {
    /// What one more load saw.
    pub fn add(&mut self, more: Self) {
        self.answers.extend(more.answers);
        self.seconds += more.seconds;
    }

    /// Answers of a status, a second.
    pub fn rate(&self, status: u16) -> f64 {
        self.of(status).count() as f64 / self.seconds
    }

    /// What clients waited at most, in ms, in all but the slowest of these answers: `share` of 1.
    pub fn quantile(&self, status: u16, share: f64) -> f64 {
        quantile(self.of(status).map(|answer| answer.took), share)
    }

    /// The same of how late requests went out.
    pub fn lateness(&self, share: f64) -> f64 {
        quantile(self.answers.iter().map(|answer| answer.late), share)
    }

    pub fn statuses(&self) -> BTreeMap<u16, usize> {
        let mut statuses = BTreeMap::new();
        for answer in &self.answers {
            *statuses.entry(answer.status).or_default() += 1;
        }
        statuses
    }

    pub fn of(&self, status: u16) -> impl Iterator<Item = &Answer> {
        self.answers.iter().filter(move |answer| answer.status == status)
    }
}

pub fn quantile(times: impl Iterator<Item = Duration>, share: f64) -> f64 {
    let mut times: Vec<_> = times.collect();
    if times.is_empty() {
        return f64::NAN;
    }
    let place = ((times.len() - 1) as f64 * share).round() as usize;
    times.select_nth_unstable(place).1.as_secs_f64() * 1e3
}

/// Which requests were made: numbers go on from load to load, so that none is made twice.
#[derive(Clone, Default)]
pub struct Numbers(Arc<AtomicU64>);

impl Numbers {
    pub fn claim(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    pub fn used(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A load on one address.
#[derive(Clone)]
pub struct Load {
    pub address: SocketAddr,
    pub requests: Requests,
    pub numbers: Numbers,
}

impl Load {
    /// So many connections, each with one request at a time.
    pub async fn closed(&self, connections: usize, lasting: Duration) -> Result<Loaded, Failure> {
        let load = self.clone();
        on_a_thread(move || async move {
            let mut connecting = Vec::new();
            for _ in 0..connections {
                connecting.push(Connection::open(load.address).await?);
            }
            let began = Instant::now();
            let mut asking = JoinSet::new();
            for mut connection in connecting {
                let load = load.clone();
                asking.spawn(async move {
                    let mut answers = Vec::new();
                    while began.elapsed() < lasting {
                        let request = (load.requests)(load.numbers.claim());
                        answers.push(connection.asks(&request, Instant::now()).await?);
                    }
                    Ok(answers)
                });
            }
            gather(asking, began).await
        })
        .await
    }

    /// So many requests a second over at most so many connections. One thread sends what is due, another reads: neither
    /// has to be woken by the other.
    pub async fn open(&self, connections: usize, rate: f64, lasting: Duration) -> Result<Loaded, Failure> {
        let load = self.clone();
        on_a_thread(move || async move {
            let (mut lanes, mut asking) = (Vec::new(), JoinSet::new());
            let (answered, free) = mpsc::channel();
            for number in 0..connections {
                let connection = Connection::open(load.address).await?;
                let (lane, connection, asked) = Lane::beside(connection)?;
                asking.spawn(answers_of(connection, asked, number, answered.clone()));
                lanes.push(lane);
            }
            let began = Instant::now();
            let times = (0..(lasting.as_secs_f64() * rate) as u64)
                .map(move |number| began + Duration::from_secs_f64(number as f64 / rate));
            let sending = std::thread::spawn(move || {
                goes_first();
                let sent = load.send_at(times, &lanes, &free);
                // Or whoever reads would wait for more.
                lanes.iter().try_for_each(|lane| lane.stream.shutdown(Shutdown::Both)).and(sent)
            });
            let seen = gather(asking, began).await?;
            sending.join().map_err(|_| ErrorKind::Other)??;
            Ok(seen)
        })
        .await
    }

    /// Sends each request at its time, or later when no connection is free, until the last is answered. What is due
    /// within a tick goes out at its end: a thread that woke for each would take a good part of a core.
    fn send_at(
        &self,
        times: impl Iterator<Item = Instant>,
        lanes: &[Lane],
        answered: &Receiver<usize>,
    ) -> std::io::Result<()> {
        let mut free: Vec<_> = (0..lanes.len()).collect();
        let mut times = times.peekable();
        while times.peek().is_some() {
            std::thread::sleep(TICK);
            free.extend(answered.try_iter());
            let now = Instant::now();
            while let Some(number) = free.pop_if(|_| times.peek().is_some_and(|at| *at <= now)) {
                lanes[number].send(&(self.requests)(self.numbers.claim()), times.next().unwrap_or(now))?;
            }
        }
        answered.iter().take(lanes.len() - free.len()).for_each(drop);
        Ok(())
    }
}

/// The sender's side of a connection of an open loop.
struct Lane {
    stream: std::net::TcpStream,
    asked: Sender<Asked>,
}

/// A request that waits for its answer.
struct Asked {
    due: Instant,
    late: Duration,
}

impl Lane {
    fn beside(connection: Connection) -> std::io::Result<(Self, Connection, Receiver<Asked>)> {
        let stream = connection.stream.into_std()?;
        let (asked, asks) = mpsc::channel();
        let lane = Self { stream: stream.try_clone()?, asked };
        Ok((lane, Connection { stream: TcpStream::from_std(stream)?, read: connection.read }, asks))
    }

    fn send(&self, request: &[u8], due: Instant) -> std::io::Result<()> {
        let asked = Asked { due, late: due.elapsed() };
        self.asked.send(asked).map_err(|_| ErrorKind::BrokenPipe)?;
        (&self.stream).write_all(request)
    }
}

/// Reads answers until the sender ends the connection.
async fn answers_of(
    mut connection: Connection,
    asked: Receiver<Asked>,
    number: usize,
    answered: Sender<usize>,
) -> Answers {
    let mut answers = Vec::new();
    while let Some(status) = connection.reads().await? {
        let at = Instant::now();
        let Asked { due, late } = asked.try_recv().map_err(|_| ErrorKind::InvalidData)?;
        answers.push(Answer { status, at, took: at - due, late });
        // The sender is gone only with an error of its own.
        let _ = answered.send(number);
    }
    if asked.try_recv().is_ok() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(answers) }
}

type Answers = Result<Vec<Answer>, std::io::Error>;

async fn gather(mut asking: JoinSet<Answers>, began: Instant) -> Result<Loaded, std::io::Error> {
    let mut answers = Vec::new();
    while let Some(asked) = asking.join_next().await {
        answers.extend(asked??);
    }
    let last = answers.iter().map(|answer| answer.at).max().unwrap_or(began);
    Ok(Loaded { answers, seconds: (last - began).as_secs_f64() })
}

/// One thread asks and reads, or reads alone, as little beside the service and PostgreSQL as may be.
async fn on_a_thread<T, F>(work: impl FnOnce() -> F + Send + 'static) -> Result<T, Failure>
where
    T: Send + 'static,
    F: Future<Output = Result<T, std::io::Error>>,
{
    let (done, seen) = oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let _ = done.send(runtime.and_then(|runtime| runtime.block_on(work())));
    });
    Ok(seen.await??)
}

/// Gives this thread priority over the others, if root measures: a request that goes late would count as a slow answer.
fn goes_first() {
    let thread = std::fs::read_link("/proc/thread-self").ok();
    if let Some(id) = thread.as_deref().and_then(|path| path.file_name()) {
        let _ = Command::new("renice").args(["-n", "-10", "-p"]).arg(id).output();
    }
}

/// One kept connection.
pub struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::with_capacity(4096) })
    }

    /// Sends a request that was meant to go at `due`, and reads its answer, which [`Connection::answer`] has then.
    pub async fn asks(&mut self, request: &[u8], due: Instant) -> std::io::Result<Answer> {
        let late = due.elapsed();
        self.stream.write_all(request).await?;
        let status = self.reads().await?.ok_or(ErrorKind::UnexpectedEof)?;
        let at = Instant::now();
        Ok(Answer { status, at, took: at - due, late })
    }

    /// The status of the next answer, or nothing at the connection's end.
    async fn reads(&mut self) -> std::io::Result<Option<u16>> {
        self.read.clear();
        while self.stream.read_buf(&mut self.read).await? > 0 {
            if let Some(status) = complete(&self.read) {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    /// The last answer, head and body.
    pub fn answer(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

/// The status of an answer that has arrived as a whole.
fn complete(read: &[u8]) -> Option<u16> {
    let end = read.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&read[..end]).ok()?;
    let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: "))?;
    (read.len() >= end + 4 + length.parse::<usize>().ok()?).then(|| head.get(9..12)?.parse().ok())?
}

/// A request with a JSON body.
pub fn post(path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}
