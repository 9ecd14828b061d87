//! Axes of a plot.

/// Maps values to positions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    from: f64,
    to: f64,
    /// The positions of both ends.
    places: [f64; 2],
    logarithmic: bool,
}

/// Up to this ratio of its ends a logarithmic axis has ticks at equal distances, and beyond it at 1, 2 and 5.
const NARROW: f64 = 8.0;

impl Axis {
    /// A linear axis from `from` to `to`.
    pub(crate) fn linear(from: f64, to: f64, first: f64, last: f64) -> Self {
        Self {
            from,
            to: if to > from { to } else { from + 1.0 },
            places: [first, last],
            logarithmic: false,
        }
    }

    /// An axis for values from `least` to `most`, with a margin: logarithmic, unless a value is 0.
    pub(crate) fn logarithmic(least: f64, most: f64, first: f64, last: f64) -> Self {
        if least > 0.0 && most >= least && most.is_finite() {
            return Self {
                from: least / 1.05,
                to: most * 1.05,
                places: [first, last],
                logarithmic: true,
            };
        }
        let air = ((most - least) * 0.06).max(most * 0.005).max(1e-9);
        Self::linear((least - air).max(0.0), most + air, first, last)
    }

    pub(crate) fn is_logarithmic(&self) -> bool {
        self.logarithmic
    }

    /// The position of a value.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let part = if self.logarithmic {
            (value.max(self.from) / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        self.places[0] + part * (self.places[1] - self.places[0])
    }

    /// Round values along the axis.
    pub(crate) fn ticks(&self) -> Vec<f64> {
        let range = self.to - self.from;
        let mut ticks = Vec::new();
        if self.logarithmic && self.to / self.from > NARROW {
            let few = (self.to / self.from).log10() > 3.0;
            let steps: &[f64] = if few { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let mut decade = 10_f64.powf(self.from.log10().floor());
            while decade <= self.to && ticks.len() < 40 {
                ticks.extend(steps.iter().map(|step| step * decade));
                decade *= 10.0;
            }
        } else {
            let rough = range / 6.0;
            let power = 10_f64.powf(rough.log10().floor());
            let factor = [1.0, 2.0, 5.0, 10.0]
                .into_iter()
                .find(|factor| factor * power >= rough);
            let step = factor.unwrap_or(10.0) * power;
            let first = (self.from / step).ceil();
            ticks.extend((0..40).map(|n| (first + f64::from(n)) * step));
        }
        ticks.retain(|tick| (self.from..=self.to).contains(tick));
        ticks
    }
}

/// The position of a quantile of `samples`: each further nine is at the same distance from the one before.
/// The last sample is placed half a sample before the end, which is infinitely far.
pub(crate) fn percentile(q: f64, samples: u64) -> f64 {
    let least = 0.5 / (samples.max(1) as f64);
    -(1.0 - q).max(least).log10()
}

/// The quantiles with a mark, and their names.
pub(crate) fn decades(samples: u64) -> Vec<(f64, String)> {
    let mut marks = vec![(0.0, "0 %".to_owned()), (0.5, "50 %".to_owned())];
    let most = percentile(1.0, samples);
    let mut beyond = 0.1;
    let mut nines = 0_usize;
    while -f64::log10(beyond) <= most && nines < 12 {
        let name = if nines < 2 {
            format!("{:.0} %", (1.0 - beyond) * 100.0)
        } else {
            format!("99.{} %", "9".repeat(nines - 1))
        };
        marks.push((1.0 - beyond, name));
        beyond /= 10.0;
        nines += 1;
    }
    marks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ticks_are_round() {
        let axis = Axis::linear(0.0, 100.0, 0.0, 1.0);
        assert_eq!(axis.ticks(), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        let axis = Axis::logarithmic(100.0, 5000.0, 0.0, 1.0);
        assert!(axis.is_logarithmic());
        assert_eq!(axis.ticks(), [100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0]);
        let narrow = Axis::logarithmic(100.0, 700.0, 0.0, 1.0);
        assert!(narrow.is_logarithmic());
        assert_eq!(narrow.ticks(), [200.0, 400.0, 600.0]);
        assert!(!Axis::logarithmic(0.0, 700.0, 0.0, 1.0).is_logarithmic());
    }

    #[test]
    fn each_nine_is_as_far_as_the_one_before() {
        let names = |samples| -> Vec<String> {
            decades(samples).into_iter().map(|(_, name)| name).collect()
        };
        assert_eq!(names(600), ["0 %", "50 %", "90 %", "99 %", "99.9 %"]);
        assert_eq!(names(1), ["0 %", "50 %"]);
        assert!((percentile(0.99, 1000) - 2.0).abs() < 1e-9);
        assert!((percentile(1.0, 500) - 3.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn every_value_has_a_place_between_the_ends(least in 0.0..1e12_f64, more in 0.0..1e12_f64,
            part in 0.0..1.0_f64) {
            let most = least + more;
            let axis = Axis::logarithmic(least, most, 400.0, 50.0);
            let place = axis.place(least + part * more);
            prop_assert!((49.9..=400.1).contains(&place), "{}", place);
            prop_assert!(axis.ticks().len() <= 40);
        }
    }
}
