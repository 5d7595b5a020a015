//! `busbar dlq list | show | replay`: what consumer groups have given up, and publishing it again. How letters are read and
//! replayed is the client's (`DeadLetters`); here is what is asked and how it is printed.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::ensure;
use busbar_client::{Letter, LetterSelection, LetterStory, ReplayReport};
use busbar_proto::{GroupName, TopicName};
use clap::Subcommand;
use serde::Serialize;

use crate::{
    connection::ServerArgs,
    output::{self, Format, OutputArgs, Table},
    record::{RecordView, line_of},
};

/// What a topic of dead letters is called unless somebody named it.
const SUFFIX: &str = ".dlq";
/// The last second that is written as a date.
const YEAR_9999_ENDS_SECS: u64 = 253_402_300_799;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the topics of dead letters: how many letters of which group, from where, how old
    List(ListArgs),
    /// Print dead letters with their story, oldest first
    Show(ShowArgs),
    /// Publish dead letters again, each once: to where they came from, or to another topic. What is cut short, also by a
    /// crash, is finished by the next replay
    Replay(ReplayArgs),
}

#[derive(clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(clap::Args)]
struct ListArgs {
    /// A topic of dead letters; may be repeated [default: those whose names end in .dlq]
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<TopicName>,
    /// Count only the last N records of each partition
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    newest: u64,
    #[command(flatten)]
    common: CommonArgs,
}

/// Which letters.
#[derive(clap::Args)]
struct SelectionArgs {
    /// The topic of dead letters
    topic: TopicName,
    /// Only what this group has given up
    #[arg(long, value_name = "GROUP")]
    group: Option<GroupName>,
    /// Only letters of this partition
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Only the letter at this offset
    #[arg(long, value_name = "N", requires = "partition")]
    offset: Option<u64>,
}

#[derive(clap::Args)]
struct ShowArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Only letters that were not replayed
    #[arg(long)]
    waiting: bool,
    /// At most so many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    count: u64,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(clap::Args)]
struct ReplayArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Publish to this topic, by key [default: the topic and partition that each letter came from]
    #[arg(long, value_name = "TOPIC")]
    to: Option<TopicName>,
    /// Also letters that were replayed before
    #[arg(long)]
    all: bool,
    /// Publish nothing; say what would be
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: CommonArgs,
}

impl SelectionArgs {
    fn narrow(&self, mut selection: LetterSelection) -> LetterSelection {
        if let Some(group) = &self.group {
            selection = selection.of_group(group.as_str());
        }
        if let Some(partition) = self.partition {
            selection = selection.in_partition(partition);
        }
        if let Some(offset) = self.offset {
            selection = selection.at_offset(offset);
        }
        selection
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::List(args) => list(args).await?,
        Command::Show(args) => show(args).await?,
        Command::Replay(args) => replay(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Topics {
    topics: Vec<TopicView>,
}

#[derive(Serialize)]
struct TopicView {
    topic: String,
    letters: u64,
    replayed: u64,
    others: u64,
    unread: u64,
    groups: Vec<GroupView>,
}

#[derive(Serialize)]
struct GroupView {
    group: String,
    topic: String,
    letters: u64,
    replayed: u64,
    oldest: i64,
    newest: i64,
}

impl GroupView {
    fn count(&mut self, letter: &Letter) {
        self.letters += 1;
        self.replayed += u64::from(letter.was_replayed());
        self.oldest = self.oldest.min(letter.timestamp_ms());
        self.newest = self.newest.max(letter.timestamp_ms());
    }
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let client = args.common.server.connect().await?;
    let names: Vec<String> = match args.topic.is_empty() {
        true => {
            let topics = client.admin().list_topics().await?.into_iter().map(|topic| topic.name);
            topics.filter(|name| name.ends_with(SUFFIX)).collect()
        }
        false => args.topic.iter().map(ToString::to_string).collect(),
    };
    let mut topics = Vec::new();
    for topic in names {
        let mut letters = client.dead_letters(&topic).read(LetterSelection::all().newest(args.newest)).await?;
        let mut groups: BTreeMap<(String, String), GroupView> = BTreeMap::new();
        while let Some(letter) = letters.next().await? {
            let LetterStory { group, topic, .. } = letter.story();
            let (oldest, newest) = (i64::MAX, i64::MIN);
            let fresh =
                || GroupView { group: group.clone(), topic: topic.clone(), letters: 0, replayed: 0, oldest, newest };
            groups.entry((group.clone(), topic.clone())).or_insert_with(fresh).count(&letter);
        }
        let groups: Vec<_> = groups.into_values().collect();
        topics.push(TopicView {
            topic,
            letters: groups.iter().map(|group| group.letters).sum(),
            replayed: groups.iter().map(|group| group.replayed).sum(),
            others: letters.others(),
            unread: letters.unread(),
            groups,
        });
    }
    args.common.output.print(&Topics { topics }, list_text)?;
    Ok(())
}

fn list_text(all: &Topics) -> String {
    let mut table = Table::new(["topic", "group", "from", "letters", "replayed", "oldest", "newest"]);
    let mut notes = String::new();
    for topic in &all.topics {
        for group in &topic.groups {
            table.row([
                topic.topic.clone(),
                group.group.clone(),
                group.topic.clone(),
                group.letters.to_string(),
                group.replayed.to_string(),
                time_text(group.oldest),
                time_text(group.newest),
            ]);
        }
        for (count, what) in [(topic.others, "are no dead letters"), (topic.unread, "older ones were not counted")] {
            if count > 0 {
                notes.push_str(&format!("\n{}: {count} records {what}", topic.topic));
            }
        }
    }
    format!("{table}{notes}")
}

#[derive(Serialize)]
struct LetterView<'a> {
    #[serde(flatten)]
    record: RecordView<'a>,
    story: StoryView<'a>,
    replayed: bool,
}

#[derive(Serialize)]
struct StoryView<'a> {
    group: &'a str,
    topic: &'a str,
    partition: u32,
    offset: u64,
    timestamp: Option<i64>,
    attempts: Option<u32>,
    reason: &'a str,
    first: Option<i64>,
    last: Option<i64>,
    left_out_bytes: Option<u64>,
}

impl<'a> LetterView<'a> {
    fn of(letter: &'a Letter) -> Self {
        let story = letter.story();
        Self {
            record: RecordView { headers: letter.own_headers().collect(), ..RecordView::of(letter) },
            story: StoryView {
                group: &story.group,
                topic: &story.topic,
                partition: story.partition,
                offset: story.offset,
                timestamp: story.timestamp_ms,
                attempts: story.attempts,
                reason: &story.reason,
                first: story.first_ms,
                last: story.last_ms,
                left_out_bytes: story.left_out_bytes,
            },
            replayed: letter.was_replayed(),
        }
    }

    /// The place, the story, the record; each line of it one line whatever is in it.
    fn text(&self, letter: &Letter) -> String {
        let StoryView { first, last, left_out_bytes, .. } = self.story;
        let replayed = if self.replayed { " (replayed)" } else { "" };
        let mut text = format!("{}{replayed}\n  {}", letter.place(), line_of(letter.story().to_string().as_bytes()));
        let mut tell = |what: &str, value: String| text.push_str(&format!("\n  {what}: {value}"));
        for (what, time) in [("first delivered", first), ("last failed", last)] {
            if let Some(time) = time {
                tell(what, time_text(time));
            }
        }
        if let Some(key) = self.record.key {
            tell("key", line_of(key));
        }
        for (name, value) in &self.record.headers {
            tell(&format!("header {}", line_of(name.as_bytes())), line_of(value));
        }
        match left_out_bytes {
            Some(bytes) => tell("value", format!("left out, as its {bytes} bytes were too many")),
            None => tell("value", self.record.line()),
        }
        text
    }
}

async fn show(args: ShowArgs) -> anyhow::Result<()> {
    let selection = if args.waiting { LetterSelection::waiting() } else { LetterSelection::all() };
    let client = args.common.server.connect().await?;
    let dead = client.dead_letters(args.selection.topic.as_str());
    let mut letters = dead.read(args.selection.narrow(selection)).await?;
    let mut shown = 0;
    while shown < args.count {
        let Some(letter) = letters.next().await? else { break };
        let view = LetterView::of(&letter);
        match args.common.output.format {
            Format::Text => output::line(view.text(&letter))?,
            Format::Json => output::json(&view)?,
        }
        shown += 1;
    }
    Ok(())
}

#[derive(Serialize)]
struct Replayed<'a> {
    topic: &'a str,
    dry_run: bool,
    replayed: u64,
    taken_up: u64,
    left_out: u64,
    others: u64,
    to: Vec<Target<'a>>,
}

#[derive(Serialize)]
struct Target<'a> {
    topic: &'a str,
    letters: u64,
}

async fn replay(args: ReplayArgs) -> anyhow::Result<()> {
    let selection = if args.all { LetterSelection::all() } else { LetterSelection::waiting() };
    let selection = args.selection.narrow(selection);
    let topic = args.selection.topic.as_str();
    let client = args.common.server.connect().await?;
    let dead = client.dead_letters(topic);
    let to = args.to.as_ref().map(ToString::to_string);
    let mut report = ReplayReport::default();
    if args.dry_run {
        let mut letters = dead.read(selection).await?;
        while let Some(letter) = letters.next().await? {
            match letter.story().left_out_bytes {
                Some(_) => report.left_out += 1,
                None => *report.to.entry(to.clone().unwrap_or_else(|| letter.story().topic.clone())).or_default() += 1,
            }
        }
        report.others = letters.others();
    } else {
        report = dead.replay(selection, to).await?;
    }
    let one = args.selection.offset;
    ensure!(
        one.is_none() || report.replayed() + report.left_out > 0,
        "there is no dead letter to replay there; `busbar dlq show` prints it, --all replays it again"
    );
    let done = Replayed {
        topic,
        dry_run: args.dry_run,
        replayed: report.replayed(),
        taken_up: report.taken_up,
        left_out: report.left_out,
        others: report.others,
        to: report.to.iter().map(|(topic, &letters)| Target { topic, letters }).collect(),
    };
    args.common.output.print(&done, replayed_text)?;
    Ok(())
}

fn replayed_text(done: &Replayed<'_>) -> String {
    let verb = if done.dry_run { "would be replayed" } else { "replayed" };
    let noun = if done.replayed == 1 { "letter" } else { "letters" };
    let mut text = format!("{} {noun} {verb}", done.replayed);
    for (place, Target { topic, letters }) in done.to.iter().enumerate() {
        text.push_str(&format!("{} {letters} to {topic}", if place == 0 { ":" } else { "," }));
    }
    for (count, what) in [
        (done.taken_up, "of them were left by a replay that was cut short"),
        (done.left_out, "can't be replayed: their values were too large to be kept"),
        (done.others, "records are no dead letters"),
    ] {
        if count > 0 {
            text.push_str(&format!("\n{count} {what}"));
        }
    }
    text
}

fn time_text(time_ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(time_ms).unwrap_or(0));
    // Later years have more digits than the format.
    let time = UNIX_EPOCH.checked_add(since).filter(|_| since.as_secs() <= YEAR_9999_ENDS_SECS);
    time.map_or_else(|| time_ms.to_string(), |time| humantime::format_rfc3339_millis(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replays_are_told_in_words() {
        let done = |to: Vec<Target<'static>>, taken_up, left_out, dry_run| {
            let replayed = to.iter().map(|target| target.letters).sum();
            replayed_text(&Replayed { topic: "t.dlq", dry_run, replayed, taken_up, left_out, others: 0, to })
        };
        let target = |topic, letters| Target { topic, letters };
        assert_eq!(done(vec![], 0, 0, false), "0 letters replayed");
        assert_eq!(done(vec![target("t", 1)], 0, 0, false), "1 letter replayed: 1 to t");
        assert_eq!(
            done(vec![target("t", 2), target("u", 1)], 0, 0, true),
            "3 letters would be replayed: 2 to t, 1 to u"
        );
        let text = done(vec![target("t", 2)], 1, 3, false);
        assert!(text.contains("\n1 of them were left by a replay") && text.contains("\n3 can't be replayed"), "{text}");
    }

    #[test]
    fn times_are_dates_as_far_as_there_are() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time_text(i64::MAX), i64::MAX.to_string());
        assert_eq!(time_text(-5), "1970-01-01T00:00:00.000Z");
    }
}
