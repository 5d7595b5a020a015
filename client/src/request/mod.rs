//! Request and reply over topics: a [`Requester`] publishes records that ask for a reply and hands each caller its
//! own; a [`Responder`] reads them and answers; a [`Replier`] answers what any other consumer has read.
//!
//! ```text
//!  Requester --request: correlation, reply-to, reply-partition, deadline--> topic --> Responder
//!      ^                                                                                  |
//!      '--- reads one partition, from its end <-- <topic>.replies <-- reply: correlation -'
//! ```
//! | file | owns |
//! |---|---|
//! | `headers` | the words on the wire: who asks, where the reply goes, until when (pure) |
//! | `pending` | which requests wait for a reply, and whose a reply is (pure) |
//! | `requester`, `reading` | sending, waiting, deadlines; the task that reads replies |
//! | `builder`, `reply_topic` | options of requesters and responders; finding or making the topic of replies |
//! | `report`, `error` | what became of a request |
//! | `replier` | producers of replies, one a reply topic |
//! | `responder` | consumer and replier in one |
//!
//! Never here: a reply handed to anybody but the caller of its request.

mod builder;
mod error;
mod headers;
mod pending;
mod reading;
mod replier;
mod reply_topic;
mod report;
mod requester;
mod responder;

pub use self::{
    builder::{RequesterBuilder, ResponderBuilder},
    error::{ReplyError, RequestError, ResponderError},
    replier::{Replier, ReplierStats},
    report::{RequestFate, RequestReport},
    requester::{Requester, RequesterStats},
    responder::{Request, Responder},
};
