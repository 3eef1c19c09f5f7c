//! The pages of Kratos's list of identities as one stream: their arrays one after the other.

use std::io::{self, Read};

use hyper::body::Bytes;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::task::AbortOnDropHandle;

use crate::transfer::kratos::{IdentityPage, Kratos, KratosError};

/// Arriving pages. The last one is an error if Kratos failed.
pub(super) struct KratosPages {
    incoming: Receiver<Result<IdentityPage, KratosError>>,
    page: Bytes,
    was_last: bool,
}

/// Returns the reader of the pages, for a thread that may block, and the task that fetches pages
/// ahead. Dropping the task's handle aborts the task and ends the reader.
pub(super) fn open(kratos: Kratos, size: u16) -> (KratosPages, AbortOnDropHandle<()>) {
    let (sender, incoming) = channel(1);
    let fetching = tokio::spawn(async move { fetch(&kratos, size, &sender).await });
    (KratosPages { incoming, page: Bytes::new(), was_last: false }, AbortOnDropHandle::new(fetching))
}

/// Fetches pages until the list ends, a request fails, or the reader is dropped.
async fn fetch(kratos: &Kratos, size: u16, pages: &Sender<Result<IdentityPage, KratosError>>) {
    let (mut token, mut cycles) = (None, CycleDetector::default());
    loop {
        let page = kratos.page(size, token.as_deref()).await.and_then(|page| cycles.check(page));
        token = page.as_ref().ok().and_then(|page| page.next.clone());
        if pages.send(page).await.is_err() || token.is_none() {
            return;
        }
    }
}

/// Detects a list that returns to an earlier page, with one token in memory (Brent's algorithm):
/// the token of each step whose number is a power of two is kept until the next such step.
#[derive(Default)]
struct CycleDetector {
    kept: Option<String>,
    steps: u64,
}

impl CycleDetector {
    fn check(&mut self, page: IdentityPage) -> Result<IdentityPage, KratosError> {
        if page.next.is_some() && page.next == self.kept {
            return Err(KratosError::Unreadable("its list does not end: it returns to an earlier page"));
        }
        self.steps += 1;
        if self.steps.is_power_of_two() {
            self.kept.clone_from(&page.next);
        }
        Ok(page)
    }
}

impl Read for KratosPages {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.page.is_empty() {
            let failed =
                |why: &str| io::Error::other(format!("{why}; run the same import again to continue"));
            match self.incoming.blocking_recv() {
                Some(page) => {
                    let page = page.map_err(|why| failed(&why.to_string()))?;
                    (self.page, self.was_last) = (page.identities, page.next.is_none());
                }
                None if self.was_last => return Ok(0),
                None => return Err(failed("the request for its next page was stopped")),
            }
        }
        let part = self.page.split_to(into.len().min(self.page.len()));
        into[..part.len()].copy_from_slice(&part);
        Ok(part.len())
    }
}
