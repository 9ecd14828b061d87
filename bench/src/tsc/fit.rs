//! A line through arrivals: the relation of two clocks, when every sample of one arrives late by an unknown
//! time.

/// A clock against the host's: `host = clock + offset + slope * clock`, both in ns from the first sample on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fit {
    first: (f64, f64),
    offset: f64,
    slope: f64,
    /// The uncertainty of the drift, in ppm: the error if the first and the last sample were as late as the
    /// median one, in opposite directions.
    pub(super) about_ppm: f64,
    /// The delay of the median arrival against the earliest ones, in ns.
    pub(super) noise_ns: f64,
}

/// The minimum number of samples.
const LEAST: usize = 8;

impl Fit {
    /// A line through `samples` of (clock, host) in ns. A sample cannot arrive before it was taken, so the
    /// line is the one below all of them that is nearest to them (Moon, Skelly and Towsley, "Estimation and
    /// removal of clock skew from network delay measurements", 1999): an edge of their lower hull. `None` if
    /// there are too few.
    pub(super) fn of(samples: &[(f64, f64)]) -> Option<Self> {
        let first = *samples.first()?;
        let mut points: Vec<(f64, f64)> = samples
            .iter()
            .map(|&(clock, host)| {
                let x = clock - first.0;
                (x, host - first.1 - x)
            })
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .collect();
        if points.len() < LEAST {
            return None;
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        // Of simultaneous samples only the earliest arrival counts.
        points.dedup_by(|later, kept| later.0 <= kept.0);
        let hull = lower_hull(&points);
        let mean = points.iter().map(|p| p.0).sum::<f64>() / points.len() as f64;
        let edge = hull
            .windows(2)
            .find(|edge| edge[0].0 <= mean && mean <= edge[1].0)?;
        let slope = (edge[1].1 - edge[0].1) / (edge[1].0 - edge[0].0);
        let offset = edge[0].1 - slope * edge[0].0;
        let span = points.last()?.0 - points.first()?.0;
        let mut late: Vec<f64> = points.iter().map(|(x, y)| y - offset - slope * x).collect();
        late.sort_by(f64::total_cmp);
        let noise_ns = late[late.len() / 2];
        let fit = Self {
            first,
            offset,
            slope,
            about_ppm: 2.0 * noise_ns / span * 1e6,
            noise_ns,
        };
        (slope.is_finite() && slope > -1.0).then_some(fit)
    }

    /// The host's time at which the clock had the value `clock`.
    pub(super) fn host(&self, clock: f64) -> f64 {
        let x = clock - self.first.0;
        self.first.1 + x + self.offset + self.slope * x
    }

    /// The rate of the clock less the host's, in parts per million.
    pub(super) fn drift_ppm(&self) -> f64 {
        -self.slope / (1.0 + self.slope) * 1e6
    }
}

/// The lower hull of points sorted by their first coordinate (Andrew's monotone chain).
fn lower_hull(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut hull: Vec<(f64, f64)> = Vec::new();
    for &point in points {
        while let [.., a, b] = hull.as_slice() {
            let turn = (b.0 - a.0) * (point.1 - a.1) - (b.1 - a.1) * (point.0 - a.0);
            if turn > 0.0 {
                break;
            }
            hull.pop();
        }
        hull.push(point);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Samples every 5 ms, `count` of them, with pseudorandom delays, some of which are long.
    fn samples(drift_ppm: f64, count: u32) -> Vec<(f64, f64)> {
        let mut state = 12_345_u64;
        (0..count)
            .map(|n| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let random = (state >> 33) as f64 / f64::from(1 << 31);
                let late =
                    2_000.0 + 20_000.0 * random * random + if n % 17 == 3 { 3e6 } else { 0.0 };
                let host = f64::from(n) * 5e6;
                (7e9 + host * (1.0 + drift_ppm / 1e6), 1e9 + host + late)
            })
            .collect()
    }

    #[test]
    fn a_drift_is_found_under_noise() {
        for drift in [0.0, 3.0, -40.0, 250.0] {
            let fit = Fit::of(&samples(drift, 400)).unwrap();
            assert!((fit.drift_ppm() - drift).abs() < 1.0, "{drift}: {fit:?}");
            assert!((fit.drift_ppm() - drift).abs() < fit.about_ppm * 3.0 + 0.1);
            assert!(fit.noise_ns < 20_000.0);
            // The line is below every arrival, and near the earliest ones.
            for (clock, host) in samples(drift, 400) {
                assert!(fit.host(clock) <= host + 1.0);
            }
        }
    }

    #[test]
    fn a_few_samples_say_nothing() {
        assert_eq!(Fit::of(&samples(0.0, 7)), None);
        assert_eq!(Fit::of(&[]), None);
        // A clock that stands still has no rate.
        assert_eq!(Fit::of(&[(5.0, 1.0); 20]), None);
    }

    proptest! {
        #[test]
        fn no_samples_panic(samples in prop::collection::vec((any::<f64>(), any::<f64>()), 0..40)) {
            if let Some(fit) = Fit::of(&samples) {
                let _drift = (fit.drift_ppm(), fit.host(samples[0].0));
            }
        }
    }
}
