//! Every section and key of the configuration: type, default, minimum and meaning, in one place.
//! `docs/OPERATIONS.md` lists the same; a test compares the two.

use std::path::PathBuf;

use busbar_proto::limits;

use super::{
    key::schema,
    units::{ByteSize, HostPort, InitialNode, Millis},
};

schema! {
    /// Who this node is and where it keeps its data.
    node: Node {
        /// This node's id, from 1, never used by another node before. Not set: the id kept in the data folder; else
        /// assigned when joining; else 1 for a cluster of its own.
        id: Option<u64> = None;
        /// Folder for everything this node stores; made if missing, held by one process at a time.
        data_dir: PathBuf = PathBuf::from("busbar-data");
    }

    /// The cluster this node belongs to.
    cluster: Cluster {
        /// Name of the cluster; nodes of different names refuse each other.
        name: String = "busbar".to_owned();
        /// The nodes of the cluster's first start, the same list on each: `{ id, address, peer_address }` in the
        /// file, `ID=ADDRESS/PEER_ADDRESS` as text. Read only while the data folder is empty. Empty, and nothing to
        /// join: this node is a cluster of its own.
        initial_nodes: Vec<InitialNode> = Vec::new();
        /// Peer addresses of a running cluster to join, tried in turn. Read only while the data folder is empty.
        join: Vec<HostPort> = Vec::new();
    }

    /// Where this node listens, and what it tells others.
    listen: Listen {
        /// Address that clients connect to.
        address: HostPort = HostPort::new("127.0.0.1", 7400);
        /// Address that the other nodes connect to.
        peer_address: HostPort = HostPort::new("127.0.0.1", 7500);
        /// Address told to clients. Not set: the one listened on.
        advertise: Option<HostPort> = None;
        /// Address told to other nodes. Not set: the one listened on.
        advertise_peer: Option<HostPort> = None;
    }

    /// The log engine: a journal shared by all partitions, segments per partition.
    log: Log {
        /// Size of one journal file; files are zero-filled once and recycled.
        journal_file_bytes: ByteSize = ByteSize::mib(64), min ByteSize::mib(16);
        /// Journal files at most (one more while nothing can be freed). With their size it bounds what a restart reads.
        journal_files_max: u32 = 8, min 4;
        /// Size at which a partition's segment is closed; retention removes whole segments.
        segment_bytes: ByteSize = ByteSize::mib(128), min ByteSize::mib(1);
        /// Memory of the whole node for the newest records of all partitions, from which tail readers are served.
        tail_cache_bytes: ByteSize = ByteSize::mib(64), min ByteSize::mib(8);
        /// Free disk below which publishes are refused; reads go on.
        reserve_disk_bytes: ByteSize = ByteSize::mib(256), min ByteSize::mib(16);
        /// Write the journal past the page cache where the file system allows it.
        direct_io: bool = true;
        /// How long a record of a topic with durability "replicated" may wait for its fsync.
        flush_interval_ms: Millis = Millis::new(50), min Millis::new(1);
    }

    /// How lost leaders are noticed and followed; the same on all nodes.
    raft: Raft {
        /// How often a node tells the others that it lives.
        heartbeat_ms: Millis = Millis::new(100), min Millis::new(10);
        /// Silence of a node after which others stand for the partitions that it leads.
        election_min_ms: Millis = Millis::new(400), min Millis::new(40);
        /// Longest time, times eight, until a partition is missed by its replicas themselves; they begin at eight times the
        /// least.
        election_max_ms: Millis = Millis::new(650), min Millis::new(50);
        /// Quiet time after which a partition costs nothing until something happens in it; 0 = never.
        hibernate_after_ms: Millis = Millis::new(10_000);
    }

    /// Caps on what clients can make this node hold.
    limits: Limits {
        /// Bytes of publishes accepted and not yet answered, of the whole node. Beyond it streams are not read.
        node_in_flight_bytes: ByteSize = ByteSize::mib(128), min ByteSize::new(2 * limits::BATCH_BYTES_MAX as u64);
        /// The same for one partition.
        partition_in_flight_bytes: ByteSize = ByteSize::mib(16), min ByteSize::new(limits::BATCH_BYTES_MAX as u64);
        /// Client connections open at once.
        connections_max: u32 = 4096, min 1;
        /// Streams and calls open at once on one connection.
        streams_per_connection_max: u32 = 256, min 8;
        /// Subscriptions open at once on one stream.
        subscriptions_per_stream_max: u32 = 10_000, min 1;
        /// Replicas of partitions that a node may have, on average over the nodes: topics beyond that are refused.
        replicas_max: u32 = 5000, min 1;
    }

    /// Consumer groups.
    groups: Groups {
        /// Shards that the groups are spread over, each a raft group of its own; read when the first group is made.
        shards: u32 = 8, min 1;
        /// How long a group without members keeps its offsets; 0 = for ever.
        offsets_retention_ms: Millis = Millis::new(7 * 24 * 3_600_000);
        /// How long a member may be silent before its partitions go to others, unless it asks for another timeout.
        session_timeout_ms: Millis = Millis::new(10_000), min Millis::new(limits::SESSION_TIMEOUT_MS_MIN);
    }

    /// Cleaning of topics with key compaction.
    compaction: Compaction {
        /// How often compacted partitions are looked at.
        check_interval_ms: Millis = Millis::new(15_000), min Millis::new(100);
        /// Part of a partition's closed segments that must be new before it is cleaned again, in percent.
        dirty_percent: u32 = 50, min 1;
        /// Memory for the keys of the partition that is being cleaned; with more keys it takes several passes.
        memory_bytes: ByteSize = ByteSize::mib(64), min ByteSize::mib(1);
        /// Bytes read a second at most when keys are looked for. Segments are rewritten at the pace at which the journal
        /// is emptied: at a third of the disk's time, and not at all while publishing needs it.
        bytes_per_second: ByteSize = ByteSize::mib(32), min ByteSize::mib(1);
        /// How long a tombstone is kept once no replica holds an older record of its key: readers that take longer from
        /// an old record to the end may miss that the key was deleted. The same on each node.
        delete_retention_ms: Millis = Millis::new(24 * 3_600_000);
    }

    /// Removal of old records.
    retention: Retention {
        /// How often partitions are checked against their topic's retention.
        check_interval_ms: Millis = Millis::new(10_000), min Millis::new(100);
    }
}
