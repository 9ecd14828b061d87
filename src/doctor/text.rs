//! Text form of a diagnosis.

use std::fmt::Write;

use super::{Check, CheckStatus, Diagnosis, Group, Verdict};

/// Maximum columns of a line.
const WIDTH: usize = 100;
/// Where the text of a check starts.
const INDENT: usize = 8;

/// Plain text, or with a terminal's colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Without escape sequences.
    Plain,
    /// With ANSI colours.
    Colour,
}

impl Style {
    /// Colours on a terminal, unless the user has disabled them (<https://no-color.org>).
    pub fn choose(terminal: bool, no_color: Option<&str>, term: Option<&str>) -> Self {
        if terminal && no_color.is_none_or(str::is_empty) && term != Some("dumb") {
            Self::Colour
        } else {
            Self::Plain
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }

    fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn status(self, status: CheckStatus) -> String {
        match status {
            CheckStatus::Ok => self.paint("32", "ok  "),
            CheckStatus::Info => self.paint("36", "info"),
            CheckStatus::Warn => self.paint("33", "warn"),
            CheckStatus::Fail => self.paint("1;31", "FAIL"),
        }
    }
}

/// The whole diagnosis.
pub fn render(diagnosis: &Diagnosis, style: Style) -> String {
    let mut out = String::new();
    for group in Group::ALL {
        let checks: Vec<_> = diagnosis
            .checks
            .iter()
            .filter(|check| check.group == group)
            .collect();
        if checks.is_empty() {
            continue;
        }
        heading(&mut out, style, group.title());
        for check in checks {
            render_check(&mut out, style, check);
        }
    }
    enlightenments(&mut out, style, diagnosis);
    heading(&mut out, style, "Profiles");
    for verdict in &diagnosis.profiles {
        render_verdict(
            &mut out,
            style,
            verdict,
            verdict.profile == diagnosis.profile,
        );
    }
    out.push('\n');
    conclusion(&mut out, style, diagnosis);
    out
}

fn heading(out: &mut String, style: Style, title: &str) {
    if !out.is_empty() {
        out.push('\n');
    }
    line(out, &style.bold(title));
}

fn line(out: &mut String, text: &str) {
    // Writing to a String does not fail.
    let _ok = writeln!(out, "{text}");
}

fn render_check(out: &mut String, style: Style, check: &Check) {
    let status = style.status(check.status);
    let text = format!("{}: {}", check.title, check.found);
    wrapped(out, &format!("  {status}  "), INDENT, &text);
    if let Some(means) = &check.means {
        wrapped(out, &" ".repeat(INDENT), INDENT, means);
    }
    if let Some(cure) = &check.cure {
        let lead = format!("{}{} ", " ".repeat(INDENT), style.paint("36", "→"));
        wrapped(out, &lead, INDENT + 2, cure);
    }
}

fn enlightenments(out: &mut String, style: Style, diagnosis: &Diagnosis) {
    if diagnosis.enlightenments.is_empty() {
        return;
    }
    heading(out, style, "Enlightenments");
    let available: Vec<_> = diagnosis
        .enlightenments
        .iter()
        .filter(|e| e.available)
        .map(|e| e.name)
        .collect();
    if !available.is_empty() {
        let lead = format!("  {}  ", style.status(CheckStatus::Ok));
        wrapped(out, &lead, INDENT, &available.join(", "));
    }
    // Problems with the same cause are listed together.
    let mut lacks: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, lack) in diagnosis
        .enlightenments
        .iter()
        .filter_map(|e| Some((e.name, e.lack.as_deref()?)))
    {
        match lacks.iter_mut().find(|(known, _)| *known == lack) {
            Some((_, names)) => names.push(name),
            None => lacks.push((lack, vec![name])),
        }
    }
    for (lack, names) in lacks {
        let lead = format!("  {}  ", style.paint("33", "none"));
        wrapped(out, &lead, INDENT, &format!("{}: {lack}", names.join(", ")));
    }
}

fn render_verdict(out: &mut String, style: Style, verdict: &Verdict, asked: bool) {
    let status = if verdict.works {
        CheckStatus::Ok
    } else {
        CheckStatus::Fail
    };
    let lead = format!("  {}  ", style.status(status));
    if verdict.works {
        wrapped(out, &lead, INDENT, verdict.profile);
    } else {
        let text = format!("{}: {}", verdict.profile, verdict.problems.join("; "));
        wrapped(out, &lead, INDENT, &text);
    }
    // The notes of the profiles are nearly the same.
    for note in verdict.notes.iter().filter(|_| asked) {
        wrapped(out, &" ".repeat(INDENT), INDENT, note);
    }
}

fn conclusion(out: &mut String, style: Style, diagnosis: &Diagnosis) {
    let Some(verdict) = diagnosis
        .profiles
        .iter()
        .find(|verdict| verdict.profile == diagnosis.profile)
    else {
        return;
    };
    let text = if verdict.works {
        format!("Profile {} works on this host.", verdict.profile)
    } else {
        let mut text = format!("Profile {} does not work on this host", verdict.profile);
        match verdict.missing.as_slice() {
            [one] if verdict.problems.len() == 1 => {
                text.push_str(&format!(": {one} is the one thing missing"));
            }
            several if several.len() == verdict.problems.len() => {
                text.push_str(&format!(": missing {}", several.join(", ")));
            }
            _ => text.push_str(&format!(": {}", verdict.problems.join("; "))),
        }
        text.push('.');
        text
    };
    wrapped(out, "", 0, &style.bold(&text));
    if let Some(instead) = &verdict.instead {
        line(out, &format!("What works here: {instead}"));
    }
}

/// Writes `text` after `lead`, broken between words; continuation lines are indented by `indent`.
fn wrapped(out: &mut String, lead: &str, indent: usize, text: &str) {
    let mut row = lead.to_owned();
    let mut column = indent;
    let mut first = true;
    for word in text.split(' ') {
        let length = word.chars().count();
        if !first && column + 1 + length > WIDTH {
            line(out, row.trim_end());
            row = " ".repeat(indent);
            column = indent;
            first = true;
        }
        if !first {
            row.push(' ');
            column += 1;
        }
        row.push_str(word);
        column += length;
        first = false;
    }
    line(out, row.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        for (terminal, no_color, term, style) in [
            (true, None, Some("xterm"), Style::Colour),
            (true, None, None, Style::Colour),
            (true, Some(""), Some("xterm"), Style::Colour),
            (true, Some("1"), Some("xterm"), Style::Plain),
            (true, None, Some("dumb"), Style::Plain),
            (false, None, Some("xterm"), Style::Plain),
        ] {
            assert_eq!(Style::choose(terminal, no_color, term), style);
        }
    }

    #[test]
    fn long_lines_are_broken_between_words() {
        let mut out = String::new();
        wrapped(&mut out, "  ok    ", 8, &"word ".repeat(60));
        assert!(out.lines().count() > 3);
        for (at, row) in out.lines().enumerate() {
            assert!(row.chars().count() <= WIDTH, "{row}");
            assert!(row.starts_with(if at == 0 {
                "  ok    word"
            } else {
                "        word"
            }));
        }
        let mut out = String::new();
        wrapped(&mut out, "", 0, &"x".repeat(300));
        assert_eq!(out.len(), 301);
    }
}
