//! HDR histograms of ticks, and their text form: base64 of HDR V2, deflated.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2DeflateSerializer};
use thiserror::Error;

/// Significant decimal digits.
const DIGITS: u8 = 3;
/// Longer samples count as this one: 2^42 ticks are a quarter of an hour and more.
const LONGEST: u64 = 1 << 42;

/// A histogram that cannot be read or written.
#[derive(Debug, Error)]
pub(crate) enum HistogramError {
    /// Not base64.
    #[error("a histogram is not base64")]
    Base64(#[from] base64::DecodeError),
    /// Not a histogram.
    #[error("what should be an HDR histogram is none: {0:?}")]
    Decode(hdrhistogram::serialization::DeserializeError),
    /// Cannot be written.
    #[error("cannot encode an HDR histogram: {0:?}")]
    Encode(hdrhistogram::serialization::V2DeflateSerializeError),
    /// Cannot be added up.
    #[error("cannot add HDR histograms: {0:?}")]
    Add(hdrhistogram::AdditionError),
}

/// An empty histogram.
pub(crate) fn new() -> Histogram<u64> {
    Histogram::new_with_max(LONGEST, DIGITS).expect("3 digits and this maximum are possible")
}

/// A histogram of `samples`, and how many of them were longer than it holds and count as the longest.
pub(crate) fn of(samples: impl IntoIterator<Item = u64>) -> (Histogram<u64>, u64) {
    let mut histogram = new();
    let mut out_of_range = 0;
    for sample in samples {
        if sample > LONGEST {
            out_of_range += 1;
        }
        histogram.saturating_record(sample);
    }
    (histogram, out_of_range)
}

/// All of them in one.
pub(crate) fn sum<'a>(
    parts: impl IntoIterator<Item = &'a Histogram<u64>>,
) -> Result<Histogram<u64>, HistogramError> {
    let mut all = new();
    for part in parts {
        all.add(part).map_err(HistogramError::Add)?;
    }
    Ok(all)
}

/// As text.
pub(crate) fn encode(histogram: &Histogram<u64>) -> Result<String, HistogramError> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(histogram, &mut bytes)
        .map_err(HistogramError::Encode)?;
    Ok(STANDARD.encode(bytes))
}

/// From text.
pub(crate) fn decode(text: &str) -> Result<Histogram<u64>, HistogramError> {
    let bytes = STANDARD.decode(text)?;
    Deserializer::new()
        .deserialize(&mut bytes.as_slice())
        .map_err(HistogramError::Decode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_keeps_a_histogram(samples in prop::collection::vec(1..1_u64 << 40, 0..50)) {
            let (histogram, out_of_range) = of(samples);
            prop_assert_eq!(out_of_range, 0);
            prop_assert_eq!(decode(&encode(&histogram).unwrap()).unwrap(), histogram);
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _decoded = decode(&text);
        }
    }

    #[test]
    fn samples_keep_their_size_up_to_the_longest() {
        let (histogram, out_of_range) = of([0, 14_050, u64::MAX]);
        assert_eq!((histogram.len(), out_of_range), (3, 1));
        assert_eq!(histogram.min(), 0);
        assert!(histogram.value_at_quantile(0.5).abs_diff(14_050) <= 14);
        assert!(histogram.max() >= LONGEST);
    }
}
