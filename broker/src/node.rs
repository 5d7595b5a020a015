//! The composition root: the only place that wires a node together. Order matters: the folder is locked before it is
//! read, ports are bound before anything is promised, peers are served before the catalog needs them.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use busbar_machine::catalog::Catalog;
use busbar_proto::{GroupId, NodeId, peer::JoinRequest};
use busbar_storage::{LogEngine, LogOptions, OpenError, vfs::real::RealVfs};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    config::{Config, HostPort},
    env::{
        Clock, StateError, StateStore, SystemClock, Tasks,
        descriptors::{self, TooFew},
        rocks::RocksState,
    },
    folder::{DataFolder, FolderIdentity},
    listener::{accept, grpc},
    raft::{
        Group, GroupOptions, RaftTiming, Registry,
        group::GroupError,
        hibernation::{Hibernation, HibernationOptions},
        liveness::Liveness,
        network::{
            AddressBook, Identity, Links,
            calls::Calls,
            server::{PeerServer, PeerWatch},
        },
        rebuild::Stored,
        succession::{Succession, SuccessionOptions},
    },
    service::{Broker, BrokerOptions, Cluster, leaders::Leaders, peers::Hooks, rebuild},
};

/// Nodes that vote on the catalog from the start.
const CATALOG_VOTERS_MAX: usize = 5;
const PEER_CONNECTIONS_MAX: usize = 1024;
const PEER_STREAMS_MAX: u32 = 64;
/// How long the first node has to found the cluster before the others do.
const FOUNDING_GRACE: Duration = Duration::from_secs(3);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);
/// How often, and with which pause, the other nodes are asked for a lost checkpoint of the catalog.
const CATALOG_REBUILD_ATTEMPTS: u32 = 30;
const CATALOG_REBUILD_PAUSE: Duration = Duration::from_secs(1);
/// An unanswered request between nodes fails after this many election timeouts.
const REPLY_DEADLINE_ELECTIONS: u64 = 4;

/// Why a node did not start. Each text says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Files or sockets.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The log engine.
    #[error("{0}")]
    Log(#[from] OpenError),
    /// The state store.
    #[error("{0}; the log is not affected: move the `state` folder away and it is rebuilt")]
    State(#[from] StateError),
    /// Consensus.
    #[error("{0}")]
    Group(#[from] GroupError),
    /// The folder is somebody else's.
    #[error("the data folder {folder} belongs to {found}, but this is {configured}: use another node.data_dir")]
    WrongFolder {
        /// The folder.
        folder: String,
        /// Whose it is.
        found: String,
        /// Who we are.
        configured: String,
    },
    /// The process may open too few files.
    #[error(transparent)]
    Descriptors(#[from] TooFew),
    /// The cluster did not take this node in.
    #[error("can't join the cluster through {addresses}: {message}")]
    Join {
        /// Who was asked.
        addresses: String,
        /// The last answer.
        message: String,
    },
}

/// A running node.
pub struct Node {
    broker: Arc<Broker>,
    engine: LogEngine,
    tasks: Tasks,
    fatal: watch::Receiver<Option<String>>,
}

/// What is known of the cluster before the catalog is.
struct Membership {
    node: NodeId,
    incarnation: String,
    peers: Vec<(NodeId, String)>,
    /// Set on a new cluster's first nodes: who founds the catalog.
    founders: Option<BTreeSet<NodeId>>,
}

struct Listeners {
    clients: TcpListener,
    peers: TcpListener,
    address: String,
    peer_address: String,
}

impl Node {
    /// Starts a node. It serves as soon as this returns, as far as the rest of the cluster lets it.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let (config, segments_max) = within_descriptors(config)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let tasks = Tasks::new();
        let folder = DataFolder::open(&config.node.data_dir)?;
        let listeners = listen(&config)?;
        let (engine, report) = LogEngine::open(Arc::new(RealVfs), &folder.log(), log_options(&config, segments_max))?;
        tracing::info!(?report, "log opened");
        let fatal = watch_fatal(&engine);
        let calls = Arc::new(Calls::default());
        let membership = find_membership(&config, &folder, &listeners, &calls).await?;
        let store: Arc<dyn StateStore> = Arc::new(RocksState::open(&folder.state())?);
        let identity =
            Arc::new(Identity::new(config.cluster.name.clone(), membership.incarnation.clone(), membership.node));
        let addresses = Arc::new(AddressBook::default());
        for (node, address) in &membership.peers {
            addresses.insert(*node, address.clone());
        }
        let reply_deadline = Duration::from_millis(config.raft.election_max_ms.get() * REPLY_DEADLINE_ELECTIONS);
        let links = Arc::new(Links::new(identity.clone(), addresses.clone(), tasks.child(), reply_deadline));
        let registry = Arc::new(Registry::default());
        let hooks = Arc::new(Hooks::default());
        let watch = watch_peers(&config, membership.node, &registry, &links, &clock, &tasks);
        let peers = PeerServer::new(identity.clone(), registry.clone(), watch, tasks.clone(), hooks.clone());
        let peer_caps = grpc::Caps { connections: PEER_CONNECTIONS_MAX, streams: PEER_STREAMS_MAX };
        grpc::serve_peers(listeners.peers, peers, peer_caps, &tasks);
        let log = engine.group(busbar_storage::GroupId(GroupId::CATALOG.get()))?;
        let stored = Stored { id: GroupId::CATALOG, log: log.clone(), store: store.clone() };
        let joined = config.cluster.join.iter().map(ToString::to_string);
        let others: Vec<String> = addresses.others(membership.node).into_iter().chain(joined).collect();
        complete_catalog(&stored, &others, &calls).await?;
        let catalog = GroupOptions {
            id: GroupId::CATALOG,
            node: membership.node,
            log,
            store: store.clone(),
            links: links.clone(),
            registry: registry.clone(),
            timing: RaftTiming::of_groups(&config.raft),
            clock: clock.clone(),
            tasks: tasks.child(),
            lazy: false,
        };
        let group = Group::start(catalog, Catalog::new()).await?;
        let cluster = Cluster::new(membership.node, group, calls.clone(), addresses.clone(), clock.clone());
        let broker = Broker::new(BrokerOptions {
            config: config.clone(),
            identity,
            engine: engine.clone(),
            store,
            cluster,
            addresses,
            links,
            calls,
            registry,
            leaders: Arc::new(Leaders::default()),
            clock,
            tasks: tasks.clone(),
            advertised: (listeners.address.clone(), listeners.peer_address.clone()),
        });
        hooks.attach(broker.clone());
        Ok(Self::serve(broker, engine, fatal, listeners.clients, folder, membership.founders))
    }

    /// The last step: background work, then clients.
    fn serve(
        broker: Arc<Broker>,
        engine: LogEngine,
        fatal: watch::Receiver<Option<String>>,
        clients: TcpListener,
        folder: DataFolder,
        founders: Option<BTreeSet<NodeId>>,
    ) -> Self {
        let tasks = broker.tasks().clone();
        if let Some(founders) = founders {
            tasks.spawn("found cluster", found_cluster(broker.clone(), founders));
        }
        tasks.spawn("remember cluster", remember_incarnation(broker.clone(), folder));
        broker.start();
        let limits = &broker.config().limits;
        let caps =
            grpc::Caps { connections: limits.connections_max as usize, streams: limits.streams_per_connection_max };
        grpc::serve_clients(clients, broker.clone(), caps, &tasks);
        Self { broker, engine, tasks, fatal }
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.broker.node()
    }

    /// What clients connect to.
    pub fn address(&self) -> &str {
        &self.broker.advertised().0
    }

    /// What other nodes connect to.
    pub fn peer_address(&self) -> &str {
        &self.broker.advertised().1
    }

    /// The use-cases, for tests in one process.
    pub fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// Resolves when something has happened that the process must not outlive: the disk has failed, or the cluster has
    /// removed this node. The text says what. Cancel safe.
    pub async fn wait_fatal(&self) -> String {
        let told = |mut reason: watch::Receiver<Option<String>>| async move {
            match reason.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            disk = told(self.fatal.clone()) => disk,
            removed = told(self.broker.expelled()) => removed,
        }
    }

    /// Gives leadership away, stops, and closes the log cleanly. Not cancel safe.
    pub async fn shutdown(self) {
        let stopped = tokio::time::timeout(SHUTDOWN_LIMIT, self.broker.stop()).await;
        if stopped.is_err() {
            tracing::warn!("some partitions did not stop in time; their logs are safe");
        }
        if !self.tasks.shutdown(SHUTDOWN_LIMIT).await {
            tracing::warn!("some tasks did not end in time");
        }
        let engine = self.engine.clone();
        // Blocking: the last writes and syncs.
        if tokio::task::spawn_blocking(move || engine.close()).await.is_err() {
            tracing::warn!("the log engine did not close cleanly; it will recover at the next start");
        }
    }
}

/// Gets the catalog's checkpoint from another node when the own one is lost with the state folder.
async fn complete_catalog(stored: &Stored, others: &[String], calls: &Calls) -> Result<(), GroupError> {
    for _ in 0..CATALOG_REBUILD_ATTEMPTS {
        if rebuild::complete(stored, others, calls).await? {
            break;
        }
        tokio::time::sleep(CATALOG_REBUILD_PAUSE).await;
    }
    Ok(()) // the start of the group says what is missing, if something is
}

/// Starts what watches the peers and what puts quiet groups to sleep.
fn watch_peers(
    config: &Config,
    node: NodeId,
    registry: &Arc<Registry>,
    links: &Arc<Links>,
    clock: &Arc<dyn Clock>,
    tasks: &Tasks,
) -> PeerWatch {
    let raft = &config.raft;
    let patience = Duration::from_millis(raft.election_min_ms.get());
    let liveness = Arc::new(Liveness::new(patience, clock.now()));
    let (succession, news) = Succession::new(SuccessionOptions {
        node,
        registry: registry.clone(),
        liveness: liveness.clone(),
        links: links.clone(),
        clock: clock.clone(),
        beat: Duration::from_millis(raft.heartbeat_ms.get()),
    });
    tasks.spawn("beats", links.clone().keep_beating(Duration::from_millis(raft.heartbeat_ms.get())));
    tasks.spawn("succession", succession.run());
    if raft.hibernate_after_ms.get() > 0 {
        let hibernation = Hibernation::new(HibernationOptions {
            registry: registry.clone(),
            links: links.clone(),
            clock: clock.clone(),
            after: Duration::from_millis(raft.hibernate_after_ms.get()),
        });
        tasks.spawn("hibernation", hibernation.run());
    }
    PeerWatch { liveness, news, clock: clock.clone() }
}

/// Fits what the configuration allows into the files that this process may open; also how many segments stay open.
fn within_descriptors(mut config: Config) -> Result<(Arc<Config>, usize), StartError> {
    let limit = descriptors::raise_limit();
    let wanted = config.limits.connections_max;
    let shares = descriptors::share_out(limit, config.log.journal_files_max.into(), wanted as usize)?;
    let connections = u32::try_from(shares.connections).unwrap_or(wanted);
    if connections < wanted {
        tracing::warn!(
            connections,
            wanted,
            open_files = limit,
            "fewer client connections than limits.connections_max: raise the limit of open files (ulimit -n)"
        );
    }
    config.limits.connections_max = connections;
    Ok((Arc::new(config), shares.segments))
}

fn log_options(config: &Config, open_segments_max: usize) -> LogOptions {
    let log = &config.log;
    LogOptions {
        file_bytes: log.journal_file_bytes.get(),
        files_max: log.journal_files_max as usize,
        segment_bytes: log.segment_bytes.get(),
        tail_cache_bytes: log.tail_cache_bytes.as_usize(),
        reserve_disk_bytes: log.reserve_disk_bytes.get(),
        direct_io: log.direct_io,
        flush_interval: Duration::from_millis(log.flush_interval_ms.get()),
        open_segments_max,
        ..LogOptions::default()
    }
}

fn listen(config: &Config) -> Result<Listeners, StartError> {
    let listen = &config.listen;
    let clients = accept::bind(&listen.address.to_string(), "clients")?;
    let peers = accept::bind(&listen.peer_address.to_string(), "peers")?;
    let told = |advertised: &Option<HostPort>, listener: &TcpListener| match advertised {
        Some(address) => Ok(address.to_string()),
        None => listener.local_addr().map(|address| address.to_string()),
    };
    let address = told(&listen.advertise, &clients)?;
    let peer_address = told(&listen.advertise_peer, &peers)?;
    Ok(Listeners { clients, peers, address, peer_address })
}

fn watch_fatal(engine: &LogEngine) -> watch::Receiver<Option<String>> {
    let (failed, fatal) = watch::channel(None);
    engine.on_fatal(move |reason: &str| {
        failed.send_replace(Some(reason.to_owned()));
    });
    fatal
}

async fn find_membership(
    config: &Config,
    folder: &DataFolder,
    listeners: &Listeners,
    calls: &Calls,
) -> Result<Membership, StartError> {
    let cluster = &config.cluster;
    let initial: Vec<(NodeId, String)> =
        cluster.initial_nodes.iter().map(|node| (NodeId::new(node.id), node.peer_address.to_string())).collect();
    if let Some(known) = folder.identity()? {
        check_folder(config, &known)?;
        let founders = founders(config, known.node);
        return Ok(Membership { node: known.node, incarnation: known.incarnation, peers: initial, founders });
    }
    let membership = if cluster.join.is_empty() {
        let node = NodeId::new(config.node.id.unwrap_or(1));
        Membership { node, incarnation: String::new(), peers: initial, founders: founders(config, node) }
    } else {
        join(config, listeners, calls).await?
    };
    let identity = FolderIdentity::new(cluster.name.clone(), membership.incarnation.clone(), membership.node);
    folder.claim(&identity)?;
    Ok(membership)
}

fn check_folder(config: &Config, known: &FolderIdentity) -> Result<(), StartError> {
    let same_node = config.node.id.is_none_or(|id| id == known.node.get());
    if known.cluster == config.cluster.name && same_node {
        return Ok(());
    }
    let id = config.node.id.unwrap_or(known.node.get());
    Err(StartError::WrongFolder {
        folder: config.node.data_dir.display().to_string(),
        found: format!("node {} of cluster {:?}", known.node, known.cluster),
        configured: format!("node {id} of cluster {:?}", config.cluster.name),
    })
}

/// Who founds the catalog, if this node may be one of them.
fn founders(config: &Config, node: NodeId) -> Option<BTreeSet<NodeId>> {
    let mut listed: Vec<NodeId> = config.cluster.initial_nodes.iter().map(|listed| NodeId::new(listed.id)).collect();
    listed.sort_unstable();
    listed.truncate(CATALOG_VOTERS_MAX);
    let founders: BTreeSet<NodeId> = match (listed.is_empty(), config.cluster.join.is_empty()) {
        (true, true) => BTreeSet::from([node]), // a cluster of its own
        _ => listed.into_iter().collect(),
    };
    founders.contains(&node).then_some(founders)
}

async fn join(config: &Config, listeners: &Listeners, calls: &Calls) -> Result<Membership, StartError> {
    let request = JoinRequest {
        cluster: config.cluster.name.clone(),
        node: config.node.id.unwrap_or(0),
        address: listeners.address.clone(),
        peer_address: listeners.peer_address.clone(),
    };
    let mut message = String::new();
    for _ in 0..5 {
        for address in &config.cluster.join {
            match calls.join(&address.to_string(), request.clone()).await {
                Ok(joined) => {
                    let peers = joined.nodes.into_iter().map(|node| (NodeId::new(node.node), node.peer_address));
                    return Ok(Membership {
                        node: NodeId::new(joined.node),
                        incarnation: joined.incarnation,
                        peers: peers.collect(),
                        founders: None,
                    });
                }
                Err(refusal) => message = refusal.message,
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let addresses: Vec<String> = config.cluster.join.iter().map(ToString::to_string).collect();
    Err(StartError::Join { addresses: addresses.join(", "), message })
}

/// Founds the catalog's group: the first of the founders at once, the others when it has not done so in time.
async fn found_cluster(broker: Arc<Broker>, founders: BTreeSet<NodeId>) {
    let group = broker.cluster().group();
    if founders.first() != Some(&broker.node()) {
        let mut leadership = group.watch_leadership();
        let contacted = async { while leadership.current().leader.is_none() && leadership.changed().await {} };
        let _ = tokio::time::timeout(FOUNDING_GRACE, contacted).await;
    }
    if group.is_initialized().await {
        return;
    }
    if let Err(error) = group.initialize(founders).await {
        tracing::error!(%error, "the cluster could not be founded");
    }
}

/// Between two attempts to write `node.json`.
const REMEMBER_RETRY: Duration = Duration::from_secs(1);

/// Writes the cluster's incarnation into the folder once it is known, so that it can't be mistaken for another's, nor a
/// new folder for this one.
async fn remember_incarnation(broker: Arc<Broker>, folder: DataFolder) {
    let mut applied = broker.cluster().group().shared().watch();
    loop {
        let incarnation = broker.cluster().read(|catalog| catalog.incarnation().map(str::to_owned));
        if let Some(incarnation) = incarnation {
            let name = broker.config().cluster.name.clone();
            let identity = FolderIdentity::new(name, incarnation.clone(), broker.node());
            match folder.claim(&identity) {
                Ok(()) => return broker.identity().note_remembered(incarnation),
                Err(error) => {
                    tracing::warn!(%error, "the cluster's incarnation can't be recorded in the data folder; trying again");
                    tokio::time::sleep(REMEMBER_RETRY).await;
                    continue;
                }
            }
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}
