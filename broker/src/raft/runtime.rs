//! Tokio as openraft's runtime, but for two things: a sleep that is shorter than tokio's timers can tell ends at once,
//! and a channel takes no memory for messages that it might hold one day ([`crate::channel`]).
//!
//! openraft gathers completed log writes for a microsecond before it tells its core. Tokio's timers count whole
//! milliseconds, so each such sleep would add one or two to the acknowledgement of whatever completed right behind
//! another write.

use std::{
    fmt,
    future::{Future, Ready, ready},
    time::Duration,
};

use futures::future::Either;
use openraft::{
    AsyncRuntime, OptionalSend,
    async_runtime::{Instant as _, Mpsc, MpscReceiver, MpscSender, MpscWeakSender, SendError, TryRecvError},
    impls::TokioRuntime,
};

use crate::channel::{self, Closed, Nothing};

/// Half of what tokio's timers can tell apart.
const SHORTEST: Duration = Duration::from_micros(500);

type Tokio<T> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;

/// See the module.
pub struct Runtime(TokioRuntime);

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Runtime")
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = Tokio<T>;
    type Sleep = Either<Ready<()>, <TokioRuntime as AsyncRuntime>::Sleep>;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = Channels;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        if duration < SHORTEST { Either::Left(ready(())) } else { Either::Right(TokioRuntime::sleep(duration)) }
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        let is_near = (deadline - SHORTEST).elapsed() > Duration::ZERO;
        if is_near { Either::Left(ready(())) } else { Either::Right(TokioRuntime::sleep_until(deadline)) }
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

/// Channels as openraft knows them.
pub struct Channels;

impl Mpsc for Channels {
    type Sender<T: OptionalSend> = channel::Sender<T>;
    type Receiver<T: OptionalSend> = channel::Receiver<T>;
    type WeakSender<T: OptionalSend> = channel::WeakSender<T>;

    fn channel<T: OptionalSend>(buffer: usize) -> (channel::Sender<T>, channel::Receiver<T>) {
        channel::channel(buffer)
    }
}

impl<T: OptionalSend> MpscSender<Channels, T> for channel::Sender<T> {
    async fn send(&self, message: T) -> Result<(), SendError<T>> {
        Self::send(self, message).await.map_err(|Closed(message)| SendError(message))
    }

    fn downgrade(&self) -> channel::WeakSender<T> {
        Self::downgrade(self)
    }
}

impl<T: OptionalSend> MpscReceiver<T> for channel::Receiver<T> {
    async fn recv(&mut self) -> Option<T> {
        Self::recv(self).await
    }

    fn try_recv(&mut self) -> Result<T, TryRecvError> {
        Self::try_recv(self).map_err(|nothing| match nothing {
            Nothing::Empty => TryRecvError::Empty,
            Nothing::Ended => TryRecvError::Disconnected,
        })
    }
}

impl<T: OptionalSend> MpscWeakSender<Channels, T> for channel::WeakSender<T> {
    fn upgrade(&self) -> Option<channel::Sender<T>> {
        Self::upgrade(self)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_microsecond_is_not_rounded_up_to_a_timer_tick_and_longer_sleeps_are_slept() {
        let mut runtime = Runtime::new(1);
        runtime.block_on(async {
            let began = Instant::now();
            for _ in 0..1_000 {
                Runtime::sleep(Duration::from_micros(1)).await;
            }
            assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
            let began = Instant::now();
            Runtime::sleep(Duration::from_millis(20)).await;
            assert!(began.elapsed() >= Duration::from_millis(19), "{:?}", began.elapsed());
        });
    }
}
