//! Who may know whom. Two tables: words and paths that belong to certain folders only, and the broker's modules
//! from the bottom up. Only code that ships is looked at; tests may reach across.

use crate::source::{Source, Token, Violation, tokens, used_paths};

/// Words or paths, where nothing but the folders named may use them.
struct Rule {
    /// A word (`tonic`) or a path (`Instant::now`).
    names: &'static [&'static str],
    /// Where the rule holds: prefixes of paths.
    within: &'static [&'static str],
    /// Where it does not: prefixes of paths.
    except: &'static [&'static str],
    /// Shown with the violation.
    why: &'static str,
}

/// Everything that ships.
const PRODUCT: &[&str] = &["proto/", "broker/", "client/", "benches/"];

const RULES: &[Rule] = &[
    Rule {
        names: &["rocksdb"],
        within: PRODUCT,
        except: &["broker/src/env/rocks"],
        why: "the state store is a seam: only its real form knows RocksDB",
    },
    Rule {
        names: &["openraft", "openraft_rt_tokio"],
        within: PRODUCT,
        except: &["broker/src/raft/"],
        why: "only the raft adapter knows openraft, so that it can be replaced",
    },
    Rule {
        names: &["tonic"],
        within: PRODUCT,
        except: &["proto/", "client/", "broker/src/listener/", "broker/src/raft/network/"],
        why: "gRPC ends at the listeners and at the peer links",
    },
    Rule {
        names: &["busbar_proto", "busbar_machine", "busbar_broker", "busbar_client"],
        within: &["broker/storage/src/"],
        except: &[],
        why: "the log engine knows a group id, an index, a term and bytes",
    },
    Rule {
        names: &[
            "tokio",
            "Instant",
            "SystemTime",
            "fs",
            "thread",
            "rand",
            "HashMap",
            "HashSet",
            "busbar_storage",
            "busbar_broker",
        ],
        within: &["broker/machine/src/"],
        except: &[],
        why: "a state machine gives the same effects on every node: no clock, no I/O, no randomness, no order by hash",
    },
    Rule {
        names: &["busbar_broker", "busbar_storage", "busbar_machine"],
        within: &["client/", "proto/"],
        except: &[],
        why: "clients share the contracts with the broker and nothing else",
    },
    Rule {
        names: &["tokio::spawn", "task::spawn", "tokio::task::spawn"],
        within: &["broker/src/", "broker/storage/src/", "broker/machine/src/"],
        except: &["broker/src/env/task.rs"],
        why: "a task has a kind and is waited for at shutdown: spawn it through env::task",
    },
    Rule {
        names: &["Instant::now", "SystemTime::now"],
        within: &["broker/src/"],
        except: &["broker/src/env/"],
        why: "time comes from the clock handed in, so that a simulation can own it",
    },
    Rule {
        names: &["thread::sleep"],
        within: &["proto/src/", "broker/", "client/src/", "benches/src/", "tests/src/"],
        except: &[],
        why: "wait for the event, with a deadline",
    },
    Rule {
        names: &["unbounded_channel", "mpsc::unbounded"],
        within: PRODUCT,
        except: &[],
        why: "every queue has a limit",
    },
];

/// The broker's own modules, lowest layer first. A module may use its own layer and those before it.
const BROKER_LAYERS: &[&[&str]] = &[
    &["channel", "env", "config", "folder", "telemetry"],
    &["raft"],
    &["partition", "groups", "cluster", "catalog"],
    &["service"],
    &["listener"],
    &["node"],
];

/// Uses of a word outside the folders that it belongs to.
pub(crate) fn misplaced_words(source: &Source) -> Vec<Violation> {
    let applies = |rule: &&Rule| {
        rule.within.iter().any(|folder| source.is_under(folder))
            && !rule.except.iter().any(|folder| source.is_under(folder))
    };
    let rules: Vec<_> = RULES.iter().filter(applies).collect();
    let code = source.shipped();
    let tokens = tokens(&code);
    let used = used_paths(&tokens);
    let mut found = Vec::new();
    for rule in rules {
        for name in rule.names {
            let lines = lines_naming(name, &tokens, &used);
            found.extend(lines.into_iter().map(|line| source.violation(line, format!("{name}: {}", rule.why))));
        }
    }
    found
}

/// Lines on which `name` occurs as written, or is brought in by a `use` tree.
fn lines_naming(name: &str, tokens: &[Token<'_>], used: &[(String, usize)]) -> Vec<usize> {
    let mut wanted = Vec::new();
    for word in name.split("::") {
        wanted.extend((!wanted.is_empty()).then_some("::"));
        wanted.push(word);
    }
    let spelt = tokens.windows(wanted.len()).filter(|window| window.iter().map(|t| t.text).eq(wanted.iter().copied()));
    let imported = used.iter().filter(|(path, _)| wanted.len() > 1 && path == name).map(|(_, line)| *line);
    let mut lines: Vec<_> = spelt.map(|window| window[0].line).chain(imported).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// Uses of a broker module by one of a lower layer, and modules without a layer.
pub(crate) fn upward_paths(source: &Source) -> Vec<Violation> {
    let Some(own) = source.path.strip_prefix("broker/src/").and_then(|path| path.split(['/', '.']).next()) else {
        return Vec::new();
    };
    if own == "lib" {
        return Vec::new();
    }
    let layer_of = |module: &str| BROKER_LAYERS.iter().position(|layer| layer.contains(&module));
    let Some(own_layer) = layer_of(own) else {
        return vec![
            source.violation(1, format!("module {own} has no layer yet: give it one in tests/tests/tidy/layers.rs")),
        ];
    };
    let code = source.shipped();
    let named = crate_modules(&tokens(&code)).into_iter();
    let upward = named.filter(|(module, _)| layer_of(module).is_some_and(|layer| layer > own_layer));
    upward
        .map(|(module, line)| source.violation(line, format!("{own} must not know {module}, a layer above it")))
        .collect()
}

/// Top modules of the own crate that code names, with the line.
fn crate_modules(tokens: &[Token<'_>]) -> Vec<(String, usize)> {
    let spelt = tokens.windows(3).filter(|window| window[0].text == "crate" && window[1].text == "::");
    let spelt = spelt.map(|window| (window[2].text.to_owned(), window[2].line)).filter(|(word, _)| word != "{");
    let imported = used_paths(tokens).into_iter();
    let imported =
        imported.filter_map(|(path, line)| Some((path.strip_prefix("crate::")?.split("::").next()?.to_owned(), line)));
    let mut found: Vec<_> = spelt.chain(imported).collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misplaced_words_are_found() {
        for (path, code, count) in [
            ("broker/src/partition/replica.rs", "use rocksdb::DB;", 1),
            ("broker/src/env/rocks.rs", "use rocksdb::DB;", 0),
            ("broker/src/env/clock.rs", "type D = rocksdb::DB;", 1),
            ("broker/src/service/produce.rs", "use openraft::Raft;", 1),
            ("broker/src/raft/types.rs", "use openraft::Raft;", 0),
            ("broker/src/raft/group.rs", "fn f() -> tonic::Status {}", 1),
            ("broker/src/raft/network/link.rs", "use tonic::Status;", 0),
            ("client/src/pool.rs", "use tonic::Status;", 0),
            ("client/src/pool.rs", "use {a, busbar_broker::Node};", 1),
            ("broker/storage/src/group.rs", "use busbar_proto::Term;", 1),
            ("broker/storage/src/group.rs", "// busbar_proto\nlet a = \"busbar_proto\";", 0),
            ("broker/machine/src/a.rs", "use std::{collections::HashMap, time::Instant};", 2),
            ("broker/machine/src/a.rs", "use std::{collections::BTreeMap, time::Duration};", 0),
            ("broker/src/raft/group.rs", "tokio::spawn(async {});", 1),
            ("broker/src/raft/group.rs", "use tokio::{sync, spawn};", 1),
            ("broker/src/raft/group.rs", "use tokio::task; task::spawn(f);", 1),
            ("broker/src/env/task.rs", "tokio::spawn(async {});", 0),
            ("broker/src/raft/group.rs", "#[cfg(test)]\nmod t { fn f() { tokio::spawn(g()); } }", 0),
            ("broker/src/raft/group.rs", "let a = std::time::Instant::now();", 1),
            ("broker/src/env/clock.rs", "Instant::now()", 0),
            ("client/src/retry.rs", "std::thread::sleep(d)", 1),
            ("client/src/retry.rs", "tokio::time::sleep(d)", 0),
            ("broker/src/raft/group.rs", "use tokio::sync::mpsc::unbounded_channel;", 1),
        ] {
            let found = misplaced_words(&Source::new(path, code));
            assert_eq!(found.len(), count, "{path}: {code}: {found:?}");
        }
    }

    #[test]
    fn upward_paths_are_found() {
        for (path, code, count) in [
            ("broker/src/raft/group.rs", "use crate::{env::Clock, partition::Replica};", 1),
            ("broker/src/raft/group.rs", "fn f(a: crate::node::Node) {}", 1),
            ("broker/src/partition/replica.rs", "use crate::raft::Group;", 0),
            ("broker/src/partition/replica.rs", "use crate::cluster::Catalog;", 0),
            ("broker/src/node.rs", "use crate::{env, raft, service::*, listener::grpc};", 0),
            ("broker/src/lib.rs", "pub use crate::node::Node;", 0),
            ("broker/src/attic/dust.rs", "", 1),
            ("client/src/pool.rs", "use crate::node;", 0),
        ] {
            let found = upward_paths(&Source::new(path, code));
            assert_eq!(found.len(), count, "{path}: {code}: {found:?}");
        }
    }
}
