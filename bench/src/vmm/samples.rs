//! Repeated measurements, and tables of them.

use std::collections::BTreeMap;

use hypernest_nested::probe::{Item, Items};

use super::VmmError;

/// The median: of an even number, the lower of the middle two. `None` without values.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// The minimum. `None` without values.
pub(crate) fn least(values: &[f64]) -> Option<f64> {
    values.iter().copied().min_by(f64::total_cmp)
}

/// The values as `median (minimum - maximum)`.
pub(crate) fn spread(values: &[f64], decimals: usize) -> String {
    let greatest = values.iter().copied().max_by(f64::total_cmp);
    match (least(values), median(values), greatest) {
        (Some(least), Some(median), Some(greatest)) => {
            format!("{median:.decimals$} ({least:.decimals$} - {greatest:.decimals$})")
        }
        _ => "-".to_owned(),
    }
}

/// The ratio `ours / theirs`.
pub(crate) fn ratio(ours: Option<f64>, theirs: Option<f64>) -> String {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if theirs > 0.0 => format!("{:.2}x", ours / theirs),
        _ => "-".to_owned(),
    }
}

/// The median of every block of samples in the output of the guest program `exits`, in ticks.
pub(crate) fn medians(who: &'static str, stream: &[u8]) -> Result<BTreeMap<String, f64>, VmmError> {
    let mut medians = BTreeMap::new();
    for item in Items::new(stream) {
        let item = item.map_err(|source| VmmError::Malformed { who, source })?;
        if let Item::Samples(samples) = item {
            // Far below 2^53.
            let values: Vec<f64> = samples.iter().map(|ticks| ticks as f64).collect();
            if let Some(median) = median(&values) {
                medians.insert(samples.name.to_owned(), median);
            }
        }
    }
    if medians.is_empty() {
        return Err(VmmError::NoSamples { who });
    }
    Ok(medians)
}

/// A Markdown table.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let rule = vec!["---".to_owned(); head.len()];
    let mut text = line(&head) + &line(&rule);
    for row in rows {
        text.push_str(&line(row));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[9.0, 1.0, 5.0, 6.0]), Some(5.0));
        assert_eq!(spread(&[9.0, 1.0, 5.25], 1), "5.2 (1.0 - 9.0)");
        assert_eq!(spread(&[], 1), "-");
        assert_eq!(ratio(Some(1.0), Some(4.0)), "0.25x");
        assert_eq!(ratio(Some(1.0), Some(0.0)), "-");
        assert_eq!(ratio(None, Some(1.0)), "-");
    }

    #[test]
    fn a_table_is_markdown() {
        assert_eq!(
            table(&["a", "b"], &[vec!["1".to_owned(), "2".to_owned()]]),
            "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
        );
    }

    #[test]
    fn blocks_come_out_by_name_and_none_is_an_error() {
        use hypernest_nested::probe::{Width, samples_header};
        let mut stream = b"\0SeaBIOS says hello\n".to_vec();
        stream.extend(samples_header("pio-out", Width::Four, 3).unwrap());
        stream.extend(b"pio-out");
        for ticks in [7_u32, 1, 5] {
            stream.extend(ticks.to_le_bytes());
        }
        assert_eq!(medians("x", &stream).unwrap()["pio-out"], 5.0);
        assert!(matches!(
            medians("x", b"text\n"),
            Err(VmmError::NoSamples { .. })
        ));
        assert!(matches!(
            medians("x", b"\xffoops"),
            Err(VmmError::Malformed { .. })
        ));
    }
}
