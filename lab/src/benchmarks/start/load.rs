//! Loads one address with requests over kept connections, from a thread of its own: closed-loop, where each connection
//! waits for its answer before it asks again, or open-loop, where each request is sent at its time whatever became of the
//! ones before, and an answer's time counts from when its request was due.
//!
//! It shares the machine with what it measures. So no runtime stands between it and the sockets, and one look at them
//! takes all that has come.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use tokio::sync::oneshot;

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
    /// How late its request was sent; zero in a closed loop.
    pub late: Duration,
}

/// What a load saw.
#[derive(Default)]
pub struct Loaded {
    pub answers: Vec<Answer>,
    pub seconds: f64,
}

impl Loaded {
    fn since(began: Instant, answers: Vec<Answer>) -> Self {
        let last = answers.last().map_or(began, |answer| answer.at);
        Self { answers, seconds: (last - began).as_secs_f64() }
    }

    /// A part of it.
    pub fn within(&self, span: &Range<Instant>) -> Self {
        let answers = self.answers.iter().filter(|answer| span.contains(&answer.at)).copied().collect();
        Self { answers, seconds: (span.end - span.start).as_secs_f64() }
    }

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

    /// The same for how late requests were sent.
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
        on_a_thread(move || {
            let mut lanes = Lanes::open(load.address, connections)?;
            let (began, mut answers) = (Instant::now(), Vec::new());
            while lanes.are_free() {
                lanes.send(&load.next(), Instant::now())?;
            }
            while lanes.are_waiting() {
                let next = || (began.elapsed() < lasting).then(|| load.next());
                lanes.read(None, &mut answers, next)?;
            }
            Ok(Loaded::since(began, answers))
        })
        .await
    }

    /// So many requests a second over at most so many connections. What is due within a tick is sent at its end, and an
    /// answer is read at the end of a tick, too, and so counts up to a tick too much: a thread that woke for each would take
    /// a good part of a core.
    pub async fn open(&self, connections: usize, rate: f64, lasting: Duration) -> Result<Loaded, Failure> {
        let load = self.clone();
        on_a_thread(move || {
            goes_first();
            let mut lanes = Lanes::open(load.address, connections)?;
            let (began, mut answers) = (Instant::now(), Vec::new());
            let mut times = (0..(lasting.as_secs_f64() * rate) as u64)
                .map(|number| began + Duration::from_secs_f64(number as f64 / rate))
                .peekable();
            while times.peek().is_some() || lanes.are_waiting() {
                std::thread::sleep(TICK);
                lanes.read(Some(Duration::ZERO), &mut answers, || None)?;
                let now = Instant::now();
                while lanes.are_free()
                    && let Some(due) = times.next_if(|due| *due <= now)
                {
                    lanes.send(&load.next(), due)?;
                }
            }
            Ok(Loaded::since(began, answers))
        })
        .await
    }

    /// A request that was not made before.
    pub fn next(&self) -> Vec<u8> {
        (self.requests)(self.numbers.claim())
    }
}

/// Runs it beside the benchmark's own runtime.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let (done, seen) = oneshot::channel();
    std::thread::spawn(move || done.send(work()));
    Ok(seen.await??)
}

/// This thread runs at once whenever it wants to, if root measures: a request that goes late would count as a slow answer.
/// A nice value does not do: it counts only among what one session has started, and PostgreSQL has one of its own.
fn goes_first() {
    let thread = std::fs::read_link("/proc/thread-self").ok();
    if let Some(id) = thread.as_deref().and_then(|path| path.file_name()) {
        let _ = Command::new("chrt").args(["--fifo", "--pid", "1"]).arg(id).output();
    }
}

/// Connections of one thread, each with one request at a time.
struct Lanes {
    poll: Poll,
    ready: Events,
    all: Vec<Lane>,
    free: Vec<usize>,
}

struct Lane {
    connection: Connection<mio::net::TcpStream>,
    due: Instant,
    late: Duration,
}

impl Lanes {
    fn open(address: SocketAddr, connections: usize) -> std::io::Result<Self> {
        let (poll, mut all) = (Poll::new()?, Vec::new());
        for number in 0..connections {
            let mut connection = Connection::open(address)?;
            // What it takes to accept them is not measured.
            connection.asks(b"GET /healthz HTTP/1.1\r\nhost: bench\r\n\r\n")?;
            let Connection { stream, read } = connection;
            stream.set_nonblocking(true)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(number), Interest::READABLE)?;
            let connection = Connection { stream, read };
            all.push(Lane { connection, due: Instant::now(), late: Duration::ZERO });
        }
        Ok(Self { poll, ready: Events::with_capacity(connections), free: (0..connections).collect(), all })
    }

    fn are_free(&self) -> bool {
        !self.free.is_empty()
    }

    fn are_waiting(&self) -> bool {
        self.free.len() < self.all.len()
    }

    /// Sends a request that was meant to go at `due`.
    fn send(&mut self, request: &[u8], due: Instant) -> std::io::Result<()> {
        let lane = self.free.pop().ok_or(ErrorKind::WouldBlock)?;
        self.all[lane].send(request, due)
    }

    /// Takes the answers that have come, and waits for one at most so long. A connection whose answer has come sends `next` at once.
    fn read(
        &mut self,
        patience: Option<Duration>,
        answers: &mut Vec<Answer>,
        next: impl Fn() -> Option<Vec<u8>>,
    ) -> std::io::Result<()> {
        self.poll.poll(&mut self.ready, patience)?;
        for event in &self.ready {
            let Token(number) = event.token();
            let lane = &mut self.all[number];
            if let Some(status) = lane.connection.reads()? {
                let at = Instant::now();
                answers.push(Answer { status, at, took: at - lane.due, late: lane.late });
                match next() {
                    Some(request) => lane.send(&request, Instant::now())?,
                    None => self.free.push(number),
                }
            }
        }
        Ok(())
    }
}

impl Lane {
    fn send(&mut self, request: &[u8], due: Instant) -> std::io::Result<()> {
        (self.due, self.late) = (due, due.elapsed());
        self.connection.sends(request)
    }
}

/// One kept connection.
pub struct Connection<S = std::net::TcpStream> {
    stream: S,
    read: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::with_capacity(4096) })
    }

    /// Waits for the answer, which [`Connection::answer`] has then, and gives its status.
    pub fn asks(&mut self, request: &[u8]) -> std::io::Result<u16> {
        self.sends(request)?;
        Ok(self.reads()?.ok_or(ErrorKind::WouldBlock)?)
    }

    /// The last answer, head and body.
    pub fn answer(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

impl<S: Read + Write> Connection<S> {
    fn sends(&mut self, request: &[u8]) -> std::io::Result<()> {
        self.read.clear();
        self.stream.write_all(request)
    }

    /// The status of the answer; nothing if it is not there as a whole and would have to be waited for.
    fn reads(&mut self) -> std::io::Result<Option<u16>> {
        let mut part = [0; 4096];
        loop {
            match self.stream.read(&mut part) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.read.extend_from_slice(&part[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
            if let Some(status) = complete(&self.read) {
                return Ok(Some(status));
            }
        }
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
