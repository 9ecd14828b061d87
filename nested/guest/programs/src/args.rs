//! The command line: words, `name=value`, and `name="value with blanks"`.

/// The programs, in display order.
pub(crate) const PROGRAMS: [&str; 19] = [
    "hello",
    "hvdump",
    "hvtest",
    "l2",
    "exits",
    "l1",
    "evmcs-rules",
    "fault",
    "crash",
    "reset",
    "power",
    "ending",
    "storm",
    "keep",
    "kvmclock",
    "reenlighten",
    "tsc",
    "beat",
    "fwcfg",
];

/// A command line. Words before the program's name (loaders put the image's file name there) are skipped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Args<'a> {
    program: Option<&'a str>,
    rest: &'a str,
}

impl<'a> Args<'a> {
    pub(crate) fn new(line: &'a str) -> Self {
        let mut words = Words(line);
        while let Some(word) = words.next() {
            if PROGRAMS.contains(&word) {
                return Self {
                    program: Some(word),
                    rest: words.0,
                };
            }
        }
        Self {
            program: None,
            rest: "",
        }
    }

    pub(crate) const fn program(&self) -> Option<&'a str> {
        self.program
    }

    /// The words after the program's name.
    pub(crate) const fn words(&self) -> Words<'a> {
        Words(self.rest)
    }

    /// Whether `name` is one of the words.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.words().any(|word| word == name)
    }

    /// The value after `name=`; the last one takes precedence.
    pub(crate) fn value(&self, name: &str) -> Option<&'a str> {
        let values = self
            .words()
            .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        values.last().map(|value| {
            value
                .strip_prefix('"')
                .and_then(|v| v.strip_suffix('"'))
                .unwrap_or(value)
        })
    }

    /// The number after `name=`, decimal or `0x` hexadecimal; `Err` contains an invalid number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, &'a str> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        let parsed = match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => value.parse(),
        };
        parsed.map(Some).map_err(|_| value)
    }
}

/// Blank-separated words; a blank between double quotes does not separate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Words<'a>(&'a str);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let line = self.0.trim_ascii_start();
        if line.is_empty() {
            return None;
        }
        let mut quoted = false;
        let end = line.find(|c: char| {
            quoted ^= c == '"';
            c.is_ascii_whitespace() && !quoted
        });
        let (word, rest) = line.split_at(end.unwrap_or(line.len()));
        self.0 = rest;
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_the_first_known_word() {
        let args = Args::new("guest.elf  l2 n=0x10 hello msg=\"a hello b\"");
        assert_eq!(args.program(), Some("l2"));
        assert_eq!(args.number("n"), Ok(Some(16)));
        assert!(args.has("hello"));
        assert_eq!(args.value("msg"), Some("a hello b"));
        assert_eq!(Args::new("console=ttyS0").program(), None);
        assert_eq!(Args::new("").program(), None);
    }

    #[test]
    fn values_are_found_by_their_whole_name_and_the_last_wins() {
        let args = Args::new("exits nn=1 n=2 n=3 x");
        assert_eq!(args.number("n"), Ok(Some(3)));
        assert_eq!(args.number("m"), Ok(None));
        assert_eq!(args.value("x"), None);
        assert_eq!(Args::new("exits n=many").number("n"), Err("many"));
        assert_eq!(Args::new("exits n=").number("n"), Err(""));
    }

    #[test]
    fn an_open_quote_takes_the_rest() {
        let mut words = Words("a \"b c");
        assert_eq!(
            (words.next(), words.next(), words.next()),
            (Some("a"), Some("\"b c"), None)
        );
    }
}
