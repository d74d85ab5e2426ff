//! How many connections there are at a time, and which of them makes room for a new one.
//!
//! Used by [`super::server`] alone, whose runtime has one thread. Invariant: a connection that was asked something keeps its place until
//! its client has the answer; one that is silent keeps it until another needs it, and who has been silent longest goes first.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// All places of a server.
#[derive(Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    /// How long one that was told to go may take to hand out its last answer, before another is told as well.
    patience: Duration,
    silent: Mutex<Silent>,
    /// A connection has fallen silent.
    one_more: Notify,
}

/// Connections that have a place and no request.
#[derive(Debug, Default)]
struct Silent {
    /// How often one fell silent.
    count: u64,
    /// When, in this count, and what tells it to go.
    by_age: BTreeMap<u64, Arc<Notify>>,
}

impl Places {
    /// Places for `count` connections.
    pub fn new(count: usize, patience: Duration) -> Arc<Self> {
        let (silent, one_more) = (Mutex::default(), Notify::new());
        Arc::new(Self { free: Arc::new(Semaphore::new(count)), patience, silent, one_more })
    }

    /// A place for a connection, silent at first. If all are taken, whoever has been silent longest is told to go; if all are asked
    /// something, the first that falls silent. None: never, but the semaphore's type allows for it.
    pub async fn take(self: &Arc<Self>) -> Option<Arc<Place>> {
        let mut permit = pin!(self.free.clone().acquire_owned());
        let permit = loop {
            tokio::select! {
                biased;
                permit = permit.as_mut() => break permit,
                () = self.one_goes() => {}
            }
            if let Ok(permit) = tokio::time::timeout(self.patience, permit.as_mut()).await {
                break permit;
            }
        };
        let place = Arc::new(Place {
            _permit: permit.ok()?,
            places: self.clone(),
            told: Arc::new(Notify::new()),
            silent_since: Mutex::new(None),
        });
        place.fall_silent();
        Some(place)
    }

    /// Until all of `count` places are free again.
    pub async fn all_free(&self, count: u32) {
        // It is never closed, so that there is no error.
        let _ = self.free.acquire_many(count).await;
    }

    async fn one_goes(&self) {
        loop {
            if let Some((_, oldest)) = self.silent().by_age.pop_first() {
                return oldest.notify_one();
            }
            self.one_more.notified().await;
        }
    }

    fn silent(&self) -> MutexGuard<'_, Silent> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place, free when this is dropped.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
    places: Arc<Places>,
    told: Arc<Notify>,
    /// Its key in [`Silent::by_age`], if it is silent.
    silent_since: Mutex<Option<u64>>,
}

impl Place {
    /// Until another connection needs the place.
    pub async fn is_needed(&self) {
        self.told.notified().await;
    }

    /// A request has come: the place is kept until the result, and whatever it is handed on to, has been dropped.
    pub fn asked(self: &Arc<Self>) -> Asked {
        self.speak();
        Asked(self.clone())
    }

    fn speak(&self) {
        if let Some(since) = self.silent_since().take() {
            self.places.silent().by_age.remove(&since);
        }
    }

    fn fall_silent(&self) {
        let mut silent = self.places.silent();
        let since = silent.count;
        silent.count += 1;
        silent.by_age.insert(since, self.told.clone());
        drop(silent);
        *self.silent_since() = Some(since);
        self.places.one_more.notify_one();
    }

    fn silent_since(&self) -> MutexGuard<'_, Option<u64>> {
        self.silent_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.speak();
    }
}

/// A connection has been asked something, and its client doesn't have the whole answer yet.
#[derive(Debug)]
pub struct Asked(Arc<Place>);

impl Asked {
    /// The answer's body, which ends this when it has been sent, or nobody reads it any more.
    pub fn until_sent(self, body: Body) -> Answer {
        Answer { body, _asked: self }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.fall_silent();
    }
}

/// The body of an answer.
#[derive(Debug)]
pub struct Answer {
    body: Body,
    _asked: Asked,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
