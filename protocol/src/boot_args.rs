//! The kernel command line by which the server tells the agent where it is.
//!
//! Words of ours begin with `netboot.`; all others belong to the kernel and are left alone. Where no server is
//! named (a unified kernel image is the same for all networks), the agent asks for it by DHCP
//! ([`AGENT_CLASS`](crate::dhcp::AGENT_CLASS)).
//!
//! | word | meaning |
//! | --- | --- |
//! | `netboot.server=http://10.0.0.1:8080` | the server that booted the machine |
//! | `netboot.mac=52:54:00:12:34:56` | the Ethernet address it booted from |

use std::fmt;

/// A boot argument that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootArgsError {
    /// The server's address is not one.
    #[error("boot argument netboot.server is `{found}` (expected http://ADDRESS:PORT)")]
    Server {
        /// What was there.
        found: String,
    },
    /// The Ethernet address is not one.
    #[error("boot argument netboot.mac is `{found}` (expected six hexadecimal pairs with colons)")]
    Mac {
        /// What was there.
        found: String,
    },
    /// A word of ours that is not known.
    #[error("boot argument `{found}` is not known to this agent")]
    Unknown {
        /// The word.
        found: String,
    },
}

/// What the command line says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BootArgs {
    /// The server's base URL without a slash at the end.
    pub server: Option<String>,
    /// Lower case with colons.
    pub mac: Option<String>,
}

impl BootArgs {
    /// Reads a kernel command line.
    ///
    /// # Errors
    /// The first of our words that cannot be used; a restore must not go to a guessed server.
    pub fn parse(line: &str) -> Result<Self, BootArgsError> {
        let mut args = Self::default();
        for word in line.split_ascii_whitespace() {
            let Some(ours) = word.strip_prefix("netboot.") else {
                continue;
            };
            match ours.split_once('=') {
                Some(("server", url)) => {
                    let url = url.trim_end_matches('/');
                    if !is_server(url) {
                        return Err(BootArgsError::Server { found: url.into() });
                    }
                    args.server = Some(url.into());
                }
                Some(("mac", mac)) => args.mac = Some(parse_mac(mac)?),
                _ => return Err(BootArgsError::Unknown { found: word.into() }),
            }
        }
        Ok(args)
    }
}

impl fmt::Display for BootArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [("server", &self.server), ("mac", &self.mac)];
        let mut first = true;
        for (name, value) in words {
            if let Some(value) = value {
                write!(f, "{}netboot.{name}={value}", if first { "" } else { " " })?;
                first = false;
            }
        }
        Ok(())
    }
}

fn is_server(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else {
        return false;
    };
    let (host, port) = rest.rsplit_once(':').unwrap_or((rest, "80"));
    let host_fits = !host.is_empty()
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte));
    host_fits && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn parse_mac(text: &str) -> Result<String, BootArgsError> {
    // iPXE writes `52-54-00-…` (hexhyp), PXELINUX `01-52-54-00-…`; colons are the common form.
    let pairs: Vec<_> = text.split([':', '-']).collect();
    let fits = pairs.len() == 6
        && pairs
            .iter()
            .all(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()));
    if fits {
        Ok(pairs.join(":").to_ascii_lowercase())
    } else {
        Err(BootArgsError::Mac { found: text.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_are_read_and_the_kernels_are_left_alone() {
        let line = "console=ttyS0 netboot.server=http://10.77.0.1:8080/ quiet netboot.mac=52-54-00-AA-00-01\n";
        let args = BootArgs::parse(line).unwrap();
        assert_eq!(args.server.as_deref(), Some("http://10.77.0.1:8080"));
        assert_eq!(args.mac.as_deref(), Some("52:54:00:aa:00:01"));
    }

    #[test]
    fn the_written_form_is_read_back() {
        for (server, mac) in [
            (None, None),
            (Some("http://netboot.lab".to_owned()), None),
            (
                Some("http://10.0.0.1:80".to_owned()),
                Some("00:11:22:33:44:55".to_owned()),
            ),
        ] {
            let args = BootArgs { server, mac };
            assert_eq!(BootArgs::parse(&args.to_string()).unwrap(), args);
        }
    }

    #[test]
    fn words_that_cannot_be_used_are_named() {
        for line in [
            "netboot.server=",
            "netboot.server=ftp://10.0.0.1",
            "netboot.server=http://",
            "netboot.server=http://a:0",
            "netboot.server=http://a:99999",
            "netboot.server=http://a/b:1",
            "netboot.mac=52:54:00:12:34",
            "netboot.mac=52:54:00:12:34:5g",
            "netboot.sever=http://10.0.0.1",
            "netboot.server",
        ] {
            assert!(BootArgs::parse(line).is_err(), "{line}");
        }
    }
}
