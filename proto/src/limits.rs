//! Every cap that a peer or a user can run into, in one place. A limit that two parts must agree on is related
//! to the other by a const assertion here, so that changing one alone does not compile.

/// Bytes of a topic name.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;
/// Partitions of one topic.
pub const PARTITIONS_PER_TOPIC_MAX: u32 = 10_000;
/// Topics of a cluster.
pub const TOPICS_MAX: usize = 10_000;
/// Replicas of one partition.
pub const REPLICAS_MAX: u32 = 7;
/// Bytes of one record batch on the wire, header included: the default of a topic.
pub const BATCH_BYTES_DEFAULT: u32 = 1 << 20;
/// The largest that a topic may raise it to.
pub const BATCH_BYTES_MAX: u32 = 8 << 20;
/// Bytes that the sequencer gathers into one raft entry, unless a single batch is larger.
pub const ENTRY_BYTES_TARGET: usize = 1 << 20;
/// Records in one batch.
pub const BATCH_RECORDS_MAX: u32 = 1 << 20;
/// Bytes that a reader unfolds a compressed records section to.
pub const RECORDS_BYTES_MAX: usize = 64 << 20;
/// One gRPC message in either direction.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Bytes of the digest beside a batch that filters are decided on.
pub const DIGEST_BYTES_MAX: usize = 2 << 10;
/// Records in one batch of a topic with key compaction: batches go as a whole, so small ones go soon. Decision 0008 has what
/// was measured.
pub const COMPACTED_BATCH_RECORDS_MAX: u32 = 16;
/// Bytes of the digest of a batch's keys.
pub const KEY_DIGEST_BYTES_MAX: usize = 3 + 2 + 16 * COMPACTED_BATCH_RECORDS_MAX as usize;
/// Tombstones that one agreement on which may go leaves out.
pub const BLOCKED_TOMBSTONES_MAX: usize = 1024;
/// Credit that it costs a subscription to be told what its filter passed over.
pub const PASSED_CREDIT_BYTES: usize = 64;
/// Bytes of the text of a subscription's filter.
pub const FILTER_BYTES_MAX: usize = 4 << 10;
/// Requests of one requester that wait for a reply.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 1 << 20;
/// Topics that one replier keeps a producer for.
pub const REPLY_TOPICS_MAX: usize = 64;
/// Bytes of the text of a reply of failure.
pub const REPLY_ERROR_BYTES_MAX: usize = 1 << 10;
/// Bytes of a record's header `tracestate`; W3C asks for at least 512.
pub const TRACESTATE_BYTES_MAX: usize = 2 << 10;
/// Bytes of a record's header `baggage`; W3C asks for at least 8,192.
pub const BAGGAGE_BYTES_MAX: usize = 8 << 10;
/// Bytes of one raft entry's payload in a journal or segment frame.
pub const ENTRY_BYTES_MAX: usize = 12 << 20;
/// Producers with a name that the cluster knows at one time.
pub const NAMED_PRODUCERS_MAX: usize = 10_000;
/// A name that was not claimed for this long may be given up for another, once there is no room; in milliseconds.
pub const PRODUCER_NAME_KEPT_MS: i64 = 7 * 24 * 60 * 60 * 1_000;
/// Producers that a partition fences without having records of their new epoch.
pub const FENCES_PER_PARTITION_MAX: usize = NAMED_PRODUCERS_MAX;
/// Frames that one append request between brokers carries at most, in bytes of payload (one entry may exceed it).
pub const APPEND_BYTES_TARGET: usize = 1 << 20;
/// Shards that consumer groups are spread over.
pub const GROUP_SHARDS_MAX: u32 = 256;
/// Consumer groups of one shard.
pub const GROUPS_PER_SHARD_MAX: usize = 10_000;
/// Members of one consumer group.
pub const GROUP_MEMBERS_MAX: usize = 512;
/// Partitions that one consumer group reads.
pub const GROUP_PARTITIONS_MAX: usize = 10_000;
/// Topics that one member of a consumer group asks for.
pub const MEMBER_TOPICS_MAX: usize = 100;
/// Bytes that tell one instance of a member from another.
pub const MEMBER_INSTANCE_BYTES_MAX: usize = 64;
/// The least that a member's session timeout may be, in milliseconds.
pub const SESSION_TIMEOUT_MS_MIN: u64 = 500;
/// The most.
pub const SESSION_TIMEOUT_MS_MAX: u64 = 3_600_000;
/// Bytes that a client keeps beside a committed offset.
pub const COMMIT_STATE_BYTES_MAX: usize = 64 << 10;
/// Bytes of one commit of a consumer group, all partitions together.
pub const COMMIT_BYTES_MAX: usize = 8 << 20;
/// Bytes of everything that one shard of consumer groups knows: it travels in one message.
pub const SHARD_BYTES_MAX: usize = 12 << 20;

const _: () = assert!(COMMIT_BYTES_MAX < ENTRY_BYTES_MAX);
const _: () = assert!(COMMIT_STATE_BYTES_MAX < COMMIT_BYTES_MAX);
const _: () = assert!(SHARD_BYTES_MAX + (1 << 20) < MESSAGE_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_DEFAULT <= BATCH_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX as usize <= RECORDS_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX as usize + ENTRY_BYTES_TARGET < ENTRY_BYTES_MAX);
const _: () = assert!(ENTRY_BYTES_MAX + (64 << 10) < MESSAGE_BYTES_MAX);
