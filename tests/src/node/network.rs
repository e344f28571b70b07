//! The box's addresses, and the wires between its namespaces: control plane - node - pods, each pod joined by a veth
//! pair of its own and routed, as the `ptp` CNI plugin does it. Names are plain; the namespaces are the box's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;

use super::netns::Netns;

/// An IP version, where the two are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

const SERVICE_IP4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const SERVICE_IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1);
const ENDPOINT_IP4: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 2);
const ENDPOINT_IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x172, 0, 0, 0, 0, 0, 2);

/// The `kubernetes` service's IPv4 ClusterIP and port.
pub const SERVICE_V4: SocketAddr = SocketAddr::new(IpAddr::V4(SERVICE_IP4), 443);
/// The `kubernetes` service's IPv6 ClusterIP and port.
pub const SERVICE_V6: SocketAddr = SocketAddr::new(IpAddr::V6(SERVICE_IP6), 443);
/// The IPv4 endpoint behind the service.
pub const ENDPOINT_V4: SocketAddr = SocketAddr::new(IpAddr::V4(ENDPOINT_IP4), 6443);
/// The IPv6 endpoint behind the service.
pub const ENDPOINT_V6: SocketAddr = SocketAddr::new(IpAddr::V6(ENDPOINT_IP6), 6443);

/// Every address that the API server answers on.
pub const API_SERVER: [SocketAddr; 4] = [SERVICE_V4, SERVICE_V6, ENDPOINT_V4, ENDPOINT_V6];

impl Family {
    /// The service's address in this family.
    #[must_use]
    pub fn service(self) -> SocketAddr {
        match self {
            Self::V4 => SERVICE_V4,
            Self::V6 => SERVICE_V6,
        }
    }
}

/// `address` as an IPv4-mapped IPv6 one, the form in which dual-stack programs dial IPv4; IPv6 stays as it is.
#[must_use]
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// The pod's number `index` addresses.
pub(crate) fn pod_addresses(index: u8) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::new(10, 244, 1, index),
        Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, u16::from(index)),
    )
}

/// Joins the node to the control plane, which answers on the service's and the endpoint's addresses.
pub(crate) fn join_control_plane(node: &Netns, control_plane: &Netns) -> Result<()> {
    node.sysctl("ipv4/ip_forward", "1")?;
    node.sysctl("ipv6/conf/all/forwarding", "1")?;
    node.ip(&format!(
        "link add uplink type veth peer name eth0 netns {peer}\n\
         addr add 172.30.0.1/24 dev uplink\n\
         addr add fd00:172::1/64 dev uplink nodad\n\
         link set uplink up\n",
        peer = control_plane.name()
    ))?;
    control_plane.ip(&format!(
        "addr add {ENDPOINT_IP4}/24 dev eth0\n\
         addr add {ENDPOINT_IP6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         addr add {SERVICE_IP4}/32 dev lo\n\
         addr add {SERVICE_IP6}/128 dev lo nodad\n\
         route add 10.244.0.0/16 via 172.30.0.1\n\
         route add fd00:10:244::/48 via fd00:172::1\n"
    ))?;
    node.ip(&format!(
        "route add 10.96.0.0/16 via {ENDPOINT_IP4}\n\
         route add fd00:96::/112 via {ENDPOINT_IP6}\n"
    ))
}

/// Joins a pod's namespace to the node.
pub(crate) fn join_pod(node: &Netns, pod: &Netns, index: u8) -> Result<()> {
    let (v4, v6) = pod_addresses(index);
    node.ip(&format!(
        "link add pod{index} type veth peer name eth0 netns {peer}\n\
         addr add 10.244.0.1/32 dev pod{index}\n\
         addr add fd00:10:244:1::1/128 dev pod{index} nodad\n\
         link set pod{index} up\n",
        peer = pod.name()
    ))?;
    pod.ip(&format!(
        "addr add {v4}/32 dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         link set eth0 up\n\
         route add 10.244.0.1 dev eth0 scope link src {v4}\n\
         route add default via 10.244.0.1 src {v4}\n\
         route add fd00:10:244:1::1 dev eth0 src {v6}\n\
         route add default via fd00:10:244:1::1 src {v6}\n"
    ))?;
    node.ip(&format!(
        "route add {v4}/32 dev pod{index}\n\
         route add {v6}/128 dev pod{index}\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::{SERVICE_V4, SERVICE_V6, mapped};

    #[test]
    fn mapping_is_for_ipv4_alone() {
        assert_eq!(mapped(SERVICE_V4).to_string(), "[::ffff:10.96.0.1]:443");
        assert_eq!(mapped(SERVICE_V6), SERVICE_V6);
    }
}
