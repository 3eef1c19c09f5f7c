//! Stored hashes of every scheme that is taken over: Argon2, bcrypt, PBKDF2, scrypt. New ones are Argon2id alone.

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use subtle::ConstantTimeEq as _;

use super::Memory;

/// The dearest hashes that are still computed: a stored string must not be able to stop the service.
const DEAREST: Effort = Effort { memory_kib: 1 << 20, steps: 4 << 20 };
/// Memory that a thread keeps from one hash to the next, at most, for hashes of other systems.
const KEPT_KIB: u32 = 64 << 10;
const MAX_LANES: u32 = 64;
/// Lengths of salts and hashes, in octets.
const LENGTHS: std::ops::RangeInclusive<usize> = 10..=1024;

/// What it takes to compute a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Memory in KiB.
    pub memory_kib: u64,
    /// Steps of about a microsecond: a KiB that Argon2 fills, half of one that scrypt fills, an HMAC of PBKDF2, a 64th of
    /// a round of bcrypt.
    pub steps: u64,
}

/// What it takes to compute `stored`; `None` if it is of no known scheme, broken, or too dear to compute.
#[must_use]
pub fn effort(stored: &str) -> Option<Effort> {
    let effort = match after_bcrypt(stored) {
        Some(rest) => {
            let cost = rest.split('$').next()?.parse::<u32>().ok().filter(|cost| *cost < 32)?;
            Effort { memory_kib: 4, steps: 64 << cost }
        }
        None => Phc::parse(stored)?.effort()?,
    };
    (effort.memory_kib <= DEAREST.memory_kib && effort.steps <= DEAREST.steps).then_some(effort)
}

/// Whether `stored` was made of `password`. One that has no [`effort`] is of no password.
#[must_use]
pub fn matches(stored: &str, password: &[u8], memory: &mut Memory) -> bool {
    if effort(stored).is_none() {
        return false;
    }
    if after_bcrypt(stored).is_some() {
        return bcrypt::verify(password, stored).unwrap_or(false);
    }
    let Some(hash) = Phc::parse(stored) else { return false };
    let mut computed = vec![0; hash.output.len()];
    hash.compute(password, &mut computed, memory).is_some_and(|()| computed.ct_eq(&hash.output).into())
}

/// What follows the name of bcrypt, if that is the scheme.
fn after_bcrypt(stored: &str) -> Option<&str> {
    ["$2a$", "$2b$", "$2y$"].iter().find_map(|version| stored.strip_prefix(version))
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

    fn effort(&self) -> Option<Effort> {
        let param = |name| self.param(name).map(u64::from);
        let (memory_kib, steps) = match self.id {
            "argon2i" | "argon2d" | "argon2id" => (param("m")?, param("m")?.saturating_mul(param("t")?)),
            "pbkdf2-sha1" => (0, self.pbkdf2_steps(20)?),
            "pbkdf2-sha256" => (0, self.pbkdf2_steps(32)?),
            "pbkdf2-sha512" => (0, self.pbkdf2_steps(64)?),
            "scrypt" => {
                let (n, r, p) = (1u64 << self.scrypt_log_n()?, param("r")?, param("p")?);
                (r.saturating_mul(n + p) / 8, r.saturating_mul(n).saturating_mul(p) / 4)
            }
            _ => return None,
        };
        Some(Effort { memory_kib, steps })
    }

    /// Every block of the output costs all the rounds.
    fn pbkdf2_steps(&self, block: usize) -> Option<u64> {
        let blocks = u64::try_from(self.output.len().div_ceil(block)).ok()?;
        Some(u64::from(self.param("i")?).saturating_mul(blocks))
    }

    /// The binary logarithm of scrypt's N, which `ln` is. The incumbent writes N itself there, which no logarithm can be.
    fn scrypt_log_n(&self) -> Option<u32> {
        match self.param("ln")? {
            log_n if log_n < 32 => Some(log_n),
            n => n.is_power_of_two().then(|| n.ilog2()),
        }
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
        if lanes > MAX_LANES {
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
        let rounds = self.param("i").filter(|rounds| *rounds > 0)?;
        match self.id {
            "pbkdf2-sha1" => pbkdf2::pbkdf2_hmac::<sha1::Sha1>(password, &self.salt, rounds, output),
            "pbkdf2-sha256" => pbkdf2::pbkdf2_hmac::<sha2::Sha256>(password, &self.salt, rounds, output),
            _ => pbkdf2::pbkdf2_hmac::<sha2::Sha512>(password, &self.salt, rounds, output),
        }
        Some(())
    }

    fn scrypt(&self, password: &[u8], output: &mut [u8]) -> Option<()> {
        let (log_n, r, p) = (self.scrypt_log_n()?, self.param("r")?, self.param("p")?);
        if p > MAX_LANES {
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
            // Within bounds by rounds or by memory alone: 52 blocks of output, 64 lanes, 32 GiB beside V.
            &format!("$pbkdf2-sha1$i=2000000$AAAAAAAAAAAAAAAAAAAAAA${}", "A".repeat(1364)),
            "$scrypt$ln=20,r=8,p=64$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$scrypt$ln=1,r=4194304,p=64$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$md5$x=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert!(!matches(stored, b"password", &mut Memory::default()), "{stored}");
        }
    }
}
