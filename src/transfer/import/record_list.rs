//! Lists of records that could not be moved, or only in part: one JSON object a line. Of a record's
//! own values, a list contains only the id.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;

use super::left_behind::LeftBehind;

/// A list. Only its owner can read it.
pub(crate) struct RecordList {
    path: PathBuf,
    file: BufWriter<File>,
    is_empty: bool,
}

/// Why a list cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be written: {why}", file.display())]
pub struct Unwritable {
    file: PathBuf,
    why: io::Error,
}

#[derive(Serialize)]
struct Refused<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    id: Option<Uuid>,
    reason: &'a str,
}

#[derive(Serialize)]
struct Incomplete<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    id: Option<Uuid>,
    left_behind: &'a [LeftBehind],
}

impl RecordList {
    pub(crate) fn create(path: &Path) -> Result<Self, Unwritable> {
        let file = create_private_file(path).map_err(|why| Unwritable { file: path.into(), why })?;
        Ok(Self { path: path.into(), file: BufWriter::new(file), is_empty: true })
    }

    /// Adds a record that is refused; `line` is its line if it is from a file.
    pub(crate) fn refused(
        &mut self,
        line: Option<u64>,
        id: Option<Uuid>,
        reason: &str,
    ) -> Result<(), Unwritable> {
        self.write(&Refused { line, id, reason })
    }

    /// Adds a record that is imported without some of its data.
    pub(super) fn incomplete(
        &mut self,
        line: Option<u64>,
        id: Option<Uuid>,
        left_behind: &[LeftBehind],
    ) -> Result<(), Unwritable> {
        self.write(&Incomplete { line, id, left_behind })
    }

    fn write(&mut self, record: &impl Serialize) -> Result<(), Unwritable> {
        self.is_empty = false;
        let written = serde_json::to_writer(&mut self.file, record);
        let written = written.map_err(io::Error::from).and_then(|()| self.file.write_all(b"\n"));
        written.map_err(|why| Unwritable { file: self.path.clone(), why })
    }

    /// Completes the list.
    pub(crate) fn finish(mut self) -> Result<(), Unwritable> {
        self.file.flush().map_err(|why| Unwritable { file: self.path.clone(), why })
    }
}

/// Deletes the file if it has no record, whether or not the run succeeded. Anything but a regular
/// file stays, such as /dev/null.
impl Drop for RecordList {
    fn drop(&mut self) {
        if self.is_empty && is_regular(&self.path) {
            // An empty file that stays does no harm.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Creates a file that only its owner can read. An existing file is replaced, so that a process
/// that has it open cannot read the new one. Anything but a regular file, such as /dev/stdout, is
/// opened as it is.
pub(crate) fn create_private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    if is_regular(path) {
        std::fs::remove_file(path)?;
        return options.create_new(true).open(path);
    }
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

fn is_regular(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|there| there.is_file())
}
