//! How sizes, durations, addresses and nodes are written in a configuration. Invariant: what is printed reads back
//! as the same value.

use std::{fmt, time::Duration};

use super::Setting;

/// Names of powers of two first (what is printed), then of ten; longest first, so that a suffix is not cut short.
const SIZE_UNITS: [(&str, u64); 11] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("kB", 1_000),
    ("B", 1),
    ("", 1),
];

/// A number of bytes, written `64MiB`, `10GB` or `4096`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// That many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }
    /// That many MiB.
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }
    /// The bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// The bytes, for sizes of memory.
    pub const fn as_usize(self) -> usize {
        // Busbar runs on 64-bit machines only; see the assertion below.
        self.0 as usize
    }
}
const _: () = assert!(usize::BITS == 64, "byte sizes are held in a usize");

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |&(_, unit): &(&str, u64)| unit.is_power_of_two() && self.0 >= unit && self.0.is_multiple_of(unit);
        match SIZE_UNITS.into_iter().find(whole) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Setting for ByteSize {
    fn from_text(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size: write bytes or a whole number with KiB, MiB, GiB or TiB");
        let trimmed = text.trim();
        let digits = trimmed.trim_end_matches(|c: char| !c.is_ascii_digit());
        let suffix = trimmed[digits.len()..].trim_start();
        let (_, unit) = SIZE_UNITS.into_iter().find(|(name, _)| *name == suffix).ok_or_else(wrong)?;
        let count: u64 = digits.parse().map_err(|_| wrong())?;
        count.checked_mul(unit).map(Self).ok_or_else(|| format!("{text:?} is more than 2^64 bytes"))
    }

    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::String(self.to_string()))
    }
}

/// A duration in whole milliseconds, written `100ms`, `30s`, `1h 30m` or `100`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(u64);

impl Millis {
    /// That many milliseconds.
    pub const fn new(ms: u64) -> Self {
        Self(ms)
    }
    /// The milliseconds.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// As the standard library's duration.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.duration()).fmt(f)
    }
}

impl Setting for Millis {
    fn from_text(text: &str) -> Result<Self, String> {
        if let Ok(ms) = text.trim().parse() {
            return Ok(Self(ms));
        }
        let wrong = || format!("{text:?} is no duration: write milliseconds or a number with ms, s, m or h");
        let duration = humantime::parse_duration(text.trim()).map_err(|_| wrong())?;
        if duration.subsec_nanos() % 1_000_000 != 0 {
            return Err(format!("{text:?} is no whole number of milliseconds"));
        }
        duration.as_millis().try_into().map(Self).map_err(|_| wrong())
    }

    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::String(self.to_string()))
    }
}

/// `host:port`; the host is a name, an IPv4 address or an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// An address from its parts; IPv6 addresses without brackets.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }
    /// The host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }
    /// The port; 0 = any free one, for listening only.
    pub const fn port(&self) -> u16 {
        self.port
    }
    /// Whether it is "all interfaces", which nobody else can connect to.
    pub fn is_wildcard(&self) -> bool {
        self.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }
    /// Whether another process can be told to connect to it.
    pub fn is_reachable(&self) -> bool {
        self.port != 0 && !self.is_wildcard()
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl Setting for HostPort {
    fn from_text(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address: write host:port, such as 127.0.0.1:7400");
        let (host, port) = text.trim().rsplit_once(':').ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
        let sound = match bare {
            Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')),
        };
        if !sound || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        Ok(Self::new(bare.unwrap_or(host), port.parse().map_err(|_| wrong())?))
    }

    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::String(self.to_string()))
    }
}

/// A node of a cluster's first start: a table `{ id, address, peer_address }` in the file,
/// `ID=ADDRESS/PEER_ADDRESS` as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialNode {
    /// Its id, from 1.
    pub id: u64,
    /// Where clients reach it.
    pub address: HostPort,
    /// Where the other nodes reach it.
    pub peer_address: HostPort,
}

impl InitialNode {
    const FIELDS: [&str; 3] = ["id", "address", "peer_address"];
}

impl Setting for InitialNode {
    fn from_text(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no node: write ID=ADDRESS/PEER_ADDRESS");
        let (id, addresses) = text.split_once('=').ok_or_else(wrong)?;
        let (address, peer_address) = addresses.split_once('/').ok_or_else(wrong)?;
        Ok(Self {
            id: u64::from_text(id)?,
            address: HostPort::from_text(address)?,
            peer_address: HostPort::from_text(peer_address)?,
        })
    }

    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        let table = match value {
            toml::Value::Table(table) => table,
            toml::Value::String(text) => return Self::from_text(text),
            other => return Err(format!("a node is a table, not {}", other.type_str())),
        };
        if let Some(unknown) = table.keys().find(|name| !Self::FIELDS.contains(&name.as_str())) {
            return Err(format!("unknown key {unknown:?} of a node: it has {}", Self::FIELDS.join(", ")));
        }
        let field = |name: &str| table.get(name).ok_or_else(|| format!("a node lacks its {name:?}"));
        Ok(Self {
            id: u64::from_toml(field("id")?)?,
            address: HostPort::from_toml(field("address")?)?,
            peer_address: HostPort::from_toml(field("peer_address")?)?,
        })
    }

    fn to_toml(&self) -> Option<toml::Value> {
        let [id, address, peer_address] = Self::FIELDS.map(str::to_owned);
        let table = [
            (id, self.id.to_toml()?),
            (address, self.address.to_toml()?),
            (peer_address, self.peer_address.to_toml()?),
        ];
        Some(toml::Value::Table(table.into_iter().collect()))
    }
}
