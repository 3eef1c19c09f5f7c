//! Decoys: the hashes that a password is verified against if the address has no usable hash. A
//! decoy is a hash of no password. Decoys have the schemes and costs of the stored hashes, in the
//! same proportions. The address alone decides which decoy it gets, so the hashing time of an
//! address does not show whether it has an account.

use std::collections::BTreeMap;

use super::{Cost, StoredHash};

/// The number of stored hashes of each kind. A kind is a hash of no password with the same scheme
/// and cost.
pub type Counts = BTreeMap<String, u64>;

/// The slowest hash of each scheme.
#[derive(Debug, Default)]
pub struct SlowestHashes(BTreeMap<&'static str, StoredHash>);

impl SlowestHashes {
    /// Records `stored` if it is slower than the recorded hash of its scheme.
    pub fn record(&mut self, stored: StoredHash) {
        match self.0.get(stored.kind()) {
            Some(slowest) if slowest.work() >= stored.work() => {}
            _ => drop(self.0.insert(stored.kind(), stored)),
        }
    }

    /// The slowest hash of each scheme.
    pub fn iter(&self) -> impl Iterator<Item = &StoredHash> {
        self.0.values()
    }
}

impl PartialEq for SlowestHashes {
    fn eq(&self, other: &Self) -> bool {
        let works = |slowest: &Self| -> Vec<_> {
            slowest.iter().map(|stored| (stored.kind(), stored.work(), stored.memory_kib())).collect()
        };
        works(self) == works(other)
    }
}

/// The decoys, in the proportions of the stored hashes.
#[derive(Debug)]
pub struct Decoys {
    /// The kinds, each with the end of its range.
    kinds: Vec<(u64, String)>,
    slowest: SlowestHashes,
    price: u32,
}

impl Decoys {
    /// Builds decoys from the current counts and those after the last import. Each foreign kind has
    /// a range as wide as its count after the import. Within it, decoys of that kind become decoys
    /// of the service's own kind as owners sign in and their hashes are replaced. No decoy changes
    /// back or from one foreign kind to another: a stored hash never does, so such a change would
    /// show that the address has no account.
    pub(super) fn new(counts: &Counts, after_import: &Counts, cost: Cost, memory_kib: u32) -> Self {
        let own_kind = cost.dummy_hash();
        let usable = |kind: &str| StoredHash::parse(kind).and_then(|stored| stored.within(memory_kib)).ok();
        let total = |counts: &Counts| -> u128 {
            counts
                .iter()
                .filter(|(kind, _)| usable(kind).is_some())
                .map(|(_, count)| u128::from(*count))
                .sum()
        };
        // More accounts make each kind rarer. Fewer accounts, after an erasure, make no kind more
        // frequent.
        let widths = total(after_import);
        let hashes = total(counts).max(widths);
        let mut slowest = SlowestHashes::default();
        let (mut range_end, mut kinds) = (0_u64, Vec::new());
        for (kind, range) in after_import.iter().filter(|(kind, _)| **kind != own_kind) {
            let Some(stored) = usable(kind) else { continue };
            let count = counts.get(kind).copied().unwrap_or(0);
            if count > 0 {
                slowest.record(stored);
                let width = (u128::from(count) * widths).div_ceil(hashes.max(1)).min(u128::from(*range));
                kinds.push((range_end.saturating_add(u64::try_from(width).unwrap_or(*range)), kind.clone()));
            }
            range_end = range_end.saturating_add(*range);
            kinds.push((range_end, own_kind.clone()));
        }
        let own_range = after_import.get(&own_kind).copied().unwrap_or(0);
        kinds.push((range_end.saturating_add(own_range), own_kind));
        Self { kinds, slowest, price: 1 }
    }

    pub(super) fn with_price(self, price: u32) -> Self {
        Self { price, ..self }
    }

    pub(super) fn slowest(&self) -> &SlowestHashes {
        &self.slowest
    }

    /// The units that a failed login draws from its network's bucket for each form of the password:
    /// the time of the slowest stored hash, in units of four of the service's own hashes, rounded
    /// up.
    #[must_use]
    pub fn price(&self) -> u32 {
        self.price
    }

    /// The decoy of an address, selected by a MAC of the address.
    #[must_use]
    pub fn for_address(&self, mac: &[u8; 32]) -> &str {
        let place = u64::from_be_bytes(std::array::from_fn(|n| mac[n]));
        let total = self.kinds.last().map_or(0, |(total, _)| *total);
        // Scales the MAC to 0..total.
        let place = u64::try_from((u128::from(place) * u128::from(total)) >> 64).unwrap_or(0);
        let kind = self.kinds.iter().find(|(below, _)| place < *below).or(self.kinds.first());
        kind.map_or("", |(_, kind)| kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCRYPT: &str = "$2b$12$.....................................................";

    fn counts(ours: u64, bcrypt: u64) -> Counts {
        // A plain digest is not usable, so no decoy is made of it.
        [(Cost::default().dummy_hash(), ours), (BCRYPT.into(), bcrypt), ("5f4dcc3b5aa765d6".into(), 999)]
            .into()
    }

    fn mac(number: u64) -> [u8; 32] {
        crate::secret::Keys::from(crate::secret::Key::random("a"))
            .newest()
            .mac("test", &[&number.to_be_bytes()])
    }

    #[test]
    fn no_decoy_changes_between_foreign_kinds_or_back() {
        let ours = Cost::default().dummy_hash();
        let macs: Vec<_> = (0..2000).map(mac).collect();
        let foreign = [10, 11, 12, 13].map(|cost| BCRYPT.replace("$12$", &format!("${cost}$")));
        let of = |left: [u64; 4], more: u64| {
            let (most, signed_in) = ([300, 100, 400, 200], 1000 - left.iter().sum::<u64>());
            let most: Counts = foreign.iter().cloned().zip(most).chain([(ours.clone(), 10)]).collect();
            let mut counts: Counts = foreign.iter().cloned().zip(left).collect();
            counts.insert(ours.clone(), signed_in + more);
            let decoys = Decoys::new(&counts, &most, Cost::default(), 1 << 20);
            macs.iter().map(|mac| decoys.for_address(mac).to_owned()).collect::<Vec<_>>()
        };
        let mut before = of([300, 100, 400, 200], 10);
        // An account with an own hash is erased: no kind is more frequent than before.
        assert!(of([300, 100, 400, 200], 9) == before);
        // Owners sign in, accounts are created, and one kind disappears.
        for (left, more) in [
            ([300, 100, 400, 100], 10),
            ([200, 100, 100, 100], 10),
            ([200, 90, 100, 100], 1000),
            ([200, 0, 50, 10], 1000),
        ] {
            let after = of(left, more);
            let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
            assert!(moved.len() > 50 && moved.iter().all(|(_, after)| **after == ours), "{left:?}");
            before = after;
        }
    }

    #[test]
    fn decoys_have_the_proportions_of_hashes_and_become_own_ones_as_those_do() {
        let macs: Vec<_> = (0..10_000).map(mac).collect();
        let bcrypt = |ours, others| -> Vec<_> {
            let most = if ours + others == 1000 { counts(100, 900) } else { counts(ours, others) };
            let decoys = Decoys::new(&counts(ours, others), &most, Cost::default(), 1 << 20);
            macs.iter().map(|mac| decoys.for_address(mac) == BCRYPT).collect()
        };
        let (before, after) = (bcrypt(100, 900), bcrypt(400, 600));
        let share = |is: &[bool]| is.iter().filter(|is| **is).count();
        assert!((8800..9200).contains(&share(&before)), "{}", share(&before));
        assert!((5800..6200).contains(&share(&after)), "{}", share(&after));
        assert!(before.iter().zip(&after).all(|(before, after)| *before || !after), "none goes back");
        assert_eq!(share(&bcrypt(0, 0)), 0, "with nothing stored, all are ours");
        assert_eq!(share(&bcrypt(1, 0)), 0);
        assert_eq!(share(&bcrypt(0, 1)), 10_000);
    }
}
