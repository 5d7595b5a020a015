//! From the options to the broker that they name. Owns the one place that knows which brokers are compiled in.

use std::future::Future;

use super::{
    options::{Options, TargetKind},
    report::Report,
    run::{Audience, run},
    target::{Target, busbar::Busbar},
};

/// What is done with a broker once it is connected; a trait, because a closure can't be generic.
pub(crate) trait Session: Send {
    /// What comes of it.
    type Outcome;

    /// Does it.
    fn with<T: Target>(self, target: &T) -> impl Future<Output = anyhow::Result<Self::Outcome>> + Send;
}

/// Connects to `--target` at `--server` and does `session` with it.
///
/// # Errors
/// When it is not compiled in, when nobody answers, and what the session fails with.
pub(crate) async fn connected<S: Session>(options: &Options, session: S) -> anyhow::Result<S::Outcome> {
    match options.target {
        TargetKind::Busbar => session.with(&Busbar::connect(options).await?).await,
        #[cfg(feature = "nats")]
        TargetKind::Nats => session.with(&super::target::nats::Nats::connect(options).await?).await,
        #[cfg(not(feature = "nats"))]
        TargetKind::Nats => anyhow::bail!("--target nats is not compiled in: build with --features nats"),
        #[cfg(feature = "kafka")]
        TargetKind::Kafka => session.with(&super::target::kafka::Kafka::connect(options).await?).await,
        #[cfg(not(feature = "kafka"))]
        TargetKind::Kafka => anyhow::bail!("--target kafka is not compiled in: build with --features kafka"),
    }
}

/// One run; the topic stays.
pub(crate) struct Measured<'a> {
    /// What is run.
    pub(crate) options: &'a Options,
    /// Who is told.
    pub(crate) audience: Audience<'a>,
}

impl Session for Measured<'_> {
    type Outcome = Report;

    async fn with<T: Target>(self, target: &T) -> anyhow::Result<Report> {
        run(target, self.options, self.audience).await
    }
}
