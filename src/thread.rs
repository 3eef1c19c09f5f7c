//! Threads for work that must not delay the rest of the service, nor be delayed by it
//! (docs/decisions/0021).

use std::thread;

use tokio::runtime;
use tokio::sync::oneshot;

/// Runs `work` on a new thread with its own runtime. The returned receiver resolves when the work
/// has ended: to `Ok` if it returned, to an error if it panicked.
///
/// # Panics
///
/// If the operating system cannot create the thread, or has no file descriptors for the runtime.
#[must_use]
pub fn spawn(name: &str, work: impl Future<Output = ()> + Send + 'static) -> oneshot::Receiver<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("the operating system has file descriptors for a runtime");
    let (sender, ended) = oneshot::channel();
    let work = move || {
        runtime.block_on(work);
        let _ = sender.send(());
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .expect("the operating system can create a thread");
    ended
}
