//! What can be wrong with a configuration. A fault names where the value came from (file, variable or flag) and what
//! to do; all faults of one load are reported together.

use std::fmt;

use super::Config;

/// Beyond this many edits a known key is no plausible meaning of an unknown one.
const CLOSEST_EDITS_MAX: usize = 6;

/// One thing wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Fault {
    place: String,
    message: String,
}

impl Fault {
    pub(super) fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into() }
    }

    pub(super) fn unknown_key(place: &str, name: &str) -> Self {
        let closest = Config::KEYS
            .iter()
            .map(|key| (strsim::damerau_levenshtein(name, key.path), key.path))
            .min()
            .filter(|(edits, _)| *edits <= CLOSEST_EDITS_MAX);
        let advice = match closest {
            Some((_, known)) => format!("did you mean {known:?}?"),
            None => "`busbar check-config` lists the known keys".to_owned(),
        };
        Self::new(place, format!("unknown key {name:?}: {advice}"))
    }

    /// File, variable, flag or, for keys that contradict one another, the first of these keys.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What is wrong and what to do.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// Everything wrong with a configuration; at least one fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<Fault>);

impl ConfigErrors {
    pub(super) fn new(faults: Vec<Fault>) -> Self {
        assert!(!faults.is_empty(), "an error without a fault");
        Self(faults)
    }

    /// The faults, in the order in which their values were read.
    pub fn faults(&self) -> &[Fault] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => write!(f, "the configuration is wrong: {only}"),
            faults => {
                write!(f, "the configuration is wrong in {} places:", faults.len())?;
                faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
            }
        }
    }
}

impl std::error::Error for ConfigErrors {}
