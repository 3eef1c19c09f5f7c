//! Reads the records of a file or of Kratos's pages one by one, in bounded memory.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;
use tokio::sync::mpsc::Sender;

use super::identity::{self, ImportedIdentity, Paths, Refusal};

/// Maximum length of a record, in octets.
const MAX_RECORD: usize = 1 << 20;
/// The maximum number of records in a batch, and of their octets without the last record.
const BATCH: usize = 2000;
const BATCH_OCTETS: usize = 4 << 20;
const TOO_LONG: &str = "the record is longer than 1 MiB";

/// A record and its line: the line on which it ends, but in a CSV the line on which it begins.
pub(super) struct SourceRecord {
    pub line: u64,
    pub read: Result<ImportedIdentity, Refusal>,
}

type Batches = Sender<io::Result<Vec<SourceRecord>>>;

/// Sends the records of a file or of pages in batches until the receiver is dropped. An error is
/// sent last.
pub(super) fn read(from: Box<dyn Read + Send>, paths: &Paths, counter: &AtomicU64, batches: &Batches) {
    let position = Rc::<Position>::default();
    let mut records = Records { batch: Vec::new(), octets: 0, position: Rc::clone(&position), batches };
    let done = without_mark(from).and_then(|from| {
        let mut input = Input { file: BufReader::with_capacity(1 << 16, from), position, counter };
        match input.first()? {
            Some(b'[') => arrays(input, paths, &mut records),
            Some(b'{') => lines(input, paths, &mut records),
            Some(_) => csv(input, &mut records),
            None => Err(io::Error::other("it is empty")),
        }
    });
    // Records before an error are imported, too.
    let sent = records.send();
    if let (Err(error), Ok(())) = (done, sent) {
        let _ = batches.blocking_send(Err(error));
    }
}

/// Skips the byte order mark that some editors and shells write before UTF-8.
fn without_mark(mut from: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
    let mut begin = Vec::new();
    from.by_ref().take(3).read_to_end(&mut begin)?;
    match begin.as_slice() {
        b"\xEF\xBB\xBF" => Ok(from),
        [0xFE, 0xFF, ..] | [0xFF, 0xFE, ..] => Err(io::Error::other("it is UTF-16: save it as UTF-8")),
        _ => Ok(Box::new(io::Cursor::new(begin).chain(from))),
    }
}

/// The current batch.
struct Records<'a> {
    batch: Vec<SourceRecord>,
    octets: usize,
    position: Rc<Position>,
    batches: &'a Batches,
}

/// The receiver of the batches was dropped.
struct ReceiverGone;

impl From<ReceiverGone> for io::Error {
    fn from(_: ReceiverGone) -> Self {
        Self::from(io::ErrorKind::BrokenPipe)
    }
}

impl Records<'_> {
    fn push(
        &mut self,
        line: u64,
        octets: usize,
        read: Result<ImportedIdentity, Refusal>,
    ) -> Result<(), ReceiverGone> {
        self.position.record_began.set(self.position.octets.get());
        self.batch.push(SourceRecord { line, read });
        self.octets += octets;
        if self.batch.len() < BATCH && self.octets < BATCH_OCTETS { Ok(()) } else { self.send() }
    }

    fn send(&mut self) -> Result<(), ReceiverGone> {
        self.octets = 0;
        if self.batch.is_empty() {
            return Ok(());
        }
        self.batches.blocking_send(Ok(std::mem::take(&mut self.batch))).map_err(|_| ReceiverGone)
    }
}

/// The position in the input.
#[derive(Default)]
struct Position {
    octets: Cell<usize>,
    lines: Cell<u64>,
    record_began: Cell<usize>,
}

/// A file that tracks its position and fails within a record that is too long.
struct Input<'a> {
    file: BufReader<Box<dyn Read + Send>>,
    position: Rc<Position>,
    counter: &'a AtomicU64,
}

impl Input<'_> {
    /// Returns the first octet that is not white space, without consuming it.
    fn first(&mut self) -> io::Result<Option<u8>> {
        loop {
            match self.file.fill_buf()?.first() {
                Some(byte) if byte.is_ascii_whitespace() => {
                    self.read_exact(&mut [0])?;
                }
                first => return Ok(first.copied()),
            }
        }
    }
}

impl Read for Input<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(into)?;
        let (position, new) = (&self.position, &into[..read]);
        position.octets.set(position.octets.get() + read);
        position.lines.set(position.lines.get() + new.split(|byte| *byte == b'\n').count() as u64 - 1);
        self.counter.fetch_add(read as u64, Ordering::Relaxed);
        // Data that a reader buffers ahead is not part of the record.
        if position.octets.get() - position.record_began.get() > MAX_RECORD + into.len() {
            return Err(io::Error::other(format!("near line {}: {TOO_LONG}", position.lines.get() + 1)));
        }
        Ok(read)
    }
}

/// Reads one object a line. A malformed line is refused, and reading continues.
fn lines(input: Input<'_>, paths: &Paths, records: &mut Records<'_>) -> io::Result<()> {
    let Input { mut file, position, counter } = input;
    let mut line = Vec::new();
    for number in position.lines.get() + 1.. {
        line.clear();
        let limit = MAX_RECORD as u64 + 1;
        let mut read = file.by_ref().take(limit).read_until(b'\n', &mut line)? as u64;
        let whole = read < limit || line.ends_with(b"\n");
        if !whole {
            read += file.skip_until(b'\n')? as u64;
        }
        counter.fetch_add(read, Ordering::Relaxed);
        if read == 0 {
            return Ok(());
        }
        let identity = match std::str::from_utf8(&line) {
            _ if !whole => Err(Refusal { id: None, reason: TOO_LONG }),
            Ok(text) if text.trim().is_empty() => continue,
            Ok(text) => identity::from_json(text, paths),
            Err(_) => Err(Refusal { id: None, reason: "it is not UTF-8" }),
        };
        records.push(number, line.len(), identity)?;
    }
    Ok(())
}

/// Reads an array of objects, or several arrays in a row, such as concatenated pages of Kratos's
/// API.
fn arrays(input: Input<'_>, paths: &Paths, records: &mut Records<'_>) -> io::Result<()> {
    let mut json = serde_json::Deserializer::from_reader(input);
    loop {
        Elements { paths, records }.deserialize(&mut json).map_err(unquoted)?;
        // Send a page before waiting for the next one.
        records.send()?;
        match json.end() {
            Ok(()) => return Ok(()),
            Err(error) if error.is_io() => return Err(error.into()),
            // Another array follows.
            Err(_) => {}
        }
    }
}

/// An error of the parser without its text, because the text may quote a record.
fn unquoted(error: serde_json::Error) -> io::Error {
    let line = error.line();
    match error.classify() {
        Category::Io => error.into(),
        Category::Eof => io::Error::other(format!("it ends within an array, on line {line}")),
        Category::Syntax | Category::Data => {
            io::Error::other(format!("near line {line}: it is not an array of identities in JSON"))
        }
    }
}

/// Visits the elements of an array one by one.
struct Elements<'a, 'b> {
    paths: &'a Paths,
    records: &'a mut Records<'b>,
}

impl<'de> DeserializeSeed<'de> for Elements<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of identities")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element::<Box<RawValue>>()? {
            let line = self.records.position.lines.get() + 1;
            let text = element.get();
            let pushed = self.records.push(line, text.len(), identity::from_json(text, self.paths));
            pushed.map_err(|ReceiverGone| serde::de::Error::custom("the receiver was dropped"))?;
        }
        Ok(())
    }
}

fn csv(input: Input<'_>, records: &mut Records<'_>) -> io::Result<()> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input);
    let columns = identity::CsvColumns::of(reader.headers()?).map_err(io::Error::other)?;
    let mut row = csv::ByteRecord::new();
    while reader.read_byte_record(&mut row)? {
        let (line, octets) = (row.position().map_or(0, csv::Position::line), row.as_slice().len());
        let identity = match csv::StringRecord::from_byte_record(std::mem::take(&mut row)) {
            Ok(row) => columns.identity(&row),
            Err(_) => Err(Refusal { id: None, reason: "it is not UTF-8" }),
        };
        records.push(line, octets, identity)?;
    }
    Ok(())
}
