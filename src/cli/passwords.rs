//! `vos-auth passwords`: the filter of passwords known from breaches.

use std::fs::{File, TryLockError};
use std::io::{BufReader, BufWriter, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::builder::TypedValueParser as _;
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::sync::oneshot;

use super::progress::Progress;
use super::{Failure, password_from_stdin, print_json, stop_signal};
use crate::password::blocklist::{self, Bits, Blocklist, BuildOptions, BuildReport};
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum PasswordsCommand {
    /// Turn a published list of SHA-1 sums into a filter for PASSWORD_BLOCKLIST. Asks no network,
    /// and takes 50 MiB of memory for a list of any length. Can be interrupted: FILTER then stays as
    /// it was
    Build(Build),
    /// Check the length and the checksum of a filter, and print what it has
    Check {
        /// The filter
        filter: PathBuf,
        /// Read a password from the first line of standard input, and say whether it is listed
        #[arg(long)]
        password_stdin: bool,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Build {
    /// The list, in the order of its sums: on each line a SHA-1 sum in hexadecimal, alone or with a
    /// count after a colon, as Have I Been Pwned publishes it. `-` is standard input
    list: PathBuf,
    /// The file to write. An existing one is replaced once the new one is complete
    #[arg(long, value_name = "FILTER")]
    out: PathBuf,
    /// Bits for each sum. With 16, one in 65,536 other passwords is refused too, and a billion sums
    /// take 2.25 GB; with 8, one in 256, and half of the memory
    #[arg(long, default_value = "16", value_parser = bits())]
    bits: Bits,
    /// Leave out sums that were counted less often
    #[arg(long, value_name = "COUNT", default_value = "1")]
    min_count: u64,
}

fn bits() -> impl clap::builder::TypedValueParser<Value = Bits> {
    let parser = clap::builder::PossibleValuesParser::new(["8", "16"]);
    parser.map(|text| if text == "8" { Bits::Eight } else { Bits::Sixteen })
}

pub(super) async fn run(command: PasswordsCommand) -> Result<(), Failure> {
    match command {
        PasswordsCommand::Build(arguments) => build(arguments).await,
        PasswordsCommand::Check { filter, password_stdin, json } => check(&filter, password_stdin, json),
    }
}

async fn build(Build { list, out, bits, min_count }: Build) -> Result<(), Failure> {
    let (list, length) = open(&list)?;
    let stop = stop_signal()?;
    let unfinished = Unfinished::create(&out)?;
    let file = BufWriter::new(unfinished.file.try_clone()?);
    let (sender, built) = oneshot::channel();
    // Not a thread of the runtime, because the runtime would wait at shutdown until a pipe ends.
    std::thread::spawn(move || {
        let mut progress = Progress::begin();
        let report = |report: &BuildReport| {
            progress.report(report.lines, |rate| {
                let percent = (report.octets * 100).checked_div(length);
                let percent = percent.map(|percent| format!("{percent}%, ")).unwrap_or_default();
                format!("{percent}{} lines, {rate} a second", report.lines)
            });
        };
        let list = BufReader::with_capacity(1 << 18, list);
        // Sending fails only if the command was stopped: the receiver is then dropped.
        let _ = sender.send(blocklist::build(list, file, BuildOptions { bits, min_count }, report));
    });
    let report = tokio::select! {
        built = built => built.map_err(|_| "the building thread panicked")??,
        () = stop.cancelled() => {
            return Err(format!("stopped; {} is as it was", out.display()).into());
        }
    };
    unfinished.finish()?;
    let BuildReport { lines, sums, repeated, rare, length, .. } = report;
    terminal::line(format_args!(
        "{lines} lines: {sums} sums in the filter, {repeated} repeated, {rare} counted less often than {min_count}"
    ));
    terminal::line(format_args!(
        "{} has {length} octets; of the passwords that are not listed, it refuses one in {}",
        out.display(),
        bits.others_for_one()
    ));
    Ok(())
}

/// Opens a list, and returns its length in octets, too: 0 if unknown.
fn open(path: &Path) -> Result<(Box<dyn Read + Send>, u64), Failure> {
    if path == Path::new("-") {
        return Ok((Box::new(std::io::stdin()), 0));
    }
    let unreadable = |why| format!("{} cannot be read: {why}", path.display());
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    Ok((Box::new(file), length))
}

/// The output of `passwords check`.
#[derive(Serialize)]
struct Checked {
    sums: u64,
    bits: u32,
    octets: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    listed: Option<bool>,
}

fn check(path: &Path, password_stdin: bool, json: bool) -> Result<(), Failure> {
    let began = Instant::now();
    let unreadable = |why: blocklist::Unreadable| format!("{} {why}", path.display());
    let file = File::open(path).map_err(|why| unreadable(why.into()))?;
    let blocklist = Blocklist::read_from(file).map_err(unreadable)?;
    let took = began.elapsed().as_millis();
    let password = password_stdin.then(password_from_stdin).transpose()?;
    let listed = password.map(|password| blocklist.contains(&password));
    let (sums, bits, octets) = (blocklist.sums(), blocklist.bits().count(), blocklist.octets());
    if json {
        return print_json(&Checked { sums, bits, octets, listed });
    }
    terminal::line(format_args!("{sums} sums of {bits} bits, {octets} octets of memory, read in {took} ms"));
    if let Some(listed) = listed {
        terminal::line(if listed { "the password is listed" } else { "the password is not listed" });
    }
    Ok(())
}

/// A temporary file beside `out`. [`Unfinished::finish`] renames it to `out`. If it is dropped
/// before that, it is deleted.
struct Unfinished {
    file: File,
    path: PathBuf,
    out: PathBuf,
    is_finished: bool,
}

impl Unfinished {
    fn create(out: &Path) -> Result<Self, Failure> {
        let mut path = out.to_owned().into_os_string();
        path.push(".part");
        let path = PathBuf::from(path);
        let unwritable = |why: std::io::Error| format!("{} cannot be written: {why}", path.display());
        let file = loop {
            let file =
                File::options().write(true).create(true).truncate(false).open(&path).map_err(unwritable)?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => break file,
                // Another build has renamed or deleted the file meanwhile: try again.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(format!("another build is writing {}", path.display()).into());
                }
                Err(TryLockError::Error(why)) => return Err(unwritable(why).into()),
            }
        };
        // An earlier build that was killed may have left content.
        file.set_len(0).map_err(unwritable)?;
        Ok(Self { file, path, out: out.to_owned(), is_finished: false })
    }

    fn finish(mut self) -> Result<(), Failure> {
        let finished = self.file.sync_all().and_then(|()| std::fs::rename(&self.path, &self.out));
        finished.map_err(|why| format!("{} cannot be written: {why}", self.out.display()))?;
        self.is_finished = true;
        Ok(())
    }
}

/// Whether an open file is the one at a path.
fn is_at(file: &File, path: &Path) -> bool {
    let there = std::fs::metadata(path).and_then(|there| Ok((there, file.metadata()?)));
    there.is_ok_and(|(there, open)| (there.dev(), there.ino()) == (open.dev(), open.ino()))
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_finished {
            // If this fails, only disk space is lost.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
