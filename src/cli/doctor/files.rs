//! The folders that the service reads: `BRAND_DIR` and `JWT_KEYS`.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::report::Check;
use crate::config::MailSettings;
use crate::jwt::{KeyRing, Turn};

/// The row about `BRAND_DIR`, which was read with the settings.
pub(super) fn brand(settings: &MailSettings) -> Check {
    let Some(brand) = &settings.brand_dir else {
        return Check::ok("brand", "BRAND_DIR is not set: the look of this service");
    };
    let mut files = vec!["brand.json"];
    files.extend(brand.logo.is_some().then_some("a logo"));
    files.extend(brand.icon.is_some().then_some("an icon"));
    Check::ok("brand", format!("read {}", files.join(", ")))
}

/// The row about the JWT keys: which one signs now, and which is next.
pub(super) fn keys(keys: &KeyRing, folder: &Path, now: OffsetDateTime) -> Check {
    const NAME: &str = "JWT keys";
    if let Some(file) = private_file_of_root(folder) {
        let seen = format!("only root can read {}", file.display());
        let action =
            "Give the folder of JWT_KEYS to the user of the service: `chown -R vos-auth: /etc/vos-auth/jwt`.";
        return Check::warning(NAME, seen, action);
    }
    let schedule = keys.schedule(now);
    let Turn { id, since } = &schedule.current;
    if *since > now {
        let seen = format!("no key's time has come: the first is {id}");
        return Check::warning(NAME, seen, "Check this machine's clock, or wait until that time.");
    }
    let next = schedule.next.map_or_else(
        || "no other is waiting".to_owned(),
        |next| format!("{} signs from {}", next.id, next.since.format(&Rfc3339).unwrap_or_default()),
    );
    Check::ok(NAME, format!("{id} signs, {next}"))
}

/// A key file that only root can read, so that the service's own user cannot. `None` if this
/// command does not run as root, or the machine has no user `vos-auth`.
fn private_file_of_root(folder: &Path) -> Option<PathBuf> {
    let is_root = |metadata: &Metadata| metadata.uid() == 0;
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let has_user = users.lines().any(|user| user.starts_with("vos-auth:"));
    if !has_user || !is_root(&Path::new("/proc/self").metadata().ok()?) {
        return None;
    }
    let is_private = |path: &Path| {
        path.metadata().is_ok_and(|metadata| is_root(&metadata) && metadata.permissions().mode() & 0o044 == 0)
    };
    let keys = folder.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    keys.filter(|path| path.extension().is_some_and(|extension| extension == "pem"))
        .find(|path| is_private(path))
}
