//! Hashes in the PHC string format and similar ones: Argon2, PBKDF2, scrypt, and Firebase's scrypt.

use aes::cipher::{KeyIvInit as _, StreamCipher as _};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use subtle::ConstantTimeEq as _;

use super::Memory;

/// The maximum memory of a hash, 1 GiB: a stored string must not be able to stop the service.
const MAX_MEMORY_KIB: u32 = 1 << 20;
/// The maximum of memory times passes: about 100 times that of our own hashes by default.
const MAX_WORK_KIB: u32 = 4 << 20;
const MAX_LANES: u32 = 64;
/// The maximum of rounds times blocks of output.
const MAX_PBKDF2_ROUNDS: u64 = 2_000_000;
/// Lengths of hashes, in octets.
const LENGTHS: std::ops::RangeInclusive<usize> = 10..=1024;
/// Lengths of salts, in octets.
const SALT_LENGTHS: std::ops::RangeInclusive<usize> = 8..=1024;

/// A PHC string: `$id[$v=version]$name=value,…$salt$output`, base64 without padding.
#[derive(Clone)]
pub(super) struct Phc {
    function: Function,
    salt: Vec<u8>,
    output: Vec<u8>,
}

#[derive(Clone)]
enum Function {
    Argon2 { algorithm: Algorithm, version: Version, params: Params },
    Pbkdf2 { kind: &'static str, rounds: u32 },
    Scrypt(Scrypt),
}

/// The name of the scheme that an id denotes.
pub(super) fn kind(id: &str) -> Option<&'static str> {
    ["argon2i", "argon2d", "argon2id", "pbkdf2-sha1", "pbkdf2-sha256", "pbkdf2-sha512", "scrypt"]
        .into_iter()
        .find(|kind| *kind == id)
        // passlib's name for PBKDF2 with SHA-1.
        .or_else(|| (id == "pbkdf2").then_some("pbkdf2-sha1"))
}

impl Phc {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix('$')?.split('$').peekable();
        let kind = kind(parts.next()?)?;
        let version = parts.next_if(|part| part.starts_with("v=")).map(|part| number(&part[2..]));
        let params = Numbers::parse(parts.next()?)?;
        let (salt, output) = (bytes(parts.next()?)?, bytes(parts.next()?)?);
        let is_complete = parts.next().is_none() && SALT_LENGTHS.contains(&salt.len());
        if !is_complete || !LENGTHS.contains(&output.len()) {
            return None;
        }
        let function = match kind {
            "scrypt" => Function::Scrypt(Scrypt::read(&params)?),
            "argon2i" | "argon2d" | "argon2id" => {
                argon2(kind, version.map_or(Some(None), |version| version.map(Some))?, &params, output.len())?
            }
            _ => {
                let rounds = params.get("i").filter(|rounds| *rounds > 0)?;
                let hash = Function::Pbkdf2 { kind, rounds };
                (hash.work(output.len()) <= MAX_PBKDF2_ROUNDS).then_some(hash)?
            }
        };
        Some(Self { function, salt, output })
    }

    pub(super) fn kind(&self) -> &'static str {
        match &self.function {
            Function::Argon2 { algorithm, .. } => algorithm.as_str(),
            Function::Pbkdf2 { kind, .. } => kind,
            Function::Scrypt(_) => "scrypt",
        }
    }

    pub(super) fn work(&self) -> u64 {
        self.function.work(self.output.len())
    }

    pub(super) fn memory_kib(&self) -> u32 {
        match &self.function {
            Function::Argon2 { params, .. } => params.m_cost(),
            Function::Pbkdf2 { .. } => 0,
            Function::Scrypt(cost) => u32::try_from(cost.memory_kib()).unwrap_or(u32::MAX),
        }
    }

    pub(super) fn matches(&self, password: &[u8], memory: &mut Memory) -> bool {
        let mut computed = vec![0; self.output.len()];
        self.compute(password, &mut computed, memory).is_some() && computed.ct_eq(&self.output).into()
    }

    fn compute(&self, password: &[u8], output: &mut [u8], memory: &mut Memory) -> Option<()> {
        match &self.function {
            Function::Argon2 { algorithm, version, params } => {
                let blocks = memory.blocks(params.block_count());
                Argon2::new(*algorithm, *version, params.clone())
                    .hash_password_into_with_memory(password, &self.salt, output, blocks)
                    .ok()
            }
            Function::Pbkdf2 { kind, rounds } => {
                let (salt, rounds) = (&self.salt, *rounds);
                match *kind {
                    "pbkdf2-sha1" => pbkdf2::pbkdf2_hmac::<sha1::Sha1>(password, salt, rounds, output),
                    "pbkdf2-sha256" => pbkdf2::pbkdf2_hmac::<sha2::Sha256>(password, salt, rounds, output),
                    _ => pbkdf2::pbkdf2_hmac::<sha2::Sha512>(password, salt, rounds, output),
                }
                Some(())
            }
            Function::Scrypt(cost) => cost.compute(password, &self.salt, output),
        }
    }
}

impl Function {
    fn work(&self, output_len: usize) -> u64 {
        match self {
            Self::Argon2 { params, .. } => u64::from(params.m_cost()) * u64::from(params.t_cost()),
            Self::Pbkdf2 { kind, rounds } => {
                let block = match *kind {
                    "pbkdf2-sha1" => 20,
                    "pbkdf2-sha256" => 32,
                    _ => 64,
                };
                u64::from(*rounds) * output_len.div_ceil(block) as u64
            }
            Self::Scrypt(cost) => cost.work_kib(),
        }
    }
}

fn argon2(id: &str, version: Option<u32>, params: &Numbers<'_>, output_len: usize) -> Option<Function> {
    let algorithm = id.parse().ok()?;
    let version = match version {
        Some(0x13) => Version::V0x13,
        // Before version 1.3 (0x13), which RFC 9106 describes, hashes named no version.
        Some(0x10) | None => Version::V0x10,
        Some(_) => return None,
    };
    let (kib, passes, lanes) = (params.get("m")?, params.get("t")?, params.get("p")?);
    if kib > MAX_MEMORY_KIB || kib.saturating_mul(passes) > MAX_WORK_KIB || lanes > MAX_LANES {
        return None;
    }
    let params = Params::new(kib, passes, lanes, Some(output_len)).ok()?;
    Some(Function::Argon2 { algorithm, version, params })
}

/// The cost of one scrypt hash.
#[derive(Clone, Copy)]
struct Scrypt {
    log_n: u8,
    r: u32,
    p: u32,
}

impl Scrypt {
    /// `ln` is the binary logarithm of N. Kratos writes N itself there, which is too large for a
    /// logarithm.
    fn read(params: &Numbers<'_>) -> Option<Self> {
        let log_n = match params.get("ln")? {
            log_n @ 1..32 => log_n,
            n if n.is_power_of_two() => n.ilog2(),
            _ => return None,
        };
        let cost = Self { log_n: u8::try_from(log_n).ok()?, r: params.get("r")?, p: params.get("p")? };
        let is_affordable = cost.memory_kib() <= MAX_MEMORY_KIB.into()
            && cost.p <= MAX_LANES
            && cost.work_kib() <= MAX_WORK_KIB.into();
        (is_affordable && scrypt::Params::new(cost.log_n, cost.r, cost.p).is_ok()).then_some(cost)
    }

    /// The memory of N blocks and of one more for each lane.
    fn memory_kib(self) -> u64 {
        u64::from(self.r).saturating_mul((1 << self.log_n) + u64::from(self.p)) / 8
    }

    fn work_kib(self) -> u64 {
        self.memory_kib().saturating_mul(self.p.into())
    }

    fn compute(self, password: &[u8], salt: &[u8], output: &mut [u8]) -> Option<()> {
        let params = scrypt::Params::new(self.log_n, self.r, self.p).ok()?;
        scrypt::scrypt(password, salt, &params, output).ok()
    }
}

/// Firebase's scrypt, as Kratos writes it: `$firescrypt$ln=…,r=…,p=…$salt$output$separator$signer`.
/// The output is the project's signer key, encrypted (AES-256-CTR) with the scrypt hash of the
/// password.
#[derive(Clone)]
pub(super) struct FirebaseScrypt {
    cost: Scrypt,
    /// Salt and separator.
    salt: Vec<u8>,
    output: Vec<u8>,
    signer: Vec<u8>,
}

impl FirebaseScrypt {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<_> = text.strip_prefix("$firescrypt$")?.split('$').collect();
        let [params, salt, output, separator, signer] = parts[..] else { return None };
        let cost = Scrypt::read(&Numbers::parse(params)?)?;
        let (mut salt, output, signer) = (bytes(salt)?, bytes(output)?, bytes(signer)?);
        salt.extend(bytes(separator)?);
        let is_complete = SALT_LENGTHS.contains(&salt.len()) && LENGTHS.contains(&output.len());
        (is_complete && output.len() == signer.len()).then_some(Self { cost, salt, output, signer })
    }

    pub(super) fn work(&self) -> u64 {
        self.cost.work_kib()
    }

    pub(super) fn memory_kib(&self) -> u32 {
        u32::try_from(self.cost.memory_kib()).unwrap_or(u32::MAX)
    }

    pub(super) fn matches(&self, password: &[u8]) -> bool {
        let mut key = [0; 32];
        if self.cost.compute(password, &self.salt, &mut key).is_none() {
            return false;
        }
        let mut computed = self.signer.clone();
        ctr::Ctr128BE::<aes::Aes256>::new(&key.into(), &[0; 16].into()).apply_keystream(&mut computed);
        computed.ct_eq(&self.output).into()
    }
}

/// Parses decimal digits only. Rust also accepts a plus sign, but the count by kind does not
/// (`src/account/hashes.sql`), and a kind that is not counted has no decoy.
pub(super) fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// `name=value,…`, with names of lower-case letters. passlib writes the rounds of PBKDF2 without
/// their name.
struct Numbers<'a>(Vec<(&'a str, u32)>);

impl<'a> Numbers<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        if let Some(rounds) = number(text) {
            return Some(Self(vec![("i", rounds)]));
        }
        let pairs = text.split(',').map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase());
            is_name.then_some(()).and(Some((name, number(value)?)))
        });
        pairs.collect::<Option<_>>().map(Self)
    }

    fn get(&self, name: &str) -> Option<u32> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

/// Base64, with or without padding; passlib writes `.` for `+`.
fn bytes(text: &str) -> Option<Vec<u8>> {
    STANDARD_NO_PAD.decode(text.trim_end_matches('=').replace('.', "+")).ok()
}
