//! Dead letters after the fact: reading what groups have given up, with its story, and replaying it to where it came from.
//!
//! | file | owns |
//! |---|---|
//! | `letter` | one letter and its story |
//! | `reading` | letters of a topic, as many as there are now |
//! | `journal` | what was replayed (pure) |
//! | `replay` | publishing again, each letter once |
//! | `error` | what can go wrong |

mod error;
mod journal;
mod letter;
mod reading;
mod replay;

use std::sync::Arc;

pub use self::{
    error::DeadLetterError,
    letter::{Letter, LetterStory},
    reading::{LetterSelection, Letters},
    replay::ReplayReport,
};
use crate::cluster::Cluster;

/// A topic of dead letters, such as `orders.dlq`.
///
/// ```no_run
/// # async fn example(client: busbar_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use busbar_client::LetterSelection;
///
/// let dead = client.dead_letters("orders.dlq");
/// let mut letters = dead.read(LetterSelection::all().of_group("billing")).await?;
/// while let Some(letter) = letters.next().await? {
///     println!("{}: {}", letter.place(), letter.story());
/// }
/// let report = dead.replay(LetterSelection::waiting().of_group("billing"), None).await?;
/// println!("{} letters are back at their origin", report.replayed());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct DeadLetters {
    cluster: Arc<Cluster>,
    topic: String,
}

impl DeadLetters {
    pub(crate) fn new(cluster: Arc<Cluster>, topic: String) -> Self {
        Self { cluster, topic }
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }
}
