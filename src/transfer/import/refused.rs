//! The list of what could not be moved: one JSON object a line, without anything of a record but its id.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;

/// The list. Readable to its owner alone.
pub(crate) struct Refusals {
    path: PathBuf,
    file: BufWriter<File>,
    is_empty: bool,
}

/// The list cannot be written.
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

impl Refusals {
    pub(crate) fn create(path: &Path) -> Result<Self, Unwritable> {
        let file = file_of_its_owner(path).map_err(|why| Unwritable { file: path.into(), why })?;
        Ok(Self { path: path.into(), file: BufWriter::new(file), is_empty: true })
    }

    /// `line`: where in a file the record was.
    pub(crate) fn write(
        &mut self,
        line: Option<u64>,
        id: Option<Uuid>,
        reason: &str,
    ) -> Result<(), Unwritable> {
        self.is_empty = false;
        let written = serde_json::to_writer(&mut self.file, &Refused { line, id, reason });
        let written = written.map_err(io::Error::from).and_then(|()| self.file.write_all(b"\n"));
        written.map_err(|why| Unwritable { file: self.path.clone(), why })
    }

    /// Nothing refused, nothing left behind.
    pub(crate) fn end(mut self) -> Result<(), Unwritable> {
        let ended = self.file.flush();
        let ended = if self.is_empty { ended.and_then(|()| std::fs::remove_file(&self.path)) } else { ended };
        ended.map_err(|why| Unwritable { file: self.path, why })
    }
}

/// Opens a file anew that nobody else can read, nor anybody who has the one open that was there. What is no file, such as
/// /dev/stdout, is opened as it is.
pub(crate) fn file_of_its_owner(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    if std::fs::symlink_metadata(path).is_ok_and(|there| there.is_file()) {
        std::fs::remove_file(path)?;
        return options.create_new(true).open(path);
    }
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}
