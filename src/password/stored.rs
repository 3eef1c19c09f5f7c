//! Stored hashes of every scheme that is taken over: Argon2, bcrypt, PBKDF2, scrypt. New ones are Argon2id alone.

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use subtle::ConstantTimeEq as _;

use super::Memory;

/// The dearest hashes that are still computed: a stored string must not be able to stop the service.
const MAX_MEMORY_KIB: u32 = 1 << 20;
/// Memory that a thread keeps from one hash to the next, at most, for hashes of other systems.
const KEPT_KIB: u32 = 64 << 10;
/// Memory times passes: a second or two.
const MAX_WORK_KIB: u32 = 4 << 20;
const MAX_LANES: u32 = 64;
const MAX_PBKDF2_ROUNDS: u32 = 2_000_000;
const MAX_BCRYPT_COST: u32 = 16;
/// Lengths of salts and hashes, in octets.
const LENGTHS: std::ops::RangeInclusive<usize> = 10..=1024;

/// Whether `stored` was made of `password`. A string that is of no known scheme, broken, or too dear to compute is of no
/// password.
pub(super) fn matches(stored: &str, password: &[u8], memory: &mut Memory) -> bool {
    if let Some(cost) = ["$2a$", "$2b$", "$2y$"].iter().find_map(|version| stored.strip_prefix(version)) {
        let cost = cost.split('$').next().and_then(|cost| cost.parse::<u32>().ok());
        return cost.is_some_and(|cost| cost <= MAX_BCRYPT_COST)
            && bcrypt::verify(password, stored).unwrap_or(false);
    }
    let Some(hash) = Phc::parse(stored) else { return false };
    let mut computed = vec![0; hash.output.len()];
    hash.compute(password, &mut computed, memory).is_some_and(|()| computed.ct_eq(&hash.output).into())
}

/// The parts of a PHC string: `$id[$v=version]$name=value,…$salt$output`, base64 without padding.
struct Phc<'a> {
    id: &'a str,
    version: Option<u32>,
    params: Vec<(&'a str, u32)>,
    salt: Vec<u8>,
    output: Vec<u8>,
}

impl<'a> Phc<'a> {
    fn parse(stored: &'a str) -> Option<Self> {
        let mut parts = stored.strip_prefix('$')?.split('$').peekable();
        let id = parts.next()?;
        let version = parts.next_if(|part| part.starts_with("v=")).map(|part| part[2..].parse());
        let params = parts.next()?.split(',').map(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((name, value.parse().ok()?))
        });
        let params = params.collect::<Option<Vec<_>>>()?;
        let mut bytes = || STANDARD_NO_PAD.decode(parts.next()?.trim_end_matches('=')).ok();
        let (salt, output) = (bytes()?, bytes()?);
        let whole = parts.next().is_none() && (8..=*LENGTHS.end()).contains(&salt.len());
        (whole && LENGTHS.contains(&output.len())).then_some(Self {
            id,
            version: version.transpose().ok()?,
            params,
            salt,
            output,
        })
    }

    fn param(&self, name: &str) -> Option<u32> {
        self.params.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    fn compute(&self, password: &[u8], output: &mut [u8], memory: &mut Memory) -> Option<()> {
        match self.id {
            "argon2i" | "argon2d" | "argon2id" => self.argon2(password, output, memory),
            "pbkdf2-sha1" | "pbkdf2-sha256" | "pbkdf2-sha512" => self.pbkdf2(password, output),
            "scrypt" => self.scrypt(password, output),
            _ => None,
        }
    }

    fn argon2(&self, password: &[u8], output: &mut [u8], memory: &mut Memory) -> Option<()> {
        let algorithm = self.id.parse::<Algorithm>().ok()?;
        let version = match self.version {
            Some(0x13) => Version::V0x13,
            // RFC 9106's predecessor wrote none.
            Some(0x10) | None => Version::V0x10,
            Some(_) => return None,
        };
        let (kib, passes, lanes) = (self.param("m")?, self.param("t")?, self.param("p")?);
        if kib > MAX_MEMORY_KIB || kib.saturating_mul(passes) > MAX_WORK_KIB || lanes > MAX_LANES {
            return None;
        }
        let params = Params::new(kib, passes, lanes, Some(output.len())).ok()?;
        // A dearer hash than ours has memory of its own, which goes with it.
        let mut own = Memory::default();
        let memory = if kib > KEPT_KIB { &mut own } else { memory };
        let blocks = memory.blocks(params.block_count());
        Argon2::new(algorithm, version, params)
            .hash_password_into_with_memory(password, &self.salt, output, blocks)
            .ok()
    }

    fn pbkdf2(&self, password: &[u8], output: &mut [u8]) -> Option<()> {
        let rounds = self.param("i").filter(|rounds| (1..=MAX_PBKDF2_ROUNDS).contains(rounds))?;
        match self.id {
            "pbkdf2-sha1" => pbkdf2::pbkdf2_hmac::<sha1::Sha1>(password, &self.salt, rounds, output),
            "pbkdf2-sha256" => pbkdf2::pbkdf2_hmac::<sha2::Sha256>(password, &self.salt, rounds, output),
            _ => pbkdf2::pbkdf2_hmac::<sha2::Sha512>(password, &self.salt, rounds, output),
        }
        Some(())
    }

    fn scrypt(&self, password: &[u8], output: &mut [u8]) -> Option<()> {
        // `ln` is the binary logarithm of N. The incumbent writes N itself there, which no logarithm can be.
        let log_n = match self.param("ln")? {
            log_n if log_n < 32 => log_n,
            n if n.is_power_of_two() => n.ilog2(),
            _ => return None,
        };
        let (r, p) = (self.param("r")?, self.param("p")?);
        let memory_kib = (u64::from(r) << log_n) / 8;
        if memory_kib > u64::from(MAX_MEMORY_KIB) || p > MAX_LANES {
            return None;
        }
        let params = scrypt::Params::new(u8::try_from(log_n).ok()?, r, p).ok()?;
        scrypt::scrypt(password, &self.salt, &params, output).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by other implementations: Python's hashlib (OpenSSL), the reference Argon2 in C, and the `bcrypt` module.
    const VECTORS: [&str; 12] = [
        "$pbkdf2-sha1$i=1000,l=32$AAECAwQFBgcICQoLDA0ODw$f4m2wZN2Wd6yr6GxLNv0aG/B6gBIXTZs+TRFOL6p8ZA",
        "$pbkdf2-sha256$i=1000,l=32$AAECAwQFBgcICQoLDA0ODw$1ais+Zz5CUXaRLw2+GrgweO3OApy5eAfNTy6HdYbqYA",
        "$pbkdf2-sha512$i=1000,l=32$AAECAwQFBgcICQoLDA0ODw$Zg4W+fVYAftm35H5nSkySv2lQX8Cd9v1izvITn+R5xU",
        "$scrypt$ln=10,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$cPsJpRNXzsFVdD6TOvXUn8kwnoJjd5+ZO9B5w3HALG4",
        "$scrypt$ln=1024,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$cPsJpRNXzsFVdD6TOvXUn8kwnoJjd5+ZO9B5w3HALG4",
        "$argon2i$v=19$m=1024,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$PMCWVYWOh5ccnR0o0iGourWPgMEqzOwseBF5xRPG3ws",
        "$argon2d$v=19$m=1024,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$mFRrlzC9Kvyp8sl9GMJ/3E6NyUrd83tfse7Z8yYOoHk",
        "$argon2id$v=19$m=1024,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$0o5OID1MxUf2ag4jaVy/3Gcgf7RyJ6Ia3jYFblKkQw0",
        "$argon2id$v=16$m=1024,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$eMqax1ncqLYnLoQNTQT3QXn873T1xomSSo+OmuvkwXQ",
        "$2b$04$oGfom7.iTdry90Ty.skkGuGe6sVSG7rM5WGnqVPXcx7qLzZlGCSiO",
        "$2a$04$7HSvuyuwy8oEavtvaqTO/OSD9mLLEMRso2.Xg43AIr/1xVHIjw4gG",
        "$2y$04$oGfom7.iTdry90Ty.skkGuGe6sVSG7rM5WGnqVPXcx7qLzZlGCSiO",
    ];

    #[test]
    fn hashes_of_other_systems_verify() {
        for stored in VECTORS {
            assert!(matches(stored, b"con meo treo cay cau", &mut Memory::default()), "{stored}");
            assert!(!matches(stored, b"con meo treo cay chuoi", &mut Memory::default()), "{stored}");
        }
    }

    #[test]
    fn what_is_broken_or_too_dear_is_of_no_password() {
        for stored in [
            "",
            "$",
            "$argon2id",
            "plain",
            "$2b$31$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234",
            "$2b$04$short",
            "$2b$é",
            "$argon2id$v=19$m=4294967295,t=3,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=19$m=65536,t=4000000000,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=18$m=65536,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$",
            "$pbkdf2-sha256$i=4294967295$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$pbkdf2-sha256$i=0$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$scrypt$ln=31,r=4000000000,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$scrypt$ln=16385,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$scrypt$ln=0,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$md5$x=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert!(!matches(stored, b"password", &mut Memory::default()), "{stored}");
        }
    }
}
