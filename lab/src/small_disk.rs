//! A disk that is small enough to be filled: a file system in memory, which only root can mount.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place;

pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts a file system of 48 MiB for the user of PostgreSQL. The error says why it cannot be
    /// mounted.
    pub fn mount() -> Result<Self, String> {
        Self::mount_at(place::folder("disk"), "uid=postgres,mode=700")
    }

    /// Like [`Self::mount`], at an empty folder and with these options for mount(8).
    pub fn mount_at(path: PathBuf, options: &str) -> Result<Self, String> {
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size=48m,{options}"), "vos-auth-test"])
            .arg(&path)
            .output()
            .unwrap();
        if mount.status.success() {
            return Ok(Self { path });
        }
        Err(String::from_utf8_lossy(&mount.stderr).into_owned())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills the disk to the last octet.
    pub fn fills(&self) {
        let mut file = File::create(self.path.join("filler")).unwrap();
        for octets in [1 << 20, 1 << 10, 1] {
            let block = vec![0; octets];
            loop {
                match file.write_all(&block) {
                    Ok(()) => {}
                    Err(full) if full.kind() == ErrorKind::StorageFull => break,
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }

    /// Deletes the file that filled it.
    pub fn has_room_again(&self) {
        fs::remove_file(self.path.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because a server that is ending may still have a file open on it.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = fs::remove_dir(&self.path);
    }
}
