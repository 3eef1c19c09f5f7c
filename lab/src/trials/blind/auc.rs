//! How well the times of two kinds of calls can be told apart: the area under the ROC curve (AUC).
//! At 0.5, they cannot.

use rand::RngExt as _;
use rand::rngs::SmallRng;

/// The number of resamples of the bootstrap.
const RESAMPLES: u32 = 200;

/// An estimated AUC and its confidence interval.
#[derive(Clone, Copy, Debug)]
pub struct Auc {
    pub at: f64,
    pub low: f64,
    pub high: f64,
}

impl Auc {
    /// The probability that a call of `one` takes longer than a call of `other`. The interval
    /// extends by `errors` standard errors to each side; the bootstrap estimates the standard
    /// error.
    pub fn of(one: &[f64], other: &[f64], errors: f64, random: &mut SmallRng) -> Self {
        let at = area(one, other);
        let resample = |from: &[f64], random: &mut SmallRng| -> Vec<f64> {
            from.iter().map(|_| from[random.random_range(0..from.len())]).collect()
        };
        let areas: Vec<_> =
            (0..RESAMPLES).map(|_| area(&resample(one, random), &resample(other, random))).collect();
        let mean = areas.iter().sum::<f64>() / f64::from(RESAMPLES);
        let variance = areas.iter().map(|area| (area - mean).powi(2)).sum::<f64>() / f64::from(RESAMPLES - 1);
        let half = errors * variance.sqrt();
        Self { at, low: at - half, high: at + half }
    }

    /// Whether the interval excludes 0.5, so that chance does not explain the difference.
    pub fn tells(&self) -> bool {
        self.low > 0.5 || self.high < 0.5
    }

    /// Whether the interval reaches farther from 0.5 than `bound`, so that it proves too little.
    pub fn is_wide(&self, bound: f64) -> bool {
        self.low < 0.5 - bound || self.high > 0.5 + bound
    }
}

/// The Mann–Whitney U divided by its maximum; ties count half.
fn area(one: &[f64], other: &[f64]) -> f64 {
    let mut all: Vec<_> = one.iter().map(|took| (*took, true)).collect();
    all.extend(other.iter().map(|took| (*took, false)));
    all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut wins) = (0.0, 0.0);
    for ties in all.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
        let ones = ties.iter().map(|(_, is_one)| f64::from(u8::from(*is_one))).sum::<f64>();
        let others = ties.iter().map(|(_, is_one)| f64::from(u8::from(!*is_one))).sum::<f64>();
        wins += ones * (below + others / 2.0);
        below += others;
    }
    wins / count(one) / count(other)
}

fn count(sample: &[f64]) -> f64 {
    sample.iter().map(|_| 1.0).sum()
}

/// The median, in the unit of the sample.
pub fn median(sample: &[f64]) -> f64 {
    let mut sorted = sample.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
