//! What an address without a usable hash is verified against: a hash of nothing, of a scheme and cost that is stored, as
//! often as that is. Which one is a matter of the address alone, so that an address occupies the hashing threads for as
//! long whoever owns it.

use std::collections::BTreeMap;

use super::{Cost, Stored};

/// The kinds of hashes that are stored, each as a hash of nothing at its cost, and how many there are of each.
pub type Counts = BTreeMap<String, u64>;

/// The slowest hash of each scheme.
#[derive(Debug, Default)]
pub struct Slowest(BTreeMap<&'static str, Stored>);

impl Slowest {
    /// Looks at one more.
    pub fn note(&mut self, stored: Stored) {
        match self.0.get(stored.kind()) {
            Some(slowest) if slowest.work() >= stored.work() => {}
            _ => drop(self.0.insert(stored.kind(), stored)),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Stored> {
        self.0.values()
    }
}

impl PartialEq for Slowest {
    fn eq(&self, other: &Self) -> bool {
        let works = |slowest: &Self| -> Vec<_> {
            slowest.iter().map(|stored| (stored.kind(), stored.work(), stored.memory_kib())).collect()
        };
        works(self) == works(other)
    }
}

/// The decoys of one service, in the proportions of what is stored.
#[derive(Debug)]
pub struct Decoys {
    /// Each with where its range ends.
    kinds: Vec<(u64, String)>,
    slowest: Slowest,
    price: u32,
}

impl Decoys {
    /// Each foreign kind has a range of its own, as wide as it was after the last import (`most`), and ours beside it within that
    /// range: as owners sign in and their hashes are made anew, decoys become ours, too, and none goes back, nor from one foreign
    /// kind to another. A hash never does, so such a decoy would say that nobody owns its address.
    pub(super) fn of(counts: &Counts, most: &Counts, cost: Cost, memory_kib: u32) -> Self {
        let ours = cost.dummy_hash();
        let usable = |kind: &str| Stored::parse(kind).and_then(|stored| stored.within(memory_kib)).ok();
        let total = |counts: &Counts| -> u128 {
            counts
                .iter()
                .filter(|(kind, _)| usable(kind).is_some())
                .map(|(_, count)| u128::from(*count))
                .sum()
        };
        // More accounts make each kind rarer; fewer, as one was erased, make none more frequent.
        let (widths, hashes) = (total(most), total(counts).max(total(most)));
        let mut slowest = Slowest::default();
        let (mut below, mut kinds) = (0_u64, Vec::new());
        for (kind, most) in most.iter().filter(|(kind, _)| **kind != ours) {
            let Some(stored) = usable(kind) else { continue };
            let count = counts.get(kind).copied().unwrap_or(0);
            if count > 0 {
                slowest.note(stored);
                let width = (u128::from(count) * widths).div_ceil(hashes.max(1)).min(u128::from(*most));
                kinds.push((below.saturating_add(u64::try_from(width).unwrap_or(*most)), kind.clone()));
            }
            below = below.saturating_add(*most);
            kinds.push((below, ours.clone()));
        }
        kinds.push((below.saturating_add(most.get(&ours).copied().unwrap_or(0)), ours));
        Self { kinds, slowest, price: 1 }
    }

    pub(super) fn at(self, price: u32) -> Self {
        Self { price, ..self }
    }

    pub(super) fn slowest(&self) -> &Slowest {
        &self.slowest
    }

    /// How many times as long as a hash of ours the slowest takes that is stored, rounded up: what a failed login draws on
    /// its network's bucket.
    #[must_use]
    pub fn price(&self) -> u32 {
        self.price
    }

    /// The decoy of an address, by a MAC of it.
    #[must_use]
    pub fn of_address(&self, mac: &[u8; 32]) -> &str {
        let place = u64::from_be_bytes(std::array::from_fn(|n| mac[n]));
        let total = self.kinds.last().map_or(0, |(total, _)| *total);
        // A place in 0..total, as far from its start as the MAC is from 0.
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
        // A plain digest is of no password, so that nothing is verified against it.
        [(Cost::default().dummy_hash(), ours), (BCRYPT.into(), bcrypt), ("5f4dcc3b5aa765d6".into(), 999)]
            .into()
    }

    fn mac(number: u64) -> [u8; 32] {
        crate::secret::Keys::from(crate::secret::Key::random("a"))
            .newest()
            .mac("test", &[&number.to_be_bytes()])
    }

    #[test]
    fn no_decoy_goes_from_one_foreign_kind_to_another_or_back() {
        let ours = Cost::default().dummy_hash();
        let macs: Vec<_> = (0..2000).map(mac).collect();
        let foreign = [10, 11, 12, 13].map(|cost| BCRYPT.replace("$12$", &format!("${cost}$")));
        let of = |left: [u64; 4], more: u64| {
            let (most, signed_in) = ([300, 100, 400, 200], 1000 - left.iter().sum::<u64>());
            let most: Counts = foreign.iter().cloned().zip(most).chain([(ours.clone(), 10)]).collect();
            let mut counts: Counts = foreign.iter().cloned().zip(left).collect();
            counts.insert(ours.clone(), signed_in + more);
            let decoys = Decoys::of(&counts, &most, Cost::default(), 1 << 20);
            macs.iter().map(|mac| decoys.of_address(mac).to_owned()).collect::<Vec<_>>()
        };
        let mut before = of([300, 100, 400, 200], 10);
        // One of ours is erased: no kind is more frequent than before.
        assert!(of([300, 100, 400, 200], 9) == before);
        // Owners sign in, accounts are made, and one kind is gone in the end.
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
    fn decoys_are_as_many_of_each_kind_as_hashes_are_and_become_ours_as_those_do() {
        let macs: Vec<_> = (0..10_000).map(mac).collect();
        let bcrypt = |ours, others| -> Vec<_> {
            let most = if ours + others == 1000 { counts(100, 900) } else { counts(ours, others) };
            let decoys = Decoys::of(&counts(ours, others), &most, Cost::default(), 1 << 20);
            macs.iter().map(|mac| decoys.of_address(mac) == BCRYPT).collect()
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
