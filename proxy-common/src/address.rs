//! Addresses as the maps hold them.

use bytemuck::{Pod, Zeroable};
use core::{
    mem::{offset_of, size_of},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// Which of a pod's two listeners a connection belongs to. An IPv4-mapped address is IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// 127.0.0.1, also as `::ffff:127.0.0.1`.
    V4,
    /// `::1`.
    V6,
}

/// An IPv6 address, or an IPv4 one mapped into it, in words of network byte order as socket programs see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Address {
    words: [u32; 4],
}

/// An address and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port, in host byte order.
    pub port: u16,
    reserved: u16,
}

const _: () = assert!(size_of::<Address>() == 16 && size_of::<Endpoint>() == 20);
const _: () = assert!(offset_of!(Endpoint, address) == 0 && offset_of!(Endpoint, port) == 16);

/// The third word of `::ffff:0:0/96`.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// `::ffff:127.0.0.1`.
    pub const V4_LOOPBACK: Self = Self::from_v4_word(0x7f00_0001_u32.to_be());
    /// `::1`.
    pub const V6_LOOPBACK: Self = Self::from_v6_words([0, 0, 0, 1_u32.to_be()]);

    /// From the word that holds an IPv4 address in network byte order.
    #[must_use]
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED, word],
        }
    }

    /// From the words that hold an IPv6 address in network byte order.
    #[must_use]
    #[inline(always)]
    pub const fn from_v6_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The four words, in network byte order.
    #[must_use]
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// The listener that stands in for this address.
    #[must_use]
    #[inline(always)]
    pub const fn family(&self) -> Family {
        if self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED {
            Family::V4
        } else {
            Family::V6
        }
    }

    /// The loopback address of its family.
    #[must_use]
    #[inline(always)]
    pub const fn loopback(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4_LOOPBACK,
            Family::V6 => Self::V6_LOOPBACK,
        }
    }

    /// 127.0.0.0/8, mapped, or `::1`.
    #[must_use]
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        match self.family() {
            Family::V4 => u32::from_be(self.words[3]) >> 24 == 127,
            Family::V6 => {
                self.words[0] == 0
                    && self.words[1] == 0
                    && self.words[2] == 0
                    && self.words[3] == Self::V6_LOOPBACK.words[3]
            }
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        }
        .octets();
        Self {
            words: bytemuck::cast(octets),
        }
    }
}

/// IPv4-mapped addresses come back as IPv4.
impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let octets: [u8; 16] = bytemuck::cast(address.words);
        Ipv6Addr::from(octets).to_canonical()
    }
}

impl Endpoint {
    /// Joins an address and a port.
    #[must_use]
    #[inline(always)]
    pub const fn new(address: Address, port: u16) -> Self {
        Self {
            address,
            port,
            reserved: 0,
        }
    }
}

/// Scope and flow label are left behind: no API server is reached by a link-local address.
impl From<SocketAddr> for Endpoint {
    fn from(socket: SocketAddr) -> Self {
        Self::new(socket.ip().into(), socket.port())
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        Self::new(endpoint.address.into(), endpoint.port)
    }
}

impl From<Ipv4Addr> for Address {
    fn from(ip: Ipv4Addr) -> Self {
        IpAddr::V4(ip).into()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("127.0.0.1", Family::V4, true)]
    #[case("127.9.9.9", Family::V4, true)]
    #[case("::ffff:127.0.0.1", Family::V4, true)]
    #[case("::1", Family::V6, true)]
    #[case("::2", Family::V6, false)]
    #[case("::", Family::V6, false)]
    #[case("::7f00:1", Family::V6, false)]
    #[case("10.96.0.1", Family::V4, false)]
    #[case("::ffff:10.96.0.1", Family::V4, false)]
    #[case("1::ffff:127.0.0.1", Family::V6, false)]
    #[case("fd00::1", Family::V6, false)]
    fn families_and_loopback(#[case] ip: IpAddr, #[case] family: Family, #[case] loopback: bool) {
        let address = Address::from(ip);
        assert_eq!((address.family(), address.is_loopback()), (family, loopback));
        assert_eq!(IpAddr::from(address), ip.to_canonical());
    }

    #[test]
    fn the_named_loopbacks_are_the_loopbacks() {
        assert_eq!(Address::V4_LOOPBACK, Address::from(Ipv4Addr::LOCALHOST));
        assert_eq!(Address::V6_LOOPBACK, Address::from(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    }

    #[rstest]
    #[case("10.96.0.1:443", "10.96.0.1:443")]
    #[case("[::ffff:10.96.0.1]:443", "10.96.0.1:443")]
    #[case("[fd00::1]:6443", "[fd00::1]:6443")]
    fn endpoints_go_there_and_back(#[case] from: SocketAddr, #[case] to: SocketAddr) {
        assert_eq!(SocketAddr::from(Endpoint::from(from)), to);
    }
}
