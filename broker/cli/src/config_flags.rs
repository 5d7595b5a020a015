//! The flags that make a node's configuration (`--config`, one flag per key, `--set`, `--join`), and `busbar
//! check-config`. The flags come from the broker's list of keys, so that none can be missing here.

use std::{path::PathBuf, process::ExitCode};

use busbar_broker::config::{Config, ConfigErrors, Key};
use clap::{Arg, ArgMatches, Command, FromArgMatches};

use crate::output;

const JOIN_KEY: &str = "cluster.join";

/// Where a node's configuration comes from.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set a key, as the flag of its name does
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Join a running cluster: short for --cluster.join
    #[arg(long, value_name = "PEER_ADDRESS,..")]
    join: Option<String>,
    #[command(flatten)]
    keys: KeyFlags,
}

impl ConfigArgs {
    /// The configuration that these flags, the file they name and the environment make.
    pub(crate) fn load(&self) -> Result<Config, ConfigErrors> {
        let join = self.join.iter().map(|addresses| (JOIN_KEY.to_owned(), addresses.clone()));
        let flags: Vec<_> = self.set.iter().cloned().chain(join).chain(self.keys.0.iter().cloned()).collect();
        // A variable that is no UTF-8 can't be one of ours.
        let env =
            std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        Config::load(self.config.as_deref(), env, &flags)
    }
}

#[derive(clap::Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// `busbar check-config`: the effective configuration as a file would hold it, or every fault.
pub(crate) fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    output::line(args.config.load()?.to_toml().trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// `--section.key VALUE` for each key of the configuration; values are checked with the rest of it.
#[derive(Debug, Default)]
struct KeyFlags(Vec<(String, String)>);

impl clap::Args for KeyFlags {
    fn augment_args(command: Command) -> Command {
        Config::KEYS.iter().fold(command, |command, key| {
            let mut help = key.meaning_line();
            if let Some(default) = (key.default)() {
                help.push_str(&format!(" [default: {}]", default.to_string().trim_matches('"')));
            }
            command.arg(
                Arg::new(key.path)
                    .long(key.path)
                    .value_name("VALUE")
                    .allow_hyphen_values(true)
                    .hide_short_help(true)
                    .help_heading("Configuration keys (also BUSBAR_SECTION__KEY variables)")
                    .help(help),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for KeyFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |key: &Key| Some((key.path.to_owned(), matches.get_one::<String>(key.path)?.clone()));
        Ok(Self(Config::KEYS.iter().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write SECTION.KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        config: ConfigArgs,
    }

    fn parse(flags: &[&str]) -> ConfigArgs {
        Line::try_parse_from([&["busbar"], flags].concat()).unwrap().config
    }

    #[test]
    fn every_key_is_a_flag() {
        for key in Config::KEYS {
            let flags = parse(&[&format!("--{}", key.path), "x"]).keys.0;
            assert_eq!(flags, [(key.path.to_owned(), "x".to_owned())]);
        }
    }

    #[test]
    fn flags_set_and_join_reach_the_configuration() {
        let args = parse(&["--set", "node.id=7", "--log.direct_io", "false", "--join", "a:1,b:2"]);
        let config = args.load().unwrap();
        assert_eq!(config.node.id, Some(7));
        assert!(!config.log.direct_io);
        assert_eq!(config.cluster.join.len(), 2);
    }

    #[test]
    fn a_misspelt_flag_is_a_usage_error() {
        let error = Line::try_parse_from(["busbar", "--log.direct_oi", "1"]).err().unwrap().to_string();
        assert!(error.contains("--log.direct_io"), "{error}");
    }
}
