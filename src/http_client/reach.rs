//! Which addresses a client may connect to when its URLs come from a setting, and might lead into a
//! private network (SSRF).
//!
//! The check is part of connecting: a name is resolved once, and only checked addresses are used.
//! So a name that resolves to another address a moment later (DNS rebinding) does not evade the
//! check.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tower::Service;

/// IPv4 networks of IANA's registry of special-purpose addresses (RFC 6890), and multicast.
const SPECIAL_V4: [Ipv4Net; 15] = [
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 0, 2, 0], 24),
    v4([192, 88, 99, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
];
/// The only IPv6 addresses that are assigned as global unicast.
const GLOBAL_V6: Ipv6Net = v6([0x2000, 0, 0], 3);
/// The exceptions within [`GLOBAL_V6`]: protocol assignments such as Teredo, documentation, 6to4.
const SPECIAL_V6: [Ipv6Net; 4] =
    [v6([0x2001, 0, 0], 23), v6([0x2001, 0xdb8, 0], 32), v6([0x2002, 0, 0], 16), v6([0x3fff, 0, 0], 20)];
/// NAT64 (RFC 6052): the last 32 bits are an IPv4 address.
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0], 96);

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6([a, b, c]: [u16; 3], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// The addresses that a client may connect to: public ones, and those in the given networks.
#[derive(Clone, Debug)]
pub struct Reach(Arc<[IpNet]>);

impl Reach {
    /// Public addresses, and those in `networks`.
    #[must_use]
    pub fn with(networks: &[IpNet]) -> Self {
        Self(networks.into())
    }

    /// Whether the client may connect to this address. An IPv6 address that stands for an IPv4
    /// address is checked as that IPv4 address.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = embedded(address);
        is_public(address) || self.0.iter().any(|network| network.contains(&address))
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => {
            GLOBAL_V6.contains(&address) && !SPECIAL_V6.iter().any(|network| network.contains(&address))
        }
    }
}

/// The IPv4 address in an IPv4-mapped or a NAT64 address; any other address as it is.
fn embedded(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if NAT64.contains(&v6) => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        address => address.to_canonical(),
    }
}

/// The error of a host without an address that the client may connect to.
pub(super) fn out_of_reach() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "its address is not public and not in an allowed network")
}

/// Resolves names as the machine does, and leaves out addresses beyond the reach.
#[derive(Clone, Debug)]
pub(super) struct Resolver(pub(super) Reach);

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let reach = self.0.clone();
        Box::pin(async move {
            // The connector sets the port.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<_> = found.filter(|address| reach.allows(address.ip())).collect();
            if allowed.is_empty() { Err(out_of_reach()) } else { Ok(allowed.into_iter()) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_and_those_of_allowed_networks_are_in_reach() {
        let public = ["1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "2a00::1"];
        let special = [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ];
        let none = Reach::with(&[]);
        for address in public {
            assert!(none.allows(address.parse().unwrap()), "{address}");
        }
        for address in special {
            assert!(!none.allows(address.parse().unwrap()), "{address}");
        }
        let inside = Reach::with(&["10.1.0.0/16".parse().unwrap(), "fd12::/16".parse().unwrap()]);
        for (address, allowed) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("64:ff9b::a01:203", true),
            ("fd12:3456::1", true),
            ("10.2.0.1", false),
            ("127.0.0.1", false),
            ("1.1.1.1", true),
        ] {
            assert_eq!(inside.allows(address.parse().unwrap()), allowed, "{address}");
        }
    }

    #[tokio::test]
    async fn a_name_with_only_private_addresses_does_not_resolve() {
        let resolve = async |networks: &[IpNet]| {
            let name: Name = "localhost".parse().unwrap();
            Resolver(Reach::with(networks)).call(name).await.map(Iterator::collect::<Vec<_>>)
        };
        assert_eq!(resolve(&[]).await.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let found = resolve(&["127.0.0.0/8".parse().unwrap()]).await.unwrap();
        assert!(!found.is_empty() && found.iter().all(SocketAddr::is_ipv4), "{found:?}");
    }
}
