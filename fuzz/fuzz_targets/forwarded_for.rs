//! The service reads X-Forwarded-For only from trusted proxies. The last hop that is no trusted
//! proxy is the client.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use vos_auth::http::guard::client_ip;

const NAME: &str = "x-forwarded-for";

// Each of the first 16 lines of the input is the value of a header.
fuzz_target!(|input: &[u8]| {
    let trusted: [IpNet; 2] = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a network"));
    let (proxy, stranger) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([203, 0, 113, 9]));
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(16) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(NAME, value);
        }
    }
    assert_eq!(client_ip(proxy, &headers, &[]), proxy, "no proxy is trusted");
    assert_eq!(client_ip(stranger, &headers, &trusted), stranger, "an untrusted peer's header is ignored");
    let client = client_ip(proxy, &headers, &trusted);
    let sent = String::from_utf8_lossy(input);
    let named = |hop: &str| {
        let plain = hop.parse::<IpAddr>().or_else(|_| hop.parse::<SocketAddr>().map(|with_port| with_port.ip()));
        plain.is_ok_and(|ip| ip.to_canonical() == client)
    };
    assert!(client == proxy || sent.split([',', '\n']).any(|hop| named(hop.trim())), "a header named it");

    // The address that the proxy itself appends decides, whatever came before it.
    let after = |last: &'static str| {
        let mut headers = headers.clone();
        headers.append(NAME, HeaderValue::from_static(last));
        client_ip(proxy, &headers, &trusted)
    };
    assert_eq!(after("203.0.113.9"), stranger);
    assert_eq!(after("x, 203.0.113.9, 10.1.1.1"), stranger);
    assert_eq!(after("203.0.113.9, unknown"), proxy);
});
