//! Connects to a name that may have several addresses, by RFC 8305 ("Happy Eyeballs"): an address
//! that does not answer costs 250 ms.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// How long one address is tried alone before the next is tried as well (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);
/// How long connecting may take after the name is resolved, for all addresses together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// A connection, and its remote address.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) stream: TcpStream,
    pub(super) address: SocketAddr,
}

/// Resolves a name and connects to the address that answers first. Tries `preferred` first if the
/// name still has it.
///
/// # Errors
///
/// Why the name has no address; or how many addresses were tried and why each failed. It names no
/// address.
pub(super) async fn connect(host: &str, port: u16, preferred: Option<IpAddr>) -> Result<Connected, String> {
    let found = lookup_host((host, port)).await.map_err(|error| error.to_string())?;
    first_to_answer(in_order(found.collect(), preferred)).await
}

/// The order of attempts (RFC 8305 §4): IPv6 and IPv4 alternate, beginning with the family of the
/// resolver's first address. Within a family, the resolver's order is kept.
fn in_order(found: Vec<SocketAddr>, preferred: Option<IpAddr>) -> Vec<SocketAddr> {
    let ipv6_first = found.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| address.is_ipv6() == ipv6_first);
    let (mut order, mut second) = (Vec::new(), second.into_iter());
    for address in first {
        order.push(address);
        order.extend(second.next());
    }
    order.extend(second);
    if let Some(place) = order.iter().position(|address| Some(address.ip()) == preferred) {
        order[..=place].rotate_right(1);
    }
    order
}

/// Tries the addresses in order. The next attempt starts when one has failed, or after [`STAGGER`].
/// The first success aborts the other attempts.
async fn first_to_answer(addresses: Vec<SocketAddr>) -> Result<Connected, String> {
    let deadline = Instant::now() + CONNECT_DEADLINE;
    let mut untried = addresses.into_iter();
    let (mut under_way, mut tried, mut reasons) = (JoinSet::new(), 0, BTreeSet::new());
    loop {
        if let Some(address) = untried.next() {
            tried += 1;
            under_way.spawn(async move {
                Ok::<_, io::Error>(Connected { stream: TcpStream::connect(address).await?, address })
            });
        }
        tokio::select! {
            ended = under_way.join_next() => match ended {
                Some(Ok(Ok(connected))) => return Ok(connected),
                Some(Ok(Err(error))) => drop(reasons.insert(error.to_string())),
                Some(Err(error)) => drop(reasons.insert(error.to_string())),
                None => break,
            },
            () = sleep(STAGGER), if untried.len() > 0 => {}
            () = sleep_until(deadline) => {
                reasons.insert(format!("no answer within {} s", CONNECT_DEADLINE.as_secs()));
                break;
            }
        }
    }
    // Sorted, because the order of failures varies, and the probe logs a relay again whenever the
    // text of its failure changes.
    let reasons = Vec::from_iter(reasons).join("; ");
    Err(format!("{tried} {} tried: {reasons}", if tried == 1 { "address" } else { "addresses" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 25)).collect()
    }

    #[test]
    fn families_alternate_and_the_preferred_address_comes_first() {
        let found = addresses(&["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1"]);
        let order = addresses(&["2001:db8::1", "192.0.2.1", "2001:db8::2", "2001:db8::3"]);
        assert_eq!(in_order(found.clone(), None), order);
        let order = addresses(&["2001:db8::2", "2001:db8::1", "192.0.2.1", "2001:db8::3"]);
        assert_eq!(in_order(found.clone(), Some("2001:db8::2".parse().unwrap())), order);
        // The name no longer has this address.
        assert_eq!(in_order(found, Some("192.0.2.9".parse().unwrap()))[0], order[1]);
        let found = addresses(&["192.0.2.1", "2001:db8::1", "2001:db8::2"]);
        assert_eq!(in_order(found.clone(), None), found);
    }
}
