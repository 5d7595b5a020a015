//! What becomes of the groups of a node that is lost. Owns the watch over the peers; the elections themselves are
//! openraft's.
//!
//! ```text
//!   every beat: is a peer silent?  ·  a peer's process is a new one
//!                                                     │
//!              each group that it led: its lease is over here, and this node stands, after a pause by its rank,
//!              again and again until somebody leads
//! ```
//! A leader may also name an heir, and take nothing from then on. When the heir does not take over, whoever was told of it
//! does: openraft's leader never takes its word back.
//!
//! A group's own timers are slow, as thousands of them must cost little, and are a net below this. Nobody is elected on one
//! node's suspicion: standing begins with a pre-vote, which every voter refuses for as long as the leader's lease holds
//! there, that is, as long as it does not suspect the leader itself.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use busbar_proto::{GroupId, NodeId};
use tokio::sync::mpsc;

use super::{liveness::Liveness, network::Links, pulse::Pulse, registry::Registry, types::RaftVote};
use crate::env::Clock;

/// Between two voters that stand for one group: the time of an undisturbed election.
const RANK_STEP: Duration = Duration::from_millis(60);
/// Between two attempts of one voter, at first and at most.
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_millis(1000);
/// How often groups without a leader are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Time for an heir that was named to take over. Its leader takes nothing meanwhile, and openraft has no way back.
const HEIR_PATIENCE: Duration = Duration::from_millis(400);
/// Groups that are stood for at one time: a node that led thousands of them is followed in some of them after the other,
/// instead of in none for long.
const STANDING_MAX: usize = 64;
/// How long an election under way counts as one of those.
const STANDING_FOR: Duration = Duration::from_millis(500);
/// Between two looks for elections that are over, while more groups wait for theirs.
const NEXT_AFTER: Duration = Duration::from_millis(10);
/// News not looked at yet.
const NEWS_QUEUED: usize = 16_384;

/// What a [`Succession`] needs.
pub struct SuccessionOptions {
    /// This node.
    pub node: NodeId,
    /// The groups.
    pub registry: Arc<Registry>,
    /// Who lives.
    pub liveness: Arc<Liveness>,
    /// The way to the peers.
    pub links: Arc<Links>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// How often to look.
    pub beat: Duration,
}

/// What a [`Succession`] is told.
#[derive(Debug)]
enum Word {
    Restarted(NodeId),
    GivenAway(GroupId, RaftVote),
}

/// Tells a [`Succession`] what peers say. Cheap to clone. Should too much be queued, the groups' own timers do.
#[derive(Clone, Debug)]
pub struct News(mpsc::Sender<Word>);

impl News {
    /// The node's process is a new one.
    pub(crate) fn restarted(&self, node: NodeId) {
        let _ = self.0.try_send(Word::Restarted(node));
    }

    /// The leader of this vote has named another node as the group's heir.
    pub(crate) fn given_away(&self, group: GroupId, vote: RaftVote) {
        let _ = self.0.try_send(Word::GivenAway(group, vote));
    }
}

/// Why nobody leads a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Its leader's node is silent.
    Silent(NodeId),
    /// Its leader's process is a new one, which leads nothing.
    Restarted(NodeId),
    /// Its leader has given it away.
    GivenAway,
    /// Nobody is known to lead it.
    Leaderless,
}

impl Cause {
    fn lost(self) -> Option<NodeId> {
        match self {
            Self::Silent(node) | Self::Restarted(node) => Some(node),
            Self::GivenAway | Self::Leaderless => None,
        }
    }
}

/// A group whose leader is lost.
struct Vacancy {
    cause: Cause,
    /// The reign that is over.
    vote: RaftVote,
    stand_at: Instant,
    again: Duration,
    /// This node stands since then.
    stood: Option<Instant>,
}

impl Vacancy {
    /// Whether nobody has followed, and the lost leader is not back.
    fn is_open(&self, pulse: &Pulse, liveness: &Liveness, now: Instant) -> bool {
        let is_over = pulse.vote() == self.vote || pulse.leader().is_none();
        match self.cause {
            Cause::Silent(node) => is_over && liveness.is_suspect(node, now),
            Cause::Restarted(_) => is_over,
            Cause::GivenAway => pulse.vote() == self.vote,
            Cause::Leaderless => !pulse.is_led(),
        }
    }
}

/// See the module.
pub struct Succession {
    options: SuccessionOptions,
    news: mpsc::Receiver<Word>,
    suspects: BTreeSet<NodeId>,
    vacancies: BTreeMap<GroupId, Vacancy>,
    look_at: Instant,
    leaderless: BTreeSet<GroupId>,
}

impl Succession {
    /// Ready to run.
    pub fn new(options: SuccessionOptions) -> (Self, News) {
        let (tell, news) = mpsc::channel(NEWS_QUEUED);
        let look_at = options.clock.now() + LOOK_EVERY;
        let (suspects, vacancies, leaderless) = Default::default();
        (Self { options, news, suspects, vacancies, look_at, leaderless }, News(tell))
    }

    /// For as long as the node lives.
    pub async fn run(mut self) {
        let mut looks = tokio::time::interval(self.options.beat);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let stand_at = self.vacancies.values().map(|vacancy| vacancy.stand_at).min();
            let pause = stand_at.map(|at| at.saturating_duration_since(self.options.clock.now()).max(NEXT_AFTER));
            tokio::select! {
                _ = looks.tick() => {
                    self.suspect();
                }
                Some(word) = self.news.recv() => self.on_word(word),
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            }
            self.stand().await;
        }
    }

    fn on_word(&mut self, word: Word) {
        match word {
            Word::Restarted(node) => {
                tracing::info!(%node, "a peer's process was started anew: its groups are led by others, or elect");
                self.vacate(node, Cause::Restarted(node));
            }
            // Only of the leader that is followed: an old word must not depose a new leader.
            Word::GivenAway(group, vote) => {
                let pulse = self.options.registry.pulse(group);
                if let Some(pulse) = pulse.filter(|pulse| pulse.vote() == vote) {
                    self.open(group, &pulse, Cause::GivenAway);
                }
            }
        }
    }

    /// Looks for nodes that have fallen silent, and for groups that nobody leads.
    fn suspect(&mut self) {
        let now = self.options.clock.now();
        self.options.liveness.looked(self.options.beat, now);
        let groups = self.options.registry.all();
        let mut peers = self.options.links.peers();
        peers.extend(&self.suspects);
        if now >= self.look_at {
            peers.extend(groups.iter().filter_map(|(_, pulse)| pulse.leader()));
        }
        let silent = |node: &NodeId| *node != self.options.node && self.options.liveness.is_suspect(*node, now);
        let suspects: BTreeSet<NodeId> = peers.into_iter().filter(silent).collect();
        let news: Vec<NodeId> = suspects.difference(&self.suspects).copied().collect();
        self.suspects = suspects;
        for node in news {
            tracing::warn!(%node, "a peer is silent: its groups elect");
            self.vacate(node, Cause::Silent(node));
        }
        if now >= self.look_at {
            self.look_at = now + LOOK_EVERY;
            // Twice in a row: an election that is under way is left alone.
            let leaderless: BTreeSet<GroupId> =
                groups.iter().filter(|(_, pulse)| !pulse.is_led()).map(|(group, _)| *group).collect();
            let lost: Vec<_> = leaderless.intersection(&self.leaderless).copied().collect();
            for (group, pulse) in groups.iter().filter(|(group, _)| lost.contains(group)) {
                self.open(*group, pulse, Cause::Leaderless);
            }
            self.leaderless = leaderless;
        }
    }

    /// A node leads no more.
    fn vacate(&mut self, node: NodeId, cause: Cause) {
        for (group, pulse) in self.options.registry.all() {
            if pulse.leader() == Some(node) {
                self.open(group, &pulse, cause);
            }
        }
    }

    fn open(&mut self, group: GroupId, pulse: &Pulse, cause: Cause) {
        let Some(rank) = pulse.rank(cause.lost()) else { return };
        let patience = if cause == Cause::GivenAway { HEIR_PATIENCE } else { Duration::ZERO };
        let pause = patience + RANK_STEP * rank + jitter(RANK_STEP / 4);
        let stand_at = self.options.clock.now() + pause;
        let vacancy = Vacancy { cause, vote: pulse.vote(), stand_at, again: AGAIN, stood: None };
        match self.vacancies.entry(group) {
            // Found leaderless again: it is stood for already.
            Entry::Occupied(_) if cause == Cause::Leaderless => {}
            Entry::Occupied(mut known) => drop(known.insert(vacancy)),
            Entry::Vacant(place) => drop(place.insert(vacancy)),
        }
    }

    /// Elections of this node's that are under way; those that are over are forgotten.
    fn standing(&mut self, now: Instant) -> usize {
        let SuccessionOptions { registry, liveness, .. } = &self.options;
        let mut standing = 0;
        self.vacancies.retain(|group, vacancy| {
            let Some(stood) = vacancy.stood else { return true };
            let is_open = registry.pulse(*group).is_some_and(|pulse| vacancy.is_open(&pulse, liveness, now));
            standing += usize::from(is_open && now.saturating_duration_since(stood) < STANDING_FOR);
            is_open
        });
        standing
    }

    /// Stands for what is due, as far as there is room.
    async fn stand(&mut self) {
        let now = self.options.clock.now();
        let due = |vacancy: &Vacancy| vacancy.stand_at <= now;
        if !self.vacancies.values().any(due) {
            return;
        }
        let mut room = STANDING_MAX.saturating_sub(self.standing(now));
        let mut waiting: Vec<(Instant, GroupId)> =
            self.vacancies.iter().filter(|(_, v)| due(v)).map(|(group, v)| (v.stand_at, *group)).collect();
        waiting.sort_unstable();
        for (_, group) in waiting {
            let Some(vacancy) = self.vacancies.get_mut(&group) else { continue };
            let is_given = vacancy.cause == Cause::GivenAway;
            let pulse = self.options.registry.pulse(group);
            let liveness = &self.options.liveness;
            let Some(pulse) = pulse.filter(|pulse| vacancy.is_open(pulse, liveness, now)) else {
                self.vacancies.remove(&group);
                continue;
            };
            // Awake, it has its own timers, too.
            pulse.wake();
            // Who waits keeps its time, so whoever has waited longest is next. An heir waits for nobody: its leader has
            // stopped for it.
            if room == 0 && !is_given {
                continue;
            }
            room = room.saturating_sub(1);
            vacancy.stood = Some(now);
            vacancy.stand_at = now + vacancy.again + jitter(vacancy.again);
            vacancy.again = (vacancy.again * 2).min(AGAIN_MAX);
            tracing::debug!(%group, cause = ?vacancy.cause, vote = %pulse.vote(), "standing for election");
            if is_given {
                pulse.inherit(vacancy.vote).await;
                continue;
            }
            // A node that only was not heard for a while, and leads on, takes its lease back with its next heartbeat.
            if vacancy.cause.lost().is_some() {
                pulse.drop_lease(vacancy.vote).await;
            }
            pulse.stand().await;
        }
    }
}

fn jitter(up_to: Duration) -> Duration {
    up_to.mul_f64(rand::random::<f64>())
}
