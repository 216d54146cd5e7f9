//! The pages of one statement, fetched ahead by a task of its own: whoever drops the pages has Trino told
//! to stop.

use polder_core::{Error, ErrorCode, Result};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::client::{Client, Page, Statement};

/// Pages fetched ahead of the reader.
const PAGES_AHEAD: usize = 1;

/// What is still to come of a statement.
#[derive(Debug)]
pub(super) struct Pages {
    receiver: mpsc::Receiver<Result<Page>>,
    ended: bool,
}

impl Pages {
    /// Starts the statement.
    pub(super) fn start(tasks: &mut JoinSet<()>, client: &Client, statement: Statement) -> Self {
        let (sender, receiver) = mpsc::channel(PAGES_AHEAD);
        let client = client.clone();
        tasks.spawn(async move { fetch(&client, &statement, &sender).await });
        Self { receiver, ended: false }
    }

    /// The next page; `None` after the last one.
    ///
    /// # Errors
    /// What Trino ended the statement with, or why it could not be asked.
    pub(super) async fn next(&mut self) -> Result<Option<Page>> {
        if self.ended {
            return Ok(None);
        }
        let Some(page) = self.receiver.recv().await else {
            // Rows would be missing without a word.
            return Err(Error::new(ErrorCode::Internal, "a query in Trino lost its task"));
        };
        let mut page = page?;
        if let Some(failure) = page.error.take() {
            return Err(failure.into_error().within(&format!("Trino's query {}", page.id)));
        }
        self.ended = page.next_uri.is_none() && !page.is_part;
        Ok(Some(page))
    }
}

/// Fetches page after page until the last one, an error, or until nobody listens.
async fn fetch(client: &Client, statement: &Statement, sender: &mpsc::Sender<Result<Page>>) {
    let mut page = client.begin(statement).await;
    loop {
        let next = page.as_ref().ok().and_then(|page| page.next_uri.clone());
        let sent = match page {
            Ok(page) => hand_over(client, page, sender).await,
            Err(error) => sender.send(Err(error)).await.is_ok(),
        };
        if !sent {
            if let Some(next) = next {
                client.cancel(&next).await;
            }
            return;
        }
        let Some(next) = next else { return };
        page = tokio::select! {
            page = client.next(&next) => page,
            () = sender.closed() => {
                client.cancel(&next).await;
                return;
            }
        };
        if page.is_err() {
            client.cancel(&next).await;
        }
    }
}

/// Sends the page on, one whose rows are in segments as a page for each of them. False once nobody listens, or a
/// segment could not be had.
async fn hand_over(client: &Client, mut page: Page, sender: &mpsc::Sender<Result<Page>>) -> bool {
    // A page that failed may have some of its rows.
    let segments = if page.error.is_none() { page.take_segments() } else { Vec::new() };
    if segments.is_empty() {
        return sender.send(Ok(page)).await.is_ok();
    }
    let last = segments.len() - 1;
    for (at, (encoding, segment)) in segments.into_iter().enumerate() {
        let rows = tokio::select! {
            rows = client.rows(&encoding, segment) => rows,
            () = sender.closed() => return false,
        };
        let part = rows.map(|rows| page.part(rows, at == last));
        let failed = part.is_err();
        if sender.send(part).await.is_err() || failed {
            return false;
        }
    }
    true
}
