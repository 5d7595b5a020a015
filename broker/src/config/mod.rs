//! A node's configuration: file, then `BUSBAR_SECTION__KEY` variables, then flags, the later winning.
//!
//! | module | owns |
//! |---|---|
//! | [`schema`] | every section and key: type, default, minimum, meaning |
//! | `key` | what a key is, and the macro that makes sections out of the schema |
//! | [`units`] | how sizes, durations, addresses and nodes are written |
//! | `validate` | what must hold between keys |
//! | [`error`] | faults, each naming where the value came from |
//!
//! Invariants: a [`Config`] that [`Config::load`] returned is valid; all faults are reported at once, and a key that
//! the schema does not know is one of them. Nothing here opens a socket or touches the data folder.

pub mod error;
mod key;
pub mod schema;
pub mod units;
mod validate;

#[cfg(test)]
mod tests;

use std::path::Path;

pub use error::{ConfigErrors, Fault};
use key::Raw;
pub use key::{Key, Setting};
pub use schema::{Cluster, Compaction, Config, Groups, Limits, Listen, Log, Node, Raft, Retention};
pub use units::{ByteSize, HostPort, InitialNode, Millis};

/// Variables with this prefix and a `__` are configuration; `BUSBAR_LOG` or `BUSBAR_SERVER` are not.
const ENV_PREFIX: &str = "BUSBAR_";

impl Config {
    /// Reads the configuration: defaults, overlaid by `file`, by the `BUSBAR_SECTION__KEY` variables of `env`, and
    /// by `flags` (`("section.key", value)`), the later winning.
    ///
    /// # Errors
    /// Every fault there is, not just the first: unreadable file, unknown key (with the closest known one), a value
    /// that is no such value or below its minimum, and keys that contradict one another.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[(String, String)],
    ) -> Result<Self, ConfigErrors> {
        let mut config = Self::default();
        let mut faults = Vec::new();
        if let Some(path) = file {
            config.read_file(path, &mut faults);
        }
        for (variable, value) in env {
            if let Some(name) = env_key(&variable) {
                config.assign(&variable, &name, &Raw::Text(value), &mut faults);
            }
        }
        for (name, value) in flags {
            config.assign(&format!("--{name}"), name, &Raw::Text(value.clone()), &mut faults);
        }
        // Contradictions of keys that were misread would be noise.
        if faults.is_empty() {
            config.validate(&mut faults);
        }
        if faults.is_empty() { Ok(config) } else { Err(ConfigErrors::new(faults)) }
    }

    /// The configuration as a file would hold it, every key written out.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for key in Self::KEYS {
            if key.section != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}[{}]\n", key.section));
                section = key.section;
            }
            match (key.get)(self) {
                Some(value) => text.push_str(&format!("{} = {value}\n", key.name)),
                None => text.push_str(&format!("# {} is not set\n", key.name)),
            }
        }
        text
    }

    fn read_file(&mut self, path: &Path, faults: &mut Vec<Fault>) {
        let place = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return faults.push(Fault::new(&place, format!("can't be read: {error}"))),
        };
        let table = match text.parse::<toml::Table>() {
            Ok(table) => table,
            Err(error) => {
                return faults.push(Fault::new(&place, format!("is no TOML: {}", error.to_string().trim_end())));
            }
        };
        for (section, value) in table {
            match value {
                toml::Value::Table(keys) => {
                    for (name, value) in keys {
                        self.assign(&place, &format!("{section}.{name}"), &Raw::Toml(value), faults);
                    }
                }
                _ => faults.push(Fault::unknown_key(&place, &section)),
            }
        }
    }

    fn assign(&mut self, place: &str, name: &str, raw: &Raw, faults: &mut Vec<Fault>) {
        let Some(key) = Self::KEYS.iter().find(|key| key.path == name) else {
            return faults.push(Fault::unknown_key(place, name));
        };
        if let Err(message) = (key.set)(self, raw) {
            faults.push(Fault::new(place, format!("{}: {message}", key.path)));
        }
    }
}

/// `BUSBAR_LOG__SEGMENT_BYTES` names `log.segment_bytes`; other variables name nothing.
fn env_key(variable: &str) -> Option<String> {
    let (section, key) = variable.strip_prefix(ENV_PREFIX)?.split_once("__")?;
    Some(format!("{section}.{key}").to_ascii_lowercase())
}
