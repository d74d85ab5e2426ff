//! Two futures as one. Anyone may use them; the invariant: what isn't finished when the result is there is dropped with
//! it, and everything in [`sync`](super::sync) and [`time`](super::time) can be dropped so.

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;

/// Which of two came first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Either<A, B> {
    /// The first one.
    First(A),
    /// The second one.
    Second(B),
}

/// Waits for one of two. If both are ready at once the first one counts, and what the second one would have given isn't
/// taken.
pub async fn select<A: Future, B: Future>(first: A, second: B) -> Either<A::Output, B::Output> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|cx| {
        if let Poll::Ready(output) = first.as_mut().poll(cx) {
            return Poll::Ready(Either::First(output));
        }
        second.as_mut().poll(cx).map(Either::Second)
    })
    .await
}

/// Waits for both.
pub async fn join<A: Future, B: Future>(first: A, second: B) -> (A::Output, B::Output) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let mut outputs = (None, None);
    poll_fn(|cx| {
        // A future that has given its output isn't polled again.
        if outputs.0.is_none()
            && let Poll::Ready(output) = first.as_mut().poll(cx)
        {
            outputs.0 = Some(output);
        }
        if outputs.1.is_none()
            && let Poll::Ready(output) = second.as_mut().poll(cx)
        {
            outputs.1 = Some(output);
        }
        match &mut outputs {
            (first @ Some(_), second @ Some(_)) => match (first.take(), second.take()) {
                (Some(first), Some(second)) => Poll::Ready((first, second)),
                _ => Poll::Pending,
            },
            _ => Poll::Pending,
        }
    })
    .await
}
