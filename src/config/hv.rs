//! `hv`: parsed by [`EnlightenmentRequest`], with the position of each problem.

use super::build::{Build, known};
use super::parse::{self, Wrong};
use crate::hyperv::{EnlightenmentRequest, Profile, RequestProblem};

const EXPECTED: &str = "names of enlightenments and profiles, see `hypernest enlightenments`";

impl Build<'_> {
    pub(super) fn hv(&mut self) -> Option<EnlightenmentRequest> {
        // An invalid `nested` is reported by its own parser.
        let nested = self
            .part("nested")
            .and_then(|part| parse::boolean(&part.value).ok());
        let default = Profile::default_for(nested.unwrap_or(false));
        let entries = self.draft.get(known("hv"));
        let mut lists = Vec::new();
        let mut told = Vec::new();
        for part in entries.iter().flat_map(|entry| &entry.parts) {
            let Some(list) = self.parsed("hv", part, |v| parse::text(v, "a list of names")) else {
                continue;
            };
            for problem in EnlightenmentRequest::parse(&list, default)
                .err()
                .unwrap_or_default()
            {
                let wrong = Wrong::new(problem.to_string(), EXPECTED);
                self.push("hv", &part.origin, wrong);
                told.push(problem);
            }
            lists.push((list, &part.origin));
        }
        if lists.is_empty() {
            return Some(EnlightenmentRequest::profile(default));
        }
        let whole: Vec<&str> = lists.iter().map(|(list, _)| list.as_str()).collect();
        match EnlightenmentRequest::parse(&whole.join(","), default) {
            Ok(request) => Some(request),
            Err(problems) => {
                for problem in problems.iter().filter(|p| !told.contains(p)) {
                    // Two lists contradict each other: the later one is reported.
                    let (_, origin) = lists.iter().rev().find(|(list, _)| match problem {
                        RequestProblem::Contradiction { second, .. } => list.contains(second),
                        _ => true,
                    })?;
                    let wrong = Wrong::new(problem.to_string(), EXPECTED);
                    self.push("hv", origin, wrong);
                }
                None
            }
        }
    }
}
