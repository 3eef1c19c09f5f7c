//! Paths of the repository and of cargo's output, temporary folders, free ports, and commands.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, OnceLock};

/// The folder of the build profile, such as `target/debug`. This executable is in it, or in its
/// `deps`.
static PROFILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    if folder.ends_with("deps") { folder.parent().unwrap().to_owned() } else { folder }
});

/// A file of the repository, such as `deploy/nginx.conf`.
pub fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

/// The text of a file of the repository.
pub fn text(path: &str) -> String {
    let path = file(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

static BUILT: OnceLock<PathBuf> = OnceLock::new();

/// The service's binary: the one beside this executable, unless [`uses`] has set another.
pub fn built() -> &'static Path {
    let built = BUILT.get_or_init(|| PROFILE.join("vos-auth"));
    assert!(built.exists(), "{} is missing: build the service first", built.display());
    built
}

/// Makes [`built`] return `program`. Must be called before anything starts the service.
pub fn uses(program: PathBuf) {
    BUILT.set(program).expect("it is said before anything is started");
}

/// Cargo's output folder, `target`.
pub fn target() -> &'static Path {
    PROFILE.parent().unwrap()
}

/// A path in `target/tmp`, cargo's folder for the temporary files of tests.
pub fn temporary(name: &str) -> String {
    let folder = target().join("tmp");
    fs::create_dir_all(&folder).unwrap();
    folder.join(name).display().to_string()
}

/// Makes a folder in the machine's temporary folder, which all users can read. The caller removes
/// it. This function also removes the folders with the same prefix whose processes no longer exist.
pub fn folder(what: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let (prefix, pid) = (format!("vos-auth-{what}-"), std::process::id());
    for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(&prefix)).unwrap_or_default();
        let owner: Option<u32> = number.split('-').next().and_then(|pid| pid.parse().ok());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists()) {
            remove(&entry.path());
        }
    }
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("{prefix}{pid}-{number}"));
    remove(&folder);
    fs::create_dir(&folder).unwrap();
    folder
}

/// Removes a folder, and unmounts what is mounted in it.
fn remove(folder: &Path) {
    for mounted in fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines() {
        let place = mounted.split(' ').nth(1).unwrap_or_default();
        if Path::new(place).starts_with(folder) {
            let _ = Command::new("umount").args(["--lazy", place]).output();
        }
    }
    let _ = fs::remove_dir_all(folder);
}

/// A free port below those that the kernel assigns, so that no other process gets it before the
/// server listens. Two numbers below 50 give different ports.
pub fn free_port(number: usize) -> u16 {
    free_port_from(number % 50 * 2)
}

/// A free address, for a server whose clients must know it before the server starts. Fifty calls in
/// a row give different ones.
pub fn free_address() -> SocketAddr {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let odd = CALLS.fetch_add(1, Ordering::Relaxed) % 50 * 2 + 1;
    (Ipv4Addr::LOCALHOST, free_port_from(odd)).into()
}

/// Tries the port at `first` in this process's block of a hundred ports, then the same port of each
/// following block. Returns the first that is free.
fn free_port_from(first: usize) -> u16 {
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let first = 10_000 + std::process::id() as usize % 200 * 100 + first;
    let first = u16::try_from(first).expect("below 30,100");
    (first..32_000).step_by(100).find(is_free).expect("a free port")
}

/// Runs a command, which must succeed, and returns its output.
pub fn output(command: &mut Command) -> String {
    let ended = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}
