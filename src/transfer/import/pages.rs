//! The pages of Kratos's list as one text to read: its arrays one after the other.

use std::io::{self, Read};

use hyper::body::Bytes;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::task::AbortOnDropHandle;

use crate::transfer::kratos::{Kratos, KratosError, Page};

/// Pages that arrive, the last of them an error if Kratos failed.
pub(super) struct Pages {
    coming: Receiver<Result<Page, KratosError>>,
    page: Bytes,
    was_last: bool,
}

/// What reads the pages, on a thread that may block, and the task that asks for them, one ahead. Without the task there is
/// nothing more to read.
pub(super) fn open(kratos: Kratos, size: u16) -> (Pages, AbortOnDropHandle<()>) {
    let (sender, coming) = channel(1);
    let asking = tokio::spawn(async move { ask(&kratos, size, &sender).await });
    (Pages { coming, page: Bytes::new(), was_last: false }, AbortOnDropHandle::new(asking))
}

/// Until the last page, an error, or nobody reads any more.
async fn ask(kratos: &Kratos, size: u16, pages: &Sender<Result<Page, KratosError>>) {
    let (mut token, mut way) = (None, Way::default());
    loop {
        let page = kratos.page(size, token.as_deref()).await.and_then(|page| way.takes(page));
        token = page.as_ref().ok().and_then(|page| page.next.clone());
        if pages.send(page).await.is_err() || token.is_none() {
            return;
        }
    }
}

/// Notices a list that comes back to a page, in memory for one token (Brent's algorithm): the token of a step whose number is a
/// power of two is kept until the next such step.
#[derive(Default)]
struct Way {
    kept: Option<String>,
    steps: u64,
}

impl Way {
    fn takes(&mut self, page: Page) -> Result<Page, KratosError> {
        if page.next.is_some() && page.next == self.kept {
            return Err(KratosError::Unreadable("its list does not end: it comes back to a page"));
        }
        self.steps += 1;
        if self.steps.is_power_of_two() {
            self.kept.clone_from(&page.next);
        }
        Ok(page)
    }
}

impl Read for Pages {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.page.is_empty() {
            let failed = |why: &str| io::Error::other(format!("{why}; run the same import again to go on"));
            match self.coming.blocking_recv() {
                Some(page) => {
                    let page = page.map_err(|why| failed(&why.to_string()))?;
                    (self.page, self.was_last) = (page.identities, page.next.is_none());
                }
                None if self.was_last => return Ok(0),
                None => return Err(failed("nobody asks for its next page any more")),
            }
        }
        let part = self.page.split_to(into.len().min(self.page.len()));
        into[..part.len()].copy_from_slice(&part);
        Ok(part.len())
    }
}
