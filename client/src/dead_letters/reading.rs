//! Reading a topic's dead letters: those that are there when reading begins, partition by partition, so that it comes to an
//! end however many more arrive meanwhile.

use std::{collections::VecDeque, sync::Arc};

use busbar_proto::{Reason, TopicId, v1};

use super::{
    DeadLetters,
    error::DeadLetterError,
    journal::{self, Entry, History},
    letter::Letter,
};
use crate::{
    admin::Admin,
    cluster::Cluster,
    consumer::{ConsumedRecord, Consumer, ConsumerBuilder, StartAt},
    error::ClientError,
    retry::{Backoff, BackoffPolicy},
};

/// Which dead letters are meant.
///
/// ```
/// use busbar_client::LetterSelection;
///
/// let selection = LetterSelection::waiting().of_group("billing").in_partition(3);
/// assert_ne!(selection, LetterSelection::all());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterSelection {
    group: Option<String>,
    partition: Option<u32>,
    offset: Option<u64>,
    newest: Option<u64>,
    only_waiting: bool,
}

impl LetterSelection {
    /// All letters, whether or not they were replayed.
    pub fn all() -> Self {
        Self::default()
    }

    /// Those that were not replayed.
    pub fn waiting() -> Self {
        Self { only_waiting: true, ..Self::default() }
    }

    /// Only what this group has given up.
    #[must_use]
    pub fn of_group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Only letters of this partition (of the topic of dead letters).
    #[must_use]
    pub fn in_partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Only the letter at this offset; of every partition, unless one is chosen.
    #[must_use]
    pub fn at_offset(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Only the last `records` records of each partition are looked at: a bound for topics with very many of them.
    #[must_use]
    pub fn newest(mut self, records: u64) -> Self {
        self.newest = Some(records);
        self
    }

    /// Records of a partition that [`Self::newest`] leaves out.
    fn left_unread(&self, span: &Span) -> u64 {
        let held = span.to.saturating_sub(span.from);
        let is_meant = self.partition.is_none_or(|only| only == span.partition);
        self.newest.filter(|_| is_meant).map_or(0, |records| held.saturating_sub(records))
    }

    fn wants(&self, letter: &Letter) -> bool {
        let by_group = self.group.as_ref().is_none_or(|group| *group == letter.story().group);
        by_group && !(self.only_waiting && letter.was_replayed())
    }

    /// What is read of a partition that holds `from` to `to`.
    fn narrowed(&self, span: Span) -> Option<Span> {
        let Span { partition, mut from, mut to } = span;
        if self.partition.is_some_and(|only| only != partition) {
            return None;
        }
        if let Some(records) = self.newest {
            from = from.max(to.saturating_sub(records));
        }
        if let Some(offset) = self.offset {
            (from, to) = (from.max(offset), to.min(offset.saturating_add(1)));
        }
        (from < to).then_some(Span { partition, from, to })
    }
}

/// Offsets of a partition: `to` is the first that is not meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) partition: u32,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// The letters of a topic, as many as there were when reading began.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use busbar_client::LetterSelection;
///
/// let mut letters = client.dead_letters("orders.dlq").read(LetterSelection::waiting()).await?;
/// while let Some(letter) = letters.next().await? {
///     println!("{:?}: {}", letter.key(), letter.story());
/// }
/// println!("{} records are no dead letters", letters.others());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Letters {
    scan: Scan,
    history: History,
    selection: LetterSelection,
    others: u64,
    unread: u64,
}

impl Letters {
    pub(super) fn new(scan: Scan, history: History, selection: LetterSelection) -> Self {
        Self { scan, history, selection, others: 0, unread: 0 }
    }

    /// The next letter, in the order of partitions and offsets; `None` after the last one. Cancel safe.
    ///
    /// # Errors
    /// The topic can't be read.
    pub async fn next(&mut self) -> Result<Option<Letter>, DeadLetterError> {
        while let Some(record) = self.scan.next().await? {
            let replayed = self.history.contains(record.partition(), record.offset());
            match Letter::new(record, replayed) {
                Some(letter) if self.selection.wants(&letter) => return Ok(Some(letter)),
                Some(_) => {}
                None => self.others += 1,
            }
        }
        Ok(None)
    }

    /// Records read so far that are no dead letters.
    pub fn others(&self) -> u64 {
        self.others
    }

    /// Older records that are not looked at, because of [`LetterSelection::newest`].
    pub fn unread(&self) -> u64 {
        self.unread
    }
}

impl DeadLetters {
    /// Reads the letters that are there now.
    ///
    /// # Errors
    /// No such topic (the broker names the closest); a partition without a leader; nobody answers.
    pub async fn read(&self, selection: LetterSelection) -> Result<Letters, DeadLetterError> {
        let history = self.history().await?;
        self.read_with(history, selection).await
    }

    /// The same, to somebody who knows what was replayed.
    pub(super) async fn read_with(
        &self,
        history: History,
        selection: LetterSelection,
    ) -> Result<Letters, DeadLetterError> {
        let (spans, _) = bounds(&self.cluster, &self.topic).await?;
        let unread = spans.iter().map(|span| selection.left_unread(span)).sum();
        let spans = spans.into_iter().filter_map(|span| selection.narrowed(span));
        let letters = Letters::new(Scan::new(&self.cluster, &self.topic, spans), history, selection);
        Ok(Letters { unread, ..letters })
    }

    /// What was replayed so far.
    async fn history(&self) -> Result<History, DeadLetterError> {
        let journal = journal::name_of(&self.topic);
        match bounds(&self.cluster, &journal).await {
            Ok((spans, _)) => {
                let (_, described) = bounds(&self.cluster, &self.topic).await?;
                history(&self.cluster, &journal, spans, id_of(&described)?).await
            }
            Err(error) if error.reason() == Some(Reason::UnknownTopic) => Ok(History::default()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The topic's id.
pub(super) fn id_of(topic: &v1::DescribeTopicResponse) -> Result<TopicId, ClientError> {
    let no_id = || ClientError::Protocol(format!("the description of topic {:?} lacks its id", topic.name));
    TopicId::from_slice(&topic.id).ok_or_else(no_id)
}

/// Reads a journal; `topic` is the id of the one of dead letters.
pub(super) async fn history(
    cluster: &Arc<Cluster>,
    journal: &str,
    spans: Vec<Span>,
    topic: TopicId,
) -> Result<History, DeadLetterError> {
    let mut scan = Scan::new(cluster, journal, spans);
    let mut history = History::default();
    while let Some(record) = scan.next().await? {
        let wrong =
            |fault: String| DeadLetterError::Journal { journal: journal.to_owned(), offset: record.offset(), fault };
        let text = std::str::from_utf8(record.value()).map_err(|error| wrong(error.to_string()))?;
        history.add(topic, record.offset(), text.parse::<Entry>().map_err(|error| wrong(error.to_string()))?);
    }
    Ok(history)
}

/// What every partition of a topic holds, as its leader says, and the topic.
pub(super) async fn bounds(
    cluster: &Arc<Cluster>,
    topic: &str,
) -> Result<(Vec<Span>, v1::DescribeTopicResponse), ClientError> {
    let deadline = cluster.env.now() + cluster.request_timeout;
    let mut backoff = Backoff::new(BackoffPolicy { base: cluster.request_timeout / 100, ..BackoffPolicy::default() });
    loop {
        let described = Admin::new(cluster.clone()).describe_topic(topic).await?;
        let Some(led_by_none) = described.partitions.iter().find(|state| state.leader == 0) else {
            let span = |state: &v1::PartitionState| Span {
                partition: state.partition,
                from: state.log_start,
                to: state.high_watermark,
            };
            return Ok((described.partitions.iter().map(span).collect(), described));
        };
        if cluster.env.now() >= deadline {
            let what = format!("find the end of partition {} of {topic:?}", led_by_none.partition);
            let last = "it has no leader; `busbar cluster status` shows leaders".to_owned();
            return Err(ClientError::Timeout { what, waited: cluster.request_timeout, last });
        }
        tokio::time::sleep(backoff.failed(cluster.env.random(), None)).await;
    }
}

/// Reads spans of a topic one after the other.
#[derive(Debug)]
pub(super) struct Scan {
    cluster: Arc<Cluster>,
    topic: String,
    spans: VecDeque<Span>,
    consumer: Option<Consumer>,
}

impl Scan {
    pub(super) fn new(cluster: &Arc<Cluster>, topic: &str, spans: impl IntoIterator<Item = Span>) -> Self {
        let spans = spans.into_iter().filter(|span| span.from < span.to).collect();
        Self { cluster: cluster.clone(), topic: topic.to_owned(), spans, consumer: None }
    }

    /// The next record; `None` after the last one. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<ConsumedRecord>, DeadLetterError> {
        while let Some(span) = self.spans.front_mut() {
            let consumer = match &mut self.consumer {
                Some(consumer) => consumer,
                None => {
                    let builder = ConsumerBuilder::new(self.cluster.clone(), self.topic.clone());
                    let builder = builder.partitions([span.partition]).from(StartAt::Offset(span.from));
                    self.consumer.insert(builder.build().await?)
                }
            };
            let waited = self.cluster.request_timeout;
            let record = match tokio::time::timeout(waited, consumer.next()).await {
                Ok(next) => next?.ok_or(ClientError::Closed)?,
                // Retention may have taken the rest.
                Err(_) if consumer.positions().get(&span.partition).is_some_and(|&next| next >= span.to) => {
                    self.end_span();
                    continue;
                }
                Err(_) => {
                    let what = format!("read partition {} of {:?} from {}", span.partition, self.topic, span.from);
                    let last = "its leader sent nothing".to_owned();
                    return Err(ClientError::Timeout { what, waited, last }.into());
                }
            };
            let is_meant = record.offset() < span.to;
            span.from = record.offset() + 1;
            if span.from >= span.to {
                self.end_span();
            }
            if is_meant {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    fn end_span(&mut self) {
        self.spans.pop_front();
        self.consumer = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_narrows_what_is_read() {
        let span = |from, to| Some(Span { partition: 3, from, to });
        let whole = Span { partition: 3, from: 10, to: 20 };
        for (selection, want) in [
            (LetterSelection::all(), span(10, 20)),
            (LetterSelection::all().in_partition(3), span(10, 20)),
            (LetterSelection::all().in_partition(2), None),
            (LetterSelection::all().newest(4), span(16, 20)),
            (LetterSelection::all().newest(40), span(10, 20)),
            (LetterSelection::all().newest(0), None),
            (LetterSelection::all().at_offset(12), span(12, 13)),
            (LetterSelection::all().at_offset(9), None),
            (LetterSelection::all().at_offset(20), None),
            (LetterSelection::all().at_offset(u64::MAX), None),
        ] {
            assert_eq!(selection.narrowed(whole), want, "{selection:?}");
        }
        assert_eq!(LetterSelection::all().newest(4).left_unread(&whole), 6);
        assert_eq!(LetterSelection::all().newest(4).in_partition(2).left_unread(&whole), 0);
        assert_eq!(LetterSelection::all().left_unread(&whole), 0);
    }
}
