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
    /// Each with how many hashes are of its kind or of one before.
    kinds: Vec<(u64, String)>,
    slowest: Slowest,
    price: u32,
}

impl Decoys {
    /// Ours beside the first and the second: as owners sign in and their hashes are made anew, decoys become ours, too, and
    /// none goes back, nor from one to the other. A hash never does, so such a decoy would say that nobody owns its address.
    pub(super) fn of(counts: &Counts, cost: Cost, memory_kib: u32) -> Self {
        let ours = cost.nobodys_hash();
        let mut slowest = Slowest::default();
        let mut usable = Vec::new();
        for (kind, count) in counts.iter().filter(|(kind, count)| **kind != ours && **count > 0) {
            if let Ok(stored) = Stored::parse(kind).and_then(|stored| stored.within(memory_kib)) {
                slowest.note(stored);
                usable.push((*count, kind.clone()));
            }
        }
        usable.insert(usable.len().min(1), (counts.get(&ours).copied().unwrap_or(0), ours));
        let mut below = 0;
        let kinds = usable.into_iter().map(|(count, kind)| {
            below += count;
            (below, kind)
        });
        Self { kinds: kinds.collect(), slowest, price: 1 }
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
        [(Cost::default().nobodys_hash(), ours), (BCRYPT.into(), bcrypt), ("5f4dcc3b5aa765d6".into(), 999)]
            .into()
    }

    fn mac(number: u64) -> [u8; 32] {
        crate::secret::Keys::from(crate::secret::Key::random("a"))
            .newest()
            .mac("test", &[&number.to_be_bytes()])
    }

    #[test]
    fn no_decoy_goes_from_one_of_two_foreign_kinds_to_the_other() {
        let ours = Cost::default().nobodys_hash();
        let macs: Vec<_> = (0..2000).map(mac).collect();
        let slower = BCRYPT.replace("$12$", "$13$");
        let of = |left: [u64; 2]| {
            let counts: Counts = [
                (ours.clone(), 1000 - left[0] - left[1]),
                (BCRYPT.into(), left[0]),
                (slower.clone(), left[1]),
            ]
            .into();
            let decoys = Decoys::of(&counts, Cost::default(), 1 << 20);
            macs.iter().map(|mac| decoys.of_address(mac).to_owned()).collect::<Vec<_>>()
        };
        for [earlier, later] in [[[500, 500], [500, 250]], [[500, 250], [100, 250]], [[100, 250], [100, 0]]] {
            let moved = of(earlier).into_iter().zip(of(later)).filter(|(earlier, later)| earlier != later);
            let moved: Vec<_> = moved.collect();
            assert!(moved.len() > 100 && moved.iter().all(|(_, later)| *later == ours), "{later:?}");
        }
    }

    #[test]
    fn decoys_are_as_many_of_each_kind_as_hashes_are_and_become_ours_as_those_do() {
        let macs: Vec<_> = (0..10_000).map(mac).collect();
        let bcrypt = |ours, others| -> Vec<_> {
            let decoys = Decoys::of(&counts(ours, others), Cost::default(), 1 << 20);
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
