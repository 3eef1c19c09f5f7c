//! The load generator: sends requests to one address over keep-alive connections, from a thread of
//! its own.
//!
//! - Closed loop: each connection sends its next request when it has the response.
//! - Open loop: requests are sent at a constant rate, whether or not earlier ones were answered. A
//!   response time counts from the moment when its request was due.
//!
//! The generator shares the machine with the service that it measures. So it uses no async runtime,
//! and one poll reads all responses that have arrived.

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

/// The precision of send times in an open loop.
const TICK: Duration = Duration::from_micros(250);

/// Makes the request with a given number.
pub type Requests = Arc<dyn Fn(u64) -> Vec<u8> + Send + Sync>;

/// The status and the times of one response.
#[derive(Clone, Copy)]
pub struct Answer {
    pub status: u16,
    /// When the response arrived, and how long the client waited for it.
    pub at: Instant,
    pub took: Duration,
    /// How long after it was due the request was sent; about zero in a closed loop.
    pub late: Duration,
}

/// The responses to a load.
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

    /// The responses that arrived within `span`.
    pub fn within(&self, span: &Range<Instant>) -> Self {
        let answers = self.answers.iter().filter(|answer| span.contains(&answer.at)).copied().collect();
        Self { answers, seconds: (span.end - span.start).as_secs_f64() }
    }

    /// Adds the responses to another load.
    pub fn add(&mut self, more: Self) {
        self.answers.extend(more.answers);
        self.seconds += more.seconds;
    }

    /// Responses with this status per second.
    pub fn rate(&self, status: u16) -> f64 {
        self.of(status).count() as f64 / self.seconds
    }

    /// A quantile of the response times with this status, in ms; `share` is 0.99 for p99.
    pub fn quantile(&self, status: u16, share: f64) -> f64 {
        quantile(self.of(status).map(|answer| answer.took), share)
    }

    /// A quantile of how late requests were sent, in ms, whatever their status.
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

/// The numbers of requests. They continue from load to load, so that no request is sent twice.
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
    /// Runs a closed loop on this many connections.
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

    /// Runs an open loop of `rate` requests per second on at most this many connections.
    ///
    /// The thread wakes once a `TICK`, because to wake for each request would use much of a core.
    /// So a response time is up to one tick too long.
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

    /// A request that was not sent before.
    pub fn next(&self) -> Vec<u8> {
        (self.requests)(self.numbers.claim())
    }
}

/// Runs `work` on a new thread, outside the benchmark's async runtime.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let (done, seen) = oneshot::channel();
    std::thread::spawn(move || done.send(work()));
    Ok(seen.await??)
}

/// Gives this thread real-time priority, if run as root: a request that is sent late would count as
/// a slow response. A nice value would not help: it has effect only within one session, and
/// PostgreSQL runs in another.
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
            // Sends one request now, so that accepting the connection is not measured.
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

    /// Sends a request that was due at `due`.
    fn send(&mut self, request: &[u8], due: Instant) -> std::io::Result<()> {
        let lane = self.free.pop().ok_or(ErrorKind::WouldBlock)?;
        self.all[lane].send(request, due)
    }

    /// Reads the responses that have arrived. Waits for the first one for at most `patience`, or
    /// without limit if that is `None`. A connection that has got its response sends the request
    /// from `next` at once. If there is none, the connection becomes free.
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

/// One keep-alive connection.
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

    /// Sends a request, waits for its response, and returns the status. [`Connection::answer`] has
    /// the whole response.
    pub fn asks(&mut self, request: &[u8]) -> std::io::Result<u16> {
        self.sends(request)?;
        Ok(self.reads()?.ok_or(ErrorKind::WouldBlock)?)
    }

    /// The last response, head and body.
    pub fn answer(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

impl<S: Read + Write> Connection<S> {
    fn sends(&mut self, request: &[u8]) -> std::io::Result<()> {
        self.read.clear();
        self.stream.write_all(request)
    }

    /// The status of the response; `None` if it is incomplete and no more can be read now.
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

/// The status of a response, if it is complete.
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
