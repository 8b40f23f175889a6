//! What may pass in spite of the isolation: parsed once, impossible to get wrong afterwards.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One permitted kind of connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allow {
    /// Who connects to whom.
    pub(crate) direction: Direction,
    /// The other end.
    pub(crate) cidr: Cidr,
    /// Its transport protocol.
    pub(crate) protocol: Protocol,
    /// The port that is connected to; `None`: any.
    pub(crate) port: Option<u16>,
}

/// Who connects to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The pod to the other end.
    Egress,
    /// The other end to the pod.
    Ingress,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// With connections.
    Tcp,
    /// Without.
    Udp,
}

impl Protocol {
    /// As IANA numbers it.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The block's first address.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits count; the whole address for a single one.
    pub(crate) fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The address and the mask, 4 or 16 bytes each.
    pub(super) fn bytes(&self) -> (Vec<u8>, Vec<u8>) {
        match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(self.prefix))
                    .unwrap_or(0);
                (address.octets().to_vec(), mask.to_be_bytes().to_vec())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.prefix))
                    .unwrap_or(0);
                (address.octets().to_vec(), mask.to_be_bytes().to_vec())
            }
        }
    }
}

impl From<IpAddr> for Cidr {
    /// The address alone.
    fn from(address: IpAddr) -> Self {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self { address, prefix }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let malformed = || CidrError::Malformed {
            found: text.chars().take(64).collect(),
        };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            // No sign and no leading zeros, which `parse` would take.
            Some(text) => text
                .parse()
                .ok()
                .filter(|prefix: &u8| *prefix <= bits && prefix.to_string() == text)
                .ok_or_else(malformed)?,
        };
        let cidr = Self { address, prefix };
        let (address, mask) = cidr.bytes();
        let outside = address
            .iter()
            .zip(&mask)
            .any(|(byte, mask)| byte & !mask != 0);
        if outside {
            return Err(CidrError::HostBits {
                found: text.to_owned(),
                prefix,
            });
        }
        Ok(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        match self.direction {
            Direction::Egress => write!(f, "egress {protocol} to {}", self.cidr)?,
            Direction::Ingress => write!(f, "ingress {protocol} from {}", self.cidr)?,
        }
        match self.port {
            Some(port) => write!(f, " port {port}"),
            None => write!(f, " any port"),
        }
    }
}

/// Not a block of addresses.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CidrError {
    /// Neither address nor block.
    #[error("expected an address or a block like 10.0.0.0/8 or fd00::/64, found {found:?}")]
    Malformed {
        /// What came.
        found: String,
    },
    /// Perhaps a larger or a smaller block was meant.
    #[error("expected only zeros after the first {prefix} bits, found {found:?}")]
    HostBits {
        /// What came.
        found: String,
        /// Its prefix.
        prefix: u8,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_single_addresses_are_read() {
        for (text, shown, mask) in [
            ("10.1.16.0/20", "10.1.16.0/20", "fffff000"),
            ("10.0.0.1", "10.0.0.1/32", "ffffffff"),
            ("0.0.0.0/0", "0.0.0.0/0", "00000000"),
            ("fd00::/65", "fd00::/65", "ffffffffffffffff8000000000000000"),
            ("::/0", "::/0", "00000000000000000000000000000000"),
            ("fd00::1", "fd00::1/128", "ffffffffffffffffffffffffffffffff"),
        ] {
            let cidr: Cidr = text.parse().unwrap();
            assert_eq!(cidr.to_string(), shown);
            let hex: String = cidr
                .bytes()
                .1
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert_eq!(hex, mask, "{text}");
        }
    }

    #[test]
    fn what_could_be_meant_otherwise_is_no_block() {
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0/8",
            "fd00::/129",
            "example.org",
            "10.0.0.0/8/8",
            " 10.0.0.0/8",
            "fe80::1%eth0",
            "10.0.0.0/-1",
            "0x0a.0.0.1",
        ] {
            assert!(
                matches!(text.parse::<Cidr>(), Err(CidrError::Malformed { .. })),
                "{text:?}"
            );
        }
        for text in ["10.0.0.1/8", "fd00::1/64", "1.0.0.0/0"] {
            assert!(
                matches!(text.parse::<Cidr>(), Err(CidrError::HostBits { .. })),
                "{text:?}"
            );
        }
    }

    #[test]
    fn fuzz_block_what_is_taken_is_one_block_and_read_again_alike() {
        let seeds = [
            "10.1.16.0/20",
            "10.0.0.1",
            "fd00::/65",
            "::ffff:10.0.0.1/128",
        ];
        impound_fuzz::run("block", &seeds.map(|text| text.into()), |_, bytes| {
            let text = String::from_utf8_lossy(&bytes);
            if let Ok(block) = text.parse::<Cidr>() {
                let again = block.to_string().parse::<Cidr>().unwrap();
                assert_eq!(again.to_string(), block.to_string());
                let (address, mask) = block.bytes();
                assert_eq!(address.len(), mask.len());
            }
        });
    }
}
