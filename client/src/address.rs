//! Where brokers are: `host:port` as people write it. A name is resolved anew at every connect, never here.

use std::{fmt, str::FromStr};

/// Port of a broker when none is given.
pub const DEFAULT_PORT: u16 = 7400;

/// A broker's `host:port`.
///
/// ```
/// use busbar_client::Address;
///
/// let address: Address = "broker-1".parse()?;
/// assert_eq!(address.as_str(), "broker-1:7400", "the default port");
/// # Ok::<(), busbar_client::InvalidAddress>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(String);

impl Address {
    /// As `host:port`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn uri(&self) -> String {
        format!("http://{}", self.0)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no broker.
///
/// ```
/// use busbar_client::Address;
///
/// let error = "http://broker-1".parse::<Address>().unwrap_err();
/// assert!(error.to_string().contains("it has a scheme"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no broker address: {fault}; write host:port, for example 127.0.0.1:{DEFAULT_PORT}")]
pub struct InvalidAddress {
    text: String,
    fault: &'static str,
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        let invalid = |fault| InvalidAddress { text: trimmed.to_owned(), fault };
        if let Some((scheme, _)) = trimmed.split_once("://") {
            let fault = if scheme == "https" { "TLS is not supported" } else { "it has a scheme" };
            return Err(invalid(fault));
        }
        let (host, port) = match trimmed.rsplit_once(':') {
            // The last colon of a bare IPv6 address is not a port's.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
            _ => (trimmed, None),
        };
        if host.is_empty() {
            return Err(invalid("the host is missing"));
        }
        let host = match host.contains(':') && !host.starts_with('[') {
            true => format!("[{host}]"),
            false => host.to_owned(),
        };
        if host.chars().any(|c| c.is_whitespace() || matches!(c, '/' | '@' | '?' | '#' | ',')) {
            return Err(invalid("the host has an illegal character"));
        }
        match port.map_or(Ok(DEFAULT_PORT), str::parse::<u16>) {
            Ok(0) | Err(_) => Err(invalid("the port is not a number from 1 to 65535")),
            Ok(port) => Ok(Self(format!("{host}:{port}"))),
        }
    }
}

/// A comma-separated list; at least one.
pub(crate) fn parse_list(text: &str) -> Result<Vec<Address>, InvalidAddress> {
    let addresses: Vec<Address> =
        text.split(',').filter(|part| !part.trim().is_empty()).map(str::parse).collect::<Result<_, _>>()?;
    match addresses.is_empty() {
        true => Err(InvalidAddress { text: text.to_owned(), fault: "the list is empty" }),
        false => Ok(addresses),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, want) in [
            ("127.0.0.1:7400", Some("127.0.0.1:7400")),
            (" broker-1.example:80 ", Some("broker-1.example:80")),
            ("localhost", Some("localhost:7400")),
            ("[::1]:7401", Some("[::1]:7401")),
            ("::1", Some("[::1]:7400")),
            ("", None),
            (":7400", None),
            ("host:0", None),
            ("host:x", None),
            ("host:70000", None),
            ("a b:1", None),
            ("http://host:1", None),
            ("https://host:1", None),
        ] {
            let got = text.parse::<Address>();
            assert_eq!(got.as_ref().ok().map(Address::as_str), want, "{text:?}: {got:?}");
        }
    }

    #[test]
    fn lists() {
        assert_eq!(parse_list("a:1, b:2,").map(|list| list.len()), Ok(2));
        assert!(parse_list(" , ").is_err());
        assert!(parse_list("a:1,b:c").is_err());
    }
}
