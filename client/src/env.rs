//! The seams to the outside: wall and monotonic clock, and randomness. The client's logic takes both from here,
//! so that a simulation can run it under a seed. Timers are tokio's, which a simulation pauses and steps itself.
//!
//! Never used for secrets: [`Entropy`] spreads retries and partitions, nothing else.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

/// Later than any timeout.
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What time it is.
///
/// ```
/// use busbar_client::env::Clock;
///
/// /// A clock whose calendar is an hour late.
/// struct Late;
///
/// impl Clock for Late {
///     fn now(&self) -> tokio::time::Instant {
///         tokio::time::Instant::now()
///     }
///
///     fn unix_ms(&self) -> i64 {
///         busbar_client::env::SystemClock.unix_ms() - 3_600_000
///     }
/// }
/// assert!(Late.unix_ms() > 0);
/// ```
pub trait Clock: Send + Sync {
    /// Monotonic time, comparable with tokio's timers.
    fn now(&self) -> Instant;
    /// Milliseconds since the Unix epoch.
    fn unix_ms(&self) -> i64;
}

/// Where random numbers come from.
///
/// ```
/// use busbar_client::env::Entropy;
///
/// /// Chance as tests like it.
/// struct Always(u64);
///
/// impl Entropy for Always {
///     fn next_u64(&self) -> u64 {
///         self.0
///     }
/// }
/// assert_eq!(Always(4).next_u64(), 4);
/// ```
pub trait Entropy: Send + Sync {
    /// 64 evenly distributed bits.
    fn next_u64(&self) -> u64;
}

/// Clock and randomness of one client.
///
/// ```no_run
/// # async fn example() -> Result<(), busbar_client::ClientError> {
/// use std::sync::Arc;
/// use busbar_client::{Client, env::{Env, SeededEntropy, SystemClock}};
///
/// let env = Env::new(Arc::new(SystemClock), Arc::new(SeededEntropy::new(7)));
/// let client = Client::builder().env(env).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Env {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Env {
    /// The real ones.
    pub fn system() -> Self {
        Self::new(Arc::new(SystemClock), Arc::new(SystemEntropy))
    }

    /// Any others.
    pub fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        Self { clock, entropy }
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    pub(crate) fn unix_ms(&self) -> i64 {
        self.clock.unix_ms()
    }

    pub(crate) fn random(&self) -> u64 {
        self.entropy.next_u64()
    }

    /// Monotonic time at Unix milliseconds `unix_ms`, as this clock sees both now; never before now.
    pub(crate) fn at_unix_ms(&self, unix_ms: i64) -> Instant {
        let left = u64::try_from(unix_ms.saturating_sub(self.unix_ms())).unwrap_or(0);
        let now = self.now();
        now.checked_add(Duration::from_millis(left)).unwrap_or(now + FAR)
    }

    /// Unix milliseconds at monotonic time `at`, as this clock sees both now.
    pub(crate) fn unix_ms_at(&self, at: Instant) -> u64 {
        let left = at.saturating_duration_since(self.now());
        let now = u64::try_from(self.unix_ms()).unwrap_or(0);
        now.saturating_add(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Env")
    }
}

/// The machine's clocks.
///
/// ```
/// use busbar_client::env::{Clock, SystemClock};
///
/// assert!(SystemClock.unix_ms() > 1_700_000_000_000);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn unix_ms(&self) -> i64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
    }
}

/// The thread's generator.
///
/// ```
/// use busbar_client::env::{Entropy, SystemEntropy};
///
/// assert_ne!((SystemEntropy.next_u64(), SystemEntropy.next_u64()), (0, 0));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn next_u64(&self) -> u64 {
        rand::random()
    }
}

/// A reproducible sequence (SplitMix64).
///
/// ```
/// use busbar_client::env::{Entropy, SeededEntropy};
///
/// assert_eq!(SeededEntropy::new(7).next_u64(), SeededEntropy::new(7).next_u64());
/// ```
#[derive(Debug)]
pub struct SeededEntropy(AtomicU64);

impl SeededEntropy {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    /// The sequence of this seed.
    pub const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }
}

impl Entropy for SeededEntropy {
    fn next_u64(&self) -> u64 {
        let mut z = self.0.fetch_add(Self::STEP, Ordering::Relaxed).wrapping_add(Self::STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
