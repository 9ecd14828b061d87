//! HDR histograms of ticks, and their text form: base64 of HDR V2, deflated.

use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::ZlibDecoder;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{
    DeserializeError, Deserializer, Serializer as _, V2DeflateSerializer,
};
use thiserror::Error;

/// Significant decimal digits.
const DIGITS: u8 = 3;
/// Longer samples count as this one: 2^42 ticks are a quarter of an hour and more.
const LONGEST: u64 = 1 << 42;

/// An error when reading or writing a histogram.
#[derive(Debug, Error)]
pub(crate) enum HistogramError {
    #[error("a histogram is not base64")]
    Base64(#[from] base64::DecodeError),
    #[error("not an HDR histogram: {0:?}")]
    Decode(DeserializeError),
    /// Larger than any histogram of this program.
    #[error("an HDR histogram needs too much memory")]
    TooLarge,
    #[error("cannot encode an HDR histogram: {0:?}")]
    Encode(hdrhistogram::serialization::V2DeflateSerializeError),
    #[error("cannot add HDR histograms: {0:?}")]
    Add(hdrhistogram::AdditionError),
}

/// An empty histogram, which grows with its samples.
pub(crate) fn new() -> Histogram<u64> {
    Histogram::new(DIGITS).expect("3 digits are possible")
}

/// A histogram of `samples`, and the number of samples above the maximum, which count as the maximum.
pub(crate) fn of(samples: impl IntoIterator<Item = u64>) -> (Histogram<u64>, u64) {
    let mut histogram = new();
    let mut out_of_range = 0;
    for sample in samples {
        if sample > LONGEST {
            out_of_range += 1;
        }
        record(&mut histogram, sample, 1);
    }
    (histogram, out_of_range)
}

/// Adds `count` samples. A sample above the maximum counts as the maximum.
pub(crate) fn record(histogram: &mut Histogram<u64>, sample: u64, count: u64) {
    histogram
        .record_n(sample.min(LONGEST), count)
        .expect("a histogram can grow to 2^42");
}

/// The sum of several histograms.
pub(crate) fn sum<'a>(
    parts: impl IntoIterator<Item = &'a Histogram<u64>>,
) -> Result<Histogram<u64>, HistogramError> {
    let mut all = new();
    for part in parts {
        all.add(part).map_err(HistogramError::Add)?;
    }
    Ok(all)
}

/// The text form.
pub(crate) fn encode(histogram: &Histogram<u64>) -> Result<String, HistogramError> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(histogram, &mut bytes)
        .map_err(HistogramError::Encode)?;
    Ok(STANDARD.encode(bytes))
}

/// A histogram from its text form.
pub(crate) fn decode(text: &str) -> Result<Histogram<u64>, HistogramError> {
    let bytes = STANDARD.decode(text)?;
    // The deflated data begins after a cookie and a length.
    let (Some(COOKIE), Some(deflated)) = (bytes.first_chunk(), bytes.get(8..)) else {
        return Err(HistogramError::Decode(DeserializeError::InvalidCookie));
    };
    let mut header = [0; HEADER];
    ZlibDecoder::new(deflated)
        .read_exact(&mut header)
        .map_err(|e| HistogramError::Decode(e.into()))?;
    if !is_modest(&header) {
        return Err(HistogramError::TooLarge);
    }
    Deserializer::new()
        .deserialize(&mut bytes.as_slice())
        .map_err(HistogramError::Decode)
}

/// The cookie of deflated HDR V2.
const COOKIE: &[u8; 4] = &[0x1c, 0x84, 0x93, 0x14];
/// The header of HDR V2: cookie, length of the counts, offset, digits (4 bytes each), minimum and maximum
/// value (8 bytes each), all big-endian.
const HEADER: usize = 32;
/// The maximum length of the counts: 32 times 2^10 counts, up to 9 bytes each.
const MOST_COUNTS: u32 = 9 * (32 << 10);

/// Whether a histogram needs no more memory than this program's own. A reader allocates by the header before
/// it checks more.
fn is_modest(header: &[u8; HEADER]) -> bool {
    let number = |from: usize, bytes: usize| {
        let digits = header[from..from + bytes].iter();
        digits.fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    number(4, 4) <= u64::from(MOST_COUNTS)
        && number(12, 4) <= u64::from(DIGITS)
        && number(24, 8) <= LONGEST.next_power_of_two() * 2
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

    #[test]
    fn one_that_wants_much_memory_is_refused() {
        for (highest, digits) in [(1 << 20, 5), (1 << 50, 3)] {
            let mut large = Histogram::<u64>::new_with_max(highest, digits).unwrap();
            large.record(7).unwrap();
            let text = encode(&large).unwrap();
            assert!(matches!(decode(&text), Err(HistogramError::TooLarge)));
        }
        // Not deflated: its lengths have not been checked.
        let mut bytes = vec![0x1c, 0x84, 0x93, 0x13];
        bytes.extend(u32::MAX.to_be_bytes());
        bytes.extend([0; 40]);
        assert!(matches!(
            decode(&STANDARD.encode(&bytes)),
            Err(HistogramError::Decode(DeserializeError::InvalidCookie))
        ));
    }
}
