//! The value of `--l1`.

use std::path::PathBuf;

use clap::ValueEnum as _;

use crate::report::L1;

/// The L1 to run, and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// An L1 that needs no file.
    Of(L1),
    /// A kernel of the user's.
    Image(PathBuf),
}

impl Choice {
    /// The kind of L1.
    pub(crate) fn l1(&self) -> L1 {
        match self {
            Self::Of(l1) => *l1,
            Self::Image(_) => L1::Image,
        }
    }
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("image", file)) if !file.is_empty() => Ok(Self::Image(file.into())),
            None if text != L1::Image.name() => L1::from_str(text, false).map(Self::Of),
            _ => Err("image needs a file: image=FILE".to_owned()),
        }
        .map_err(|why| format!("{why}; it is one of micro, linux, image=FILE, manual"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_file_and_nothing_else_has() {
        assert_eq!("micro".parse(), Ok(Choice::Of(L1::Micro)));
        assert_eq!("manual".parse::<Choice>().unwrap().l1(), L1::Manual);
        assert_eq!("image=a=b".parse(), Ok(Choice::Image("a=b".into())));
        assert_eq!("image=x".parse::<Choice>().unwrap().l1(), L1::Image);
        for text in ["image", "image=", "linux=x", "xen", ""] {
            let error = text.parse::<Choice>().unwrap_err();
            assert!(error.contains("image=FILE"), "{text}: {error}");
        }
    }
}
