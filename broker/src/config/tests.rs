//! Loading: precedence, every kind of fault, and that what is printed reads back.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

/// Loads `file` (TOML text), variables and flags; the faults as `place: message`.
fn load(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    std::fs::write(&path, file).unwrap();
    let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    Config::load(Some(&path), owned(env).into_iter(), &owned(flags)).map_err(|errors| {
        let strip = folder.path().display().to_string() + "/";
        errors.faults().iter().map(|fault| fault.to_string().replace(&strip, "")).collect()
    })
}

#[test]
fn the_default_is_valid_and_is_what_an_empty_file_gives() {
    assert_eq!(load("", &[], &[]), Ok(Config::default()));
}

#[test]
fn flags_win_over_variables_over_the_file() {
    let file = "[log]\nsegment_bytes = '32MiB'\ntail_cache_bytes = 16777216\njournal_files_max = 4";
    let env = [("BUSBAR_LOG__SEGMENT_BYTES", "48MiB"), ("BUSBAR_LOG__TAIL_CACHE_BYTES", "24MiB")];
    let config = load(file, &env, &[("log.segment_bytes", "64MiB")]).unwrap();
    assert_eq!(config.log.segment_bytes, ByteSize::mib(64));
    assert_eq!(config.log.tail_cache_bytes, ByteSize::mib(24));
    assert_eq!(config.log.journal_files_max, 4);
}

#[test]
fn other_variables_are_left_alone() {
    let env = [("BUSBAR_LOG", "debug"), ("BUSBAR_SERVER", "x"), ("PATH", "/bin"), ("OTHER__KEY", "1")];
    assert_eq!(load("", &env, &[]), Ok(Config::default()));
}

#[test]
fn nodes_are_read_from_tables_and_from_text() {
    let file = "[node]\nid = 2\n[[cluster.initial_nodes]]\nid = 1\naddress = 'a:1'\npeer_address = 'a:2'\n\
                [[cluster.initial_nodes]]\nid = 2\naddress = 'b:1'\npeer_address = '[::1]:2'";
    let from_file = load(file, &[], &[]).unwrap();
    let text = [("cluster.initial_nodes", "1=a:1/a:2, 2=b:1/[::1]:2"), ("node.id", "2")];
    assert_eq!(load("", &[], &text).unwrap(), from_file);
    assert_eq!(from_file.cluster.initial_nodes[1].peer_address, HostPort::new("::1", 2));
}

const NODES: &str = "[[cluster.initial_nodes]]\nid = 1\naddress = 'a:1'\npeer_address = 'a:2'\n";

/// File, variable, flag, and how the one fault that comes of it begins.
type Fault = (&'static str, Option<(&'static str, &'static str)>, Option<(&'static str, &'static str)>, &'static str);

const FAULTS: &[Fault] = &[
    (
        "[log]\nsegment_byts = 1",
        None,
        None,
        "node.toml: unknown key \"log.segment_byts\": did you mean \"log.segment_bytes\"?",
    ),
    (
        "[lgo]\nsegment_bytes = 1",
        None,
        None,
        "node.toml: unknown key \"lgo.segment_bytes\": did you mean \"log.segment_bytes\"?",
    ),
    (
        "zzzzzzzzzzzz = 1",
        None,
        None,
        "node.toml: unknown key \"zzzzzzzzzzzz\": `busbar check-config` lists the known keys",
    ),
    ("[log", None, None, "node.toml: is no TOML: TOML parse error at line 1"),
    (
        "",
        Some(("BUSBAR_LOG__SEGMENTBYTES", "1")),
        None,
        "BUSBAR_LOG__SEGMENTBYTES: unknown key \"log.segmentbytes\": did you mean \"log.segment_bytes\"?",
    ),
    (
        "",
        None,
        Some(("raft.heartbeat", "1")),
        "--raft.heartbeat: unknown key \"raft.heartbeat\": did you mean \"raft.heartbeat_ms\"?",
    ),
    (
        "[log]\nsegment_bytes = '1MB'",
        None,
        None,
        "node.toml: log.segment_bytes: 1000000B is too small: the minimum is 1MiB",
    ),
    ("[log]\nsegment_bytes = '1 parsec'", None, None, "node.toml: log.segment_bytes: \"1 parsec\" is no size"),
    ("[log]\nsegment_bytes = -1", None, None, "node.toml: log.segment_bytes: \"-1\" is no size"),
    ("[log]\nsegment_bytes = [1]", None, None, "node.toml: log.segment_bytes: a plain value is expected, not array"),
    (
        "",
        None,
        Some(("log.segment_bytes", "99999999999999TiB")),
        "--log.segment_bytes: log.segment_bytes: \"99999999999999TiB\" is more than 2^64 bytes",
    ),
    (
        "[raft]\nheartbeat_ms = '1 fortnight'",
        None,
        None,
        "node.toml: raft.heartbeat_ms: \"1 fortnight\" is no duration",
    ),
    ("[raft]\nheartbeat_ms = '1.5ms'", None, None, "node.toml: raft.heartbeat_ms: \"1.5ms\" is no"),
    ("[log]\ndirect_io = 'yes'", None, None, "node.toml: log.direct_io: \"yes\" is neither true nor false"),
    ("[listen]\naddress = '7400'", None, None, "node.toml: listen.address: \"7400\" is no address"),
    ("[listen]\naddress = 'a:b:1'", None, None, "node.toml: listen.address: \"a:b:1\" is no address"),
    ("[listen]\naddress = 'a:70000'", None, None, "node.toml: listen.address: \"a:70000\" is no address"),
    (
        "[[cluster.initial_nodes]]\nid = 1\nadress = 'a:1'",
        None,
        None,
        "node.toml: cluster.initial_nodes: unknown key \"adress\" of a node",
    ),
    (
        "[[cluster.initial_nodes]]\nid = 1\naddress = 'a:1'",
        None,
        None,
        "node.toml: cluster.initial_nodes: a node lacks its \"peer_address\"",
    ),
    (NODES, None, None, "node.id: is needed with cluster.initial_nodes"),
    (NODES, None, Some(("node.id", "7")), "node.id: 7 is not among cluster.initial_nodes (1)"),
    ("", None, Some(("node.id", "0")), "node.id: 0 means \"no node\""),
    ("", None, Some(("cluster.name", "a b")), "cluster.name: \"a b\" is no cluster name"),
    (
        "",
        None,
        Some(("listen.address", "0.0.0.0:7400")),
        "listen.advertise: is needed: others can't connect to 0.0.0.0",
    ),
    ("", None, Some(("listen.advertise_peer", "a:0")), "listen.advertise_peer: a:0 can't be connected to"),
    (
        "",
        None,
        Some(("listen.peer_address", "127.0.0.1:7400")),
        "listen.peer_address: is 127.0.0.1:7400, as listen.address",
    ),
    ("", None, Some(("cluster.join", "a:1,b:0")), "cluster.join: b:0 can't be connected to"),
    (
        "",
        None,
        Some(("raft.heartbeat_ms", "200ms")),
        "raft.election_min_ms: 400ms must be at least 3 times raft.heartbeat_ms (200ms)",
    ),
    (
        "",
        None,
        Some(("raft.election_max_ms", "400")),
        "raft.election_max_ms: 400ms must be more than raft.election_min_ms (400ms)",
    ),
    (
        "",
        None,
        Some(("limits.partition_in_flight_bytes", "1GiB")),
        "limits.partition_in_flight_bytes: 1GiB is more than",
    ),
];

#[test]
fn each_fault_names_its_place_and_the_way_out() {
    for (file, env, flags, want) in FAULTS {
        let faults = load(file, env.as_slice(), flags.as_slice()).unwrap_err();
        assert!(faults.len() == 1 && faults[0].starts_with(want), "want {want:?}, got {faults:?}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let errors = Config::load(Some(Path::new("no/such.toml")), std::iter::empty(), &[]).unwrap_err();
    assert!(errors.to_string().starts_with("the configuration is wrong: no/such.toml: can't be read: "), "{errors}");
}

#[test]
fn all_faults_are_reported_at_once() {
    let faults = load("[log]\nx = 1\ndirect_io = 7", &[("BUSBAR_A__B", "1")], &[("node.id", "one")]).unwrap_err();
    assert_eq!(faults.len(), 4, "{faults:?}");
    let flags = [("node.id", "0"), ("cluster.name", ""), ("raft.election_max_ms", "60")];
    assert_eq!(load("", &[], &flags).unwrap_err().len(), 3);
}

#[test]
fn empty_text_unsets() {
    let config =
        load("[listen]\nadvertise = 'a:1'\n[node]\nid = 3", &[("BUSBAR_LISTEN__ADVERTISE", "")], &[("node.id", "")]);
    assert_eq!(config, Ok(Config::default()));
}

#[test]
fn what_is_printed_reads_back() {
    let mut config = Config::default();
    config.node.id = Some(u64::MAX);
    config.node.data_dir = PathBuf::from("a \"b\"\\c");
    config.cluster.join = vec![HostPort::new("h", 1), HostPort::new("::1", 2)];
    config.log.segment_bytes = ByteSize::new(ByteSize::mib(16).get() + 1);
    config.raft.election_max_ms = Millis::new(90_001);
    assert_eq!(load(&config.to_toml(), &[], &[]), Ok(config));
}

#[test]
fn every_key_says_what_it_means_and_its_default_is_allowed() {
    for key in Config::KEYS {
        assert!(key.meaning_line().ends_with('.'), "{}: a meaning is a sentence", key.path);
        assert_eq!((key.default)(), (key.get)(&Config::default()), "{}", key.path);
        if let Some(default) = (key.default)() {
            assert_eq!(
                (key.set)(&mut Config::default(), &Raw::Toml(default)),
                Ok(()),
                "{}: its default is refused",
                key.path
            );
        }
    }
}

/// The table of `docs/OPERATIONS.md` is made from the schema; the failing test prints what belongs there.
#[test]
fn operations_md_lists_every_key() {
    let page = include_str!("../../../docs/OPERATIONS.md");
    let show = |value: Option<toml::Value>| value.map_or_else(|| "-".to_owned(), |value| format!("`{value}`"));
    let row = |key: &Key| {
        format!("| `{}` | {} | {} | {} |\n", key.path, show((key.default)()), show((key.minimum)()), key.meaning_line())
    };
    let rows: String = Config::KEYS.iter().map(row).collect();
    assert!(page.contains(&rows), "docs/OPERATIONS.md must hold these rows:\n{rows}");
}

proptest! {
    #[test]
    fn sizes_and_durations_round_trip(number: u64) {
        let size = ByteSize::new(number);
        prop_assert_eq!(ByteSize::from_text(&size.to_string()), Ok(size));
        let millis = Millis::new(number / 1000);
        prop_assert_eq!(Millis::from_text(&millis.to_string()), Ok(millis));
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,24}") {
        let _ = (ByteSize::from_text(&text), Millis::from_text(&text), HostPort::from_text(&text), InitialNode::from_text(&text));
    }
}
