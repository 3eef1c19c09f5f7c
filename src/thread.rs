//! Work that has a thread of its own, so that it does not wait for whatever else the service does, nor that for it
//! (docs/decisions/0021).

use std::thread;

use tokio::runtime;
use tokio::sync::oneshot;

/// Runs `work` on a thread of its own, with a runtime that does nothing else. What is given back says that it has ended:
/// by itself, or, as an error, in a panic.
///
/// # Panics
///
/// If the operating system has no thread or no descriptors to give.
#[must_use]
pub fn spawn(name: &str, work: impl Future<Output = ()> + Send + 'static) -> oneshot::Receiver<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("the operating system gives descriptors");
    let (ending, ended) = oneshot::channel();
    let work = move || {
        runtime.block_on(work);
        let _ = ending.send(());
    };
    thread::Builder::new().name(name.to_owned()).spawn(work).expect("the operating system gives a thread");
    ended
}
