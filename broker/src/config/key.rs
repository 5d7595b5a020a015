//! What a configuration key is, and the macro that makes sections, defaults and the list of keys out of one schema,
//! so that a key can't exist without its meaning, default and minimum.

use std::{fmt, path::PathBuf};

use super::Config;

/// One key of the configuration, for help texts, documentation and loading.
#[derive(Debug)]
pub struct Key {
    /// The section it is in.
    pub section: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// `section.name`, as flags and faults name it.
    pub path: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// The default as a file would hold it; `None` = not set.
    pub default: fn() -> Option<toml::Value>,
    /// The least value allowed; `None` = no least value.
    pub minimum: fn() -> Option<toml::Value>,
    /// The value in a configuration as a file would hold it; `None` = not set.
    pub get: fn(&Config) -> Option<toml::Value>,
    pub(super) set: fn(&mut Config, &Raw) -> Result<(), String>,
}

impl Key {
    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("{}{}__{}", super::ENV_PREFIX, self.section, self.name).to_ascii_uppercase()
    }

    /// What it means, on one line.
    pub fn meaning_line(&self) -> String {
        self.meaning.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// A value before it is understood.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    /// From the file.
    Toml(toml::Value),
    /// From a variable or a flag.
    Text(String),
}

/// A type that a key can have.
pub trait Setting: Sized {
    /// From a variable or a flag; the error says what is wrong and what is expected.
    ///
    /// # Errors
    /// What is expected, in words.
    fn from_text(text: &str) -> Result<Self, String>;

    /// From the file; a plain value means the same as its text.
    ///
    /// # Errors
    /// What is expected, in words.
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::String(text) => Self::from_text(text),
            toml::Value::Integer(number) => Self::from_text(&number.to_string()),
            toml::Value::Boolean(truth) => Self::from_text(&truth.to_string()),
            other => Err(format!("a plain value is expected, not {}", other.type_str())),
        }
    }

    /// As the file would hold it; `None` = not set.
    fn to_toml(&self) -> Option<toml::Value>;
}

pub(super) fn read<T: Setting>(raw: &Raw) -> Result<T, String> {
    match raw {
        Raw::Toml(value) => T::from_toml(value),
        Raw::Text(text) => T::from_text(text),
    }
}

pub(super) fn read_at_least<T: Setting + PartialOrd + fmt::Display>(raw: &Raw, minimum: &T) -> Result<T, String> {
    let value: T = read(raw)?;
    if value < *minimum {
        return Err(format!("{value} is too small: the minimum is {minimum}"));
    }
    Ok(value)
}

macro_rules! whole_number {
    ($($number:ty),*) => {$(
        impl Setting for $number {
            fn from_text(text: &str) -> Result<Self, String> {
                text.trim().parse().map_err(|_| format!("{text:?} is no whole number from 0 to {}", Self::MAX))
            }

            fn to_toml(&self) -> Option<toml::Value> {
                // TOML's integers are signed; what is larger is written as text, which reads the same.
                Some(i64::try_from(*self).map_or_else(|_| toml::Value::String(self.to_string()), toml::Value::Integer))
            }
        }
    )*};
}
whole_number!(u32, u64);

impl Setting for bool {
    fn from_text(text: &str) -> Result<Self, String> {
        text.trim().parse().map_err(|_| format!("{text:?} is neither true nor false"))
    }

    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::Boolean(*self))
    }
}

impl Setting for String {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::String(self.clone()))
    }
}

impl Setting for PathBuf {
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("a path is expected, not nothing".to_owned()) } else { Ok(Self::from(text)) }
    }

    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::String(self.display().to_string()))
    }
}

/// Empty text unsets.
impl<T: Setting> Setting for Option<T> {
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(None) } else { T::from_text(text).map(Some) }
    }

    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        if value.as_str() == Some("") { Ok(None) } else { T::from_toml(value).map(Some) }
    }

    fn to_toml(&self) -> Option<toml::Value> {
        self.as_ref().and_then(Setting::to_toml)
    }
}

/// A list: an array in the file, comma-separated as text.
impl<T: Setting> Setting for Vec<T> {
    fn from_text(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(T::from_text).collect()
    }

    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Array(items) => items.iter().map(T::from_toml).collect(),
            toml::Value::String(text) => Self::from_text(text),
            other => Err(format!("a list is expected, not {}", other.type_str())),
        }
    }

    fn to_toml(&self) -> Option<toml::Value> {
        Some(toml::Value::Array(self.iter().filter_map(Setting::to_toml).collect()))
    }
}

/// Makes [`Config`], one struct per section, their defaults and [`Config::KEYS`] out of the schema:
/// `section: Struct { key: Type = default, min least; }`.
macro_rules! schema {
    ($(
        $(#[$section_doc:meta])*
        $section:ident: $Section:ident {
            $($(#[doc = $doc:literal])* $key:ident: $Type:ty = $default:expr $(, min $minimum:expr)?;)*
        }
    )*) => {
        /// A node's configuration; see `docs/OPERATIONS.md`. What [`Config::load`] returns is valid.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Config {
            $($(#[$section_doc])* pub $section: $Section,)*
        }

        $(
            $(#[$section_doc])*
            #[derive(Clone, Debug, PartialEq, Eq)]
            pub struct $Section {
                $($(#[doc = $doc])* pub $key: $Type,)*
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $($key: $default,)* }
                }
            }
        )*

        impl Config {
            /// Every key there is, section by section.
            pub const KEYS: &[$crate::config::Key] = &[$($(
                $crate::config::Key {
                    section: stringify!($section),
                    name: stringify!($key),
                    path: concat!(stringify!($section), ".", stringify!($key)),
                    meaning: concat!($($doc, "\n",)*),
                    default: || { let value: $Type = $default; $crate::config::Setting::to_toml(&value) },
                    minimum: || schema!(@minimum $Type $(, $minimum)?),
                    get: |config| $crate::config::Setting::to_toml(&config.$section.$key),
                    set: |config, raw| {
                        config.$section.$key = schema!(@read raw $(, $minimum)?);
                        Ok(())
                    },
                },
            )*)*];
        }
    };
    (@minimum $Type:ty) => { None };
    (@minimum $Type:ty, $minimum:expr) => {{ let value: $Type = $minimum; $crate::config::Setting::to_toml(&value) }};
    (@read $raw:ident) => { $crate::config::key::read($raw)? };
    (@read $raw:ident, $minimum:expr) => { $crate::config::key::read_at_least($raw, &$minimum)? };
}
pub(super) use schema;
