//! A bounded channel that costs memory for what is queued in it, and nothing for what might be.
//!
//! A node has thousands of raft groups with several channels each, nearly all of them empty. Tokio's channel takes a block
//! of 32 messages from the start, which with messages of some hundred bytes is most of what an idle group costs. This
//! one keeps its queue in a deque under a lock: empty, it is about 200 bytes. Under load the lock is held for a few
//! nanoseconds by one sender and one receiver.
//!
//! Invariants: messages arrive in the order of their sending; a message is received or dropped exactly once; a permit of
//! `room` stands for a free place, so no more than the channel's limit are queued.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use tokio::{sync::Semaphore, task::coop};

/// A deque that grew over this many messages gives its memory back once it is empty.
const KEPT_PLACES: usize = 64;

/// Every sender or the receiver is gone; the message comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Closed<T>(pub T);

impl<T> fmt::Debug for Closed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closed")
    }
}

/// Why nothing was received at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {
    /// Nothing is queued now.
    Empty,
    /// Nothing is queued and nothing can be any more.
    Ended,
}

/// Why nothing was sent at once; the message comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unsent<T> {
    /// No place is free.
    Full(T),
    /// The receiver is gone.
    Closed(T),
}

struct State<T> {
    queue: VecDeque<T>,
    waiting: Option<Waker>,
    senders: usize,
    /// The receiver takes no more.
    is_closed: bool,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    room: Semaphore,
}

/// The sending half; clones share the channel.
pub struct Sender<T>(Arc<Shared<T>>);

/// A sender that does not keep the channel open.
pub struct WeakSender<T>(Arc<Shared<T>>);

/// The receiving half.
pub struct Receiver<T>(Arc<Shared<T>>);

/// A channel with places for `limit` messages.
///
/// # Panics
/// When `limit` is 0 or more than a semaphore counts to.
pub fn channel<T>(limit: usize) -> (Sender<T>, Receiver<T>) {
    assert!(limit > 0, "a channel has places");
    let state = State { queue: VecDeque::new(), waiting: None, senders: 1, is_closed: false };
    let shared = Arc::new(Shared { state: Mutex::new(state), room: Semaphore::new(limit) });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Shared<T> {
    /// Queues a message for which a place was taken.
    fn push(&self, message: T) -> Result<(), Closed<T>> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(Closed(message));
        }
        state.queue.push_back(message);
        let waiting = state.waiting.take();
        drop(state);
        if let Some(waker) = waiting {
            waker.wake();
        }
        Ok(())
    }

    fn pop(&self) -> Result<T, Nothing> {
        let mut state = self.state.lock();
        self.pop_from(&mut state)
    }

    fn pop_from(&self, state: &mut State<T>) -> Result<T, Nothing> {
        let Some(message) = state.queue.pop_front() else {
            let ended = state.senders == 0 || state.is_closed;
            return Err(if ended { Nothing::Ended } else { Nothing::Empty });
        };
        if state.queue.is_empty() && state.queue.capacity() > KEPT_PLACES {
            state.queue.shrink_to(KEPT_PLACES / 4);
        }
        self.room.add_permits(1);
        Ok(message)
    }

    fn poll_pop(&self, context: &Context<'_>) -> Poll<Option<T>> {
        let mut state = self.state.lock();
        match self.pop_from(&mut state) {
            Ok(message) => Poll::Ready(Some(message)),
            Err(Nothing::Ended) => Poll::Ready(None),
            Err(Nothing::Empty) => {
                if !state.waiting.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    state.waiting = Some(context.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

impl<T> Sender<T> {
    /// Queues a message, once there is a place for it. Cancel safe: a cancelled call has queued nothing.
    ///
    /// # Errors
    /// [`Closed`] when the receiver is gone.
    pub async fn send(&self, message: T) -> Result<(), Closed<T>> {
        match self.0.room.acquire().await {
            Ok(place) => {
                place.forget();
                self.0.push(message)
            }
            Err(_) => Err(Closed(message)),
        }
    }

    /// Queues a message if there is a place for it now.
    ///
    /// # Errors
    /// [`Unsent`].
    pub fn try_send(&self, message: T) -> Result<(), Unsent<T>> {
        match self.0.room.try_acquire() {
            Ok(place) => {
                place.forget();
                self.0.push(message).map_err(|Closed(message)| Unsent::Closed(message))
            }
            Err(tokio::sync::TryAcquireError::NoPermits) => Err(Unsent::Full(message)),
            Err(tokio::sync::TryAcquireError::Closed) => Err(Unsent::Closed(message)),
        }
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.0.state.lock().is_closed
    }

    /// A sender that does not keep the channel open.
    pub fn downgrade(&self) -> WeakSender<T> {
        WeakSender(self.0.clone())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.state.lock().senders += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.senders -= 1;
        let waiting = if state.senders == 0 { state.waiting.take() } else { None };
        drop(state);
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

impl<T> WeakSender<T> {
    /// A sender, unless all of them are gone.
    pub fn upgrade(&self) -> Option<Sender<T>> {
        let mut state = self.0.state.lock();
        if state.senders == 0 {
            return None;
        }
        state.senders += 1;
        drop(state);
        Some(Sender(self.0.clone()))
    }
}

impl<T> Clone for WeakSender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Receiver<T> {
    /// The next message; `None` once every sender is gone, or the channel was closed, and nothing is queued. Cancel safe.
    pub async fn recv(&mut self) -> Option<T> {
        // A receiver that always finds something must let others run now and then, as with tokio's own.
        coop::cooperative(poll_fn(|context| self.0.poll_pop(context))).await
    }

    /// As [`Receiver::recv`], for streams.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_pop(context)
    }

    /// The next message if one is queued.
    ///
    /// # Errors
    /// [`Nothing`].
    pub fn try_recv(&mut self) -> Result<T, Nothing> {
        self.0.pop()
    }

    /// Takes no more; what is queued can still be received.
    pub fn close(&mut self) {
        self.0.state.lock().is_closed = true;
        self.0.room.close();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.close();
        let queued = std::mem::take(&mut self.0.state.lock().queue);
        // Outside of the lock: a message's own drop may send.
        drop(queued);
    }
}

impl<T> futures::Stream for Receiver<T> {
    type Item = T;

    fn poll_next(self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.get_mut().poll_recv(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_senders_each_in_order_and_nothing_lost() {
        const EACH: usize = 20_000;
        let (sender, mut receiver) = channel(7);
        for who in 0..4usize {
            let sender = sender.clone();
            tokio::spawn(async move {
                for number in 0..EACH {
                    sender.send((who, number)).await.expect("the receiver stays");
                }
            });
        }
        drop(sender);
        let mut next = [0; 4];
        while let Some((who, number)) = receiver.recv().await {
            assert_eq!(number, next[who]);
            next[who] += 1;
            assert!(receiver.0.state.lock().queue.len() <= 7);
        }
        assert_eq!(next, [EACH; 4]);
    }

    #[tokio::test]
    async fn a_full_channel_makes_senders_wait_and_tells_those_who_do_not() {
        let (sender, mut receiver) = channel(1);
        sender.send(1).await.expect("a place");
        assert!(matches!(sender.try_send(2), Err(Unsent::Full(2))));
        let waits = tokio::time::timeout(Duration::from_millis(20), sender.send(3)).await;
        assert!(waits.is_err(), "no place is free");
        assert_eq!(receiver.recv().await, Some(1));
        assert_eq!(receiver.try_recv(), Err(Nothing::Empty), "a cancelled send has queued nothing");
        sender.send(4).await.expect("a place");
        assert_eq!(receiver.try_recv(), Ok(4));
    }

    #[tokio::test]
    async fn whoever_goes_last_ends_it() {
        let (sender, mut receiver) = channel(4);
        let weak = sender.downgrade();
        let second = weak.upgrade().expect("open");
        drop(sender);
        second.send(1).await.expect("open");
        let ends = tokio::spawn(async move { (receiver.recv().await, receiver.recv().await) });
        tokio::task::yield_now().await;
        drop(second);
        assert_eq!(ends.await.expect("ends"), (Some(1), None));
        assert!(weak.upgrade().is_none());

        let (sender, mut receiver) = channel(1);
        sender.send(1).await.expect("open");
        receiver.close();
        assert!(sender.is_closed() && sender.send(2).await.is_err());
        assert_eq!((receiver.try_recv(), receiver.try_recv()), (Ok(1), Err(Nothing::Ended)));
        assert_eq!(receiver.recv().await, None);
    }

    #[tokio::test]
    async fn a_sender_that_waits_hears_that_the_receiver_is_gone() {
        let (sender, receiver) = channel(1);
        sender.send(1).await.expect("a place");
        let waiting = tokio::spawn(async move { sender.send(2).await });
        tokio::task::yield_now().await;
        drop(receiver);
        assert_eq!(waiting.await.expect("ends"), Err(Closed(2)));
    }

    #[tokio::test]
    async fn what_a_burst_took_is_given_back() {
        let (sender, mut receiver) = channel(100_000);
        for number in 0..10_000u64 {
            sender.send(number).await.expect("a place");
        }
        while receiver.try_recv().is_ok() {}
        assert!(receiver.0.state.lock().queue.capacity() <= KEPT_PLACES);
    }
}
