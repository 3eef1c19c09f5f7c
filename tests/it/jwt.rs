//! JWTs: their claims, and which forgeries our verifier and an independent one refuse. The
//! requirement ids are those of docs/catalogue.md.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use p256::elliptic_curve::Generate as _;
use serde_json::{Value, json};
use sha2::Sha256;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;
use vos_auth::jwt::{self, Claims, InvalidJwt, KeyRing};

use crate::harness::program::{run, run_with_input};
use crate::harness::{Service, now};

const ISSUER: &str = "https://platform.verolabs.co";
const AUDIENCE: &str = "https://api-oms.verolabs.co";
const TRADER: &str = "trader@example.com";
const PASSWORD: &str = "night train in autumn rain";

fn text(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

fn parts(jwt: &str) -> (Value, Value) {
    let mut parts = jwt.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap());
    let mut part = || serde_json::from_slice(&parts.next().unwrap()).unwrap();
    (part(), part())
}

fn claims(now: OffsetDateTime) -> Claims {
    let iat = now.unix_timestamp();
    let (sub, jti, sid) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
    Claims { iss: ISSUER.into(), sub, aud: AUDIENCE.into(), iat, exp: iat + 600, jti, sid }
}

/// Tokens that look valid, each with what is wrong with it. `jwk` is a published key.
fn forgeries(good: &str, jwk: &Value) -> Vec<(&'static str, String)> {
    let (header, body) = parts(good);
    let signature = good.rsplit_once('.').unwrap().1;
    let mallory = SigningKey::generate();
    let signed = |header: &Value| {
        let message = format!("{}.{}", text(header), text(&body));
        let signature: p256::ecdsa::Signature = mallory.sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    };
    let changed = |name: &str, value: Value| {
        let mut header = header.clone();
        header[name] = value;
        header
    };
    let octets = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
    let public = [vec![4], octets("x"), octets("y")].concat();
    let hs256 = changed("alg", json!("HS256"));
    let message = format!("{}.{}", text(&hs256), text(&body));
    let mac = Hmac::<Sha256>::new_from_slice(&public).unwrap().chain_update(&message).finalize().into_bytes();
    let point = mallory.verifying_key().to_sec1_point(false);
    let own_key = json!({ "kty": "EC", "crv": "P-256", "alg": "ES256",
        "x": URL_SAFE_NO_PAD.encode(point.x().unwrap()), "y": URL_SAFE_NO_PAD.encode(point.y().unwrap()) });
    let mut other = body.clone();
    other["sub"] = json!(Uuid::from_u128(7));
    vec![
        ("none", format!("{}.{}.", text(&changed("alg", json!("none"))), text(&body))),
        (
            "None, with the signature",
            format!("{}.{}.{signature}", text(&changed("alg", json!("None"))), text(&body)),
        ),
        ("HS256 with the public key", format!("{message}.{}", URL_SAFE_NO_PAD.encode(mac))),
        ("another key", signed(&header)),
        ("an unknown kid", signed(&changed("kid", json!("20200101T000000Z")))),
        ("kid as a path", signed(&changed("kid", json!("../../etc/passwd")))),
        ("no kid", signed(&changed("kid", Value::Null))),
        ("its own jwk", signed(&changed("jwk", own_key))),
        ("its own jku", signed(&changed("jku", json!("https://mallory.example/jwks.json")))),
        ("another typ", signed(&changed("typ", json!("at+jwt")))),
        ("another body", format!("{}.{}.{signature}", text(&header), text(&other))),
        ("cut", good[..good.len() - 2].to_owned()),
    ]
}

/// Runs the documented verifier, with PyJWT. Gives the claims, or nothing for a refused token.
fn python(jwks_url: &str, tokens: &[String]) -> Vec<Option<Value>> {
    let page = include_str!("../../docs/verify-jwt.md");
    let snippet = page.split("```python").nth(1).unwrap().split("```").next().unwrap();
    let snippet = snippet.replace("https://platform.verolabs.co/.well-known/jwks.json", jwks_url);
    let driver = "
import json, sys
for token in json.load(sys.stdin):
    try:
        print(json.dumps(verify(token)))
    except jwt.PyJWTError as error:
        print(json.dumps(None))
";
    // Debian's own Python has the package of PyJWT.
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", &format!("{snippet}\n{driver}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("make test installs python3-jwt");
    python.stdin.take().unwrap().write_all(serde_json::to_string(tokens).unwrap().as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let lines = String::from_utf8(output.stdout).unwrap();
    let verdicts: Vec<_> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(verdicts.len(), tokens.len());
    verdicts
}

/// PyJWT accepts our JWTs and refuses every forgery, with the served JWKS and the documented code.
#[sqlx::test]
async fn l6_an_independent_library_verifies_our_jwts_and_refuses_forgeries(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.client();
    let signed_in = client.logs_in(TRADER, PASSWORD).await;
    let good = signed_in.body["jwt"].as_str().unwrap().to_owned();
    let jwks = client.get("/.well-known/jwks.json").await;
    assert_eq!(jwks.header("cache-control"), Some("public, max-age=300"));
    let forgeries = forgeries(&good, &jwks.body["keys"][0]);
    // The clock of the service may be ahead of the verifier's by up to a minute.
    let ahead_by = async |seconds| {
        service.clock.advance(Duration::from_secs(seconds));
        client.refreshes().await.body["jwt"].as_str().unwrap().to_owned()
    };
    let (ahead, too_far_ahead) = (ahead_by(30).await, ahead_by(60).await);
    let mut tokens = vec![good.clone(), ahead.clone(), too_far_ahead];
    tokens.extend(forgeries.iter().map(|(_, token)| token.clone()));
    let url = format!("http://{}/.well-known/jwks.json", service.address);
    let verdicts = tokio::task::spawn_blocking(move || python(&url, &tokens)).await.unwrap();
    assert_eq!(verdicts[0].as_ref().expect("our JWT is accepted"), &parts(&good).1);
    assert_eq!(verdicts[1].as_ref().expect("clocks may differ by half a minute"), &parts(&ahead).1);
    assert_eq!(verdicts[2], None, "clocks differ by a minute and a half");
    for ((what, _), verdict) in forgeries.iter().zip(&verdicts[3..]) {
        assert_eq!(verdict, &None, "{what}");
    }
    service.stops().await;
}

/// Our own verifier accepts only ES256, and finds the key by its published id.
#[test]
fn l6_our_verifier_refuses_every_forgery() {
    let (keys, now) = (KeyRing::ephemeral(), now());
    let good = keys.sign(&claims(now), now);
    let verify = |token: &str| keys.verify(token, ISSUER, AUDIENCE, now);
    assert_eq!(verify(&good), Ok(claims(now)));
    for (what, token) in forgeries(&good, &keys.jwks(now)["keys"][0]) {
        assert!(verify(&token).is_err(), "{what}");
    }
    for token in ["", "a", "a.b", "a.b.c", "....", "é.é.é", &"A".repeat(10_000)] {
        assert!(verify(token).is_err(), "{token}");
    }
    assert_eq!(KeyRing::ephemeral().verify(&good, ISSUER, AUDIENCE, now), Err(InvalidJwt::Signature));
}

/// Every claim is present and right; the verifier refuses a wrong, missing or mistyped one.
#[sqlx::test]
async fn l7_every_claim_is_present_and_checked(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.client();
    let body = client.logs_in(TRADER, PASSWORD).await.body;
    let (header, said) = parts(body["jwt"].as_str().unwrap());
    let at = vos_auth::clock::Clock::Manual(service.clock.clone()).now().unix_timestamp();
    assert_eq!((&header["alg"], &header["typ"]), (&json!("ES256"), &json!("JWT")));
    assert!(header["kid"].is_string() && header.as_object().unwrap().len() == 3);
    assert_eq!((&said["iss"], &said["aud"]), (&json!(ISSUER), &json!(AUDIENCE)));
    assert_eq!((&said["iat"], &said["exp"]), (&json!(at), &json!(at + 600)));
    assert_eq!((&said["sub"], &said["sid"]), (&body["identity"]["id"], &body["session"]["id"]));
    let another = client.refreshes().await.body;
    assert_ne!(parts(another["jwt"].as_str().unwrap()).1["jti"], said["jti"]);
    service.stops().await;

    let (keys, now) = (KeyRing::ephemeral(), now());
    let verdict = |change: &dyn Fn(&mut Claims)| {
        let mut changed = claims(now);
        change(&mut changed);
        keys.verify(&keys.sign(&changed, now), ISSUER, AUDIENCE, now)
    };
    assert_eq!(verdict(&|claims| claims.iss = "https://mallory.example".into()), Err(InvalidJwt::Issuer));
    assert_eq!(verdict(&|claims| claims.aud = ISSUER.into()), Err(InvalidJwt::Audience));
    assert_eq!(verdict(&|claims| claims.exp = claims.iat - 61), Err(InvalidJwt::Time));
    assert_eq!(verdict(&|claims| claims.iat += 120), Err(InvalidJwt::Time));
    // Signed by a real key, but without a claim or with one of another type.
    let folder = tempfolder("l7");
    let key = jwt::generate(&folder, now).unwrap();
    let pem = std::fs::read_to_string(folder.join(&key).with_extension("pem")).unwrap();
    let signing: SigningKey = p256::pkcs8::DecodePrivateKey::from_pkcs8_pem(&pem).unwrap();
    let keys = KeyRing::read(&folder).unwrap();
    let good = serde_json::to_value(claims(now)).unwrap();
    let usual = json!({ "alg": "ES256", "typ": "JWT", "kid": key });
    let signed_with = |header: &Value, body: &Value| {
        let message = format!("{}.{}", text(header), text(body));
        let signature: p256::ecdsa::Signature = signing.sign(message.as_bytes());
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()));
        keys.verify(&token, ISSUER, AUDIENCE, now)
    };
    let signed = |body: &Value| signed_with(&usual, body);
    assert!(signed(&good).is_ok());
    for (name, value, refused) in [
        ("typ", Value::Null, InvalidJwt::Header),
        ("typ", json!("at+jwt"), InvalidJwt::Header),
        ("alg", json!("ES384"), InvalidJwt::Header),
        ("kid", Value::Null, InvalidJwt::UnknownKey),
        ("kid", json!("20200101T000000Z"), InvalidJwt::UnknownKey),
    ] {
        let mut header = usual.clone();
        header[name] = value;
        assert_eq!(signed_with(&header, &good), Err(refused), "{header}");
    }
    for name in ["iss", "sub", "aud", "iat", "exp", "jti", "sid"] {
        let mut without = good.clone();
        without.as_object_mut().unwrap().remove(name);
        assert!(signed(&without).is_err(), "without {name}");
        let mut mistyped = good.clone();
        mistyped[name] = match &good[name] {
            Value::Number(number) => json!(number.to_string()),
            other => json!([other]),
        };
        assert!(signed(&mistyped).is_err(), "mistyped {name}");
    }
}

fn tempfolder(name: &str) -> std::path::PathBuf {
    let folder = format!("{}/{name}-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let _ = std::fs::remove_dir_all(&folder);
    folder.into()
}

/// A key is published before it signs, and stays until its JWTs have expired.
#[test]
fn keys_are_rotated_without_a_refused_jwt() {
    let (folder, start) = (tempfolder("rotation"), now());
    jwt::generate(&folder, start).unwrap();
    let ring = KeyRing::read(&folder).unwrap();
    let mut live: Vec<(OffsetDateTime, String)> = Vec::new();
    let mut kids = std::collections::BTreeSet::new();
    let mut published = Vec::new();
    for minute in 0..180 {
        let at = start + Duration::from_secs(60 * minute + 1);
        if minute % 30 == 7 {
            assert!(jwt::rotate(&folder, at).unwrap().added.is_some());
            assert!(jwt::rotate(&folder, at).unwrap().added.is_none(), "only one key waits at a time");
        }
        ring.reread().unwrap();
        let token = ring.sign(&claims(at), at);
        let kid = parts(&token).0["kid"].clone();
        published.push(ring.jwks(at));
        // The folder is deployed 10 minutes late, read a minute later, and cached for 5 more.
        if let Some(stale) = published.len().checked_sub(17) {
            let known = published[stale]["keys"].as_array().unwrap().iter().any(|key| key["kid"] == kid);
            assert!(known, "published before it signs, at minute {minute}");
        }
        kids.insert(kid.to_string());
        live.push((at, token));
        live.retain(|(signed, _)| at - *signed < Duration::from_mins(10));
        for (_, token) in &live {
            assert!(ring.verify(token, ISSUER, AUDIENCE, at).is_ok(), "minute {minute}");
        }
        assert!(ring.jwks(at)["keys"].as_array().unwrap().len() <= 3);
    }
    assert!(kids.len() >= 5, "{kids:?}");
    assert!(std::fs::read_dir(&folder).unwrap().count() <= 3, "expired keys are deleted");
}

/// The `vos-auth key` commands, as an operator runs them.
#[test]
fn key_commands_print_what_they_did() {
    let folder = tempfolder("commands");
    let path = folder.to_str().unwrap();
    let environment = [("JWT_KEYS", path), ("PUBLIC_ORIGIN", ISSUER)];
    let run_key = |arguments: &[&str], input: &str| {
        let output = run_with_input(arguments, &environment, input);
        let said =
            String::from_utf8(output.stdout).unwrap() + String::from_utf8(output.stderr).unwrap().as_str();
        (output.status.success(), said)
    };
    let (well, said) = run_key(&["key", "rotate"], "");
    assert!(!well && said.contains("JWT_KEYS"), "{said}");
    let (well, said) = run_key(&["key", "generate"], "");
    assert!(well && said.contains("signs from now on"), "{said}");
    let key = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let (well, said) = run_key(&["key", "generate"], "");
    assert!(!well && said.contains("key rotate"), "{said}");
    let (well, said) = run_key(&["key", "rotate"], "");
    assert!(well && said.contains("signs in 20 minutes"), "{said}");
    let (well, said) = run_key(&["key", "rotate"], "");
    assert!(well && said.contains("already published"), "{said}");
    let ring = KeyRing::read(&folder).unwrap();
    let token = ring.sign(&claims(now()), now());
    let (well, said) = run_key(&["key", "verify"], &token);
    assert!(well && said.contains(AUDIENCE), "{said}");
    let (well, said) = run_key(&["key", "verify"], &token[..token.len() - 2]);
    assert!(!well && said.contains("the JWT is refused"), "{said}");
    let (well, said) = run_key(&["key", "verify", "--jwt-issuer=https://elsewhere.example"], &token);
    assert!(!well && said.contains("the JWT is refused"), "{said}");
    // An operator's own key from openssl, with the time in its name.
    let own_key = tempfolder("openssl");
    std::fs::create_dir_all(&own_key).unwrap();
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"])
        .arg(own_key.join("20261123T200000Z.pem"))
        .output();
    if made.is_ok_and(|made| made.status.success()) {
        assert!(KeyRing::read(&own_key).is_ok());
    }
    std::fs::write(own_key.join("main.pem"), "x").unwrap();
    let why = KeyRing::read(&own_key).unwrap_err().to_string();
    assert!(why.contains("main.pem") && why.contains("20261123T200000Z.pem"), "{why}");
    let refused = run(&["key", "rotate", "--jwt-keys", own_key.to_str().unwrap()], &[]);
    assert!(!refused.status.success());
}
