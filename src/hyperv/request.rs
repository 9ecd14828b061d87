//! `--hv LIST`: the user's request.

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

use super::enlightenment::{Argument, Enlightenment, EnlightenmentSet, Row, normalize};
use super::profile::Profile;
use super::table::TABLE;
use crate::text::nearest;

/// The value after an enlightenment's `=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// On.
    On,
    /// On if the host supports it. (hv-no-nonarch-coresharing: if the host's KVM reports that it is true.)
    Auto,
    /// A number.
    Number(u32),
    /// A text.
    Text(String),
}

/// A user's request: profiles, and single enlightenments, which override the profiles regardless of their
/// position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnlightenmentRequest {
    /// The profiles, each once.
    pub profiles: Vec<Profile>,
    /// The enlightenments requested by name.
    pub wanted: BTreeMap<Enlightenment, Value>,
    /// The removed enlightenments.
    pub removed: EnlightenmentSet,
}

/// An error in one item of a list.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RequestProblem {
    /// The name is not an enlightenment or a profile.
    #[error("`{item}`: there is no enlightenment or profile of that name{}", did_you_mean(.suggestion))]
    Unknown {
        /// The item as written.
        item: String,
        /// The nearest name, if one is near enough.
        suggestion: Option<&'static str>,
    },
    /// An empty item.
    #[error("an item of the list is empty")]
    Empty,
    /// A profile cannot be removed or given a value.
    #[error(
        "`{item}`: `{profile}` is a profile; write it alone, and remove single enlightenments by `-name`"
    )]
    ProfileMisused {
        /// The item as written.
        item: String,
        /// The profile.
        profile: Profile,
    },
    /// A removal with a value.
    #[error("`{item}`: a removal takes no value; write `-{name}`")]
    RemovalWithValue {
        /// The item as written.
        item: String,
        /// The enlightenment.
        name: &'static str,
    },
    /// An invalid value for the enlightenment, or a missing one.
    #[error("`{item}`: {name} takes {argument}")]
    Value {
        /// The item as written.
        item: String,
        /// The enlightenment.
        name: &'static str,
        /// The argument that it takes.
        argument: Argument,
    },
    /// The same enlightenment requested and removed, or with two values.
    #[error("{name} is named twice, with different meanings (`{first}` and `{second}`)")]
    Contradiction {
        /// The enlightenment.
        name: &'static str,
        /// The first item.
        first: String,
        /// The second item.
        second: String,
    },
}

fn did_you_mean(suggestion: &Option<&'static str>) -> String {
    suggestion.map_or_else(
        || " (`hypernest enlightenments` lists them)".to_owned(),
        |name| format!("; did you mean `{name}`?"),
    )
}

impl Argument {
    /// Whether it takes no value.
    pub(super) fn is_flag(self) -> bool {
        self == Self::None
    }
}

impl EnlightenmentRequest {
    /// A request for `profile` alone.
    pub fn profile(profile: Profile) -> Self {
        Self {
            profiles: vec![profile],
            ..Self::default()
        }
    }

    /// Parses a list such as `windows,-hv-runtime,spinlocks=0xfff`.
    ///
    /// A list that names a profile, or requests anything by name, replaces `default`; a list that only
    /// removes items removes them from `default`.
    ///
    /// # Errors
    /// All errors of the list.
    pub fn parse(list: &str, default: Profile) -> Result<Self, Vec<RequestProblem>> {
        Self::from_items(list.split(','), default)
    }

    /// The same from items that were separated by other means.
    ///
    /// # Errors
    /// All errors of the items.
    pub fn from_items<'a>(
        items: impl IntoIterator<Item = &'a str>,
        default: Profile,
    ) -> Result<Self, Vec<RequestProblem>> {
        let mut request = Self::default();
        let mut problems = Vec::new();
        let mut written: BTreeMap<Enlightenment, (String, Option<Value>)> = BTreeMap::new();
        for item in items {
            match read_item(item) {
                Err(problem) => problems.push(problem),
                Ok(Item::Profile(profile)) => {
                    if !request.profiles.contains(&profile) {
                        request.profiles.push(profile);
                    }
                }
                Ok(Item::Set(id, value)) => {
                    let item = item.trim().to_owned();
                    match written.get(&id) {
                        Some((first, other)) if *other != value => {
                            problems.push(RequestProblem::Contradiction {
                                name: id.name(),
                                first: first.clone(),
                                second: item,
                            });
                        }
                        Some(_) => {}
                        None => {
                            written.insert(id, (item, value));
                        }
                    }
                }
            }
        }
        for (id, (_, value)) in written {
            match value {
                Some(value) => {
                    request.wanted.insert(id, value);
                }
                None => request.removed.insert(id),
            }
        }
        if request.profiles.is_empty() && request.wanted.is_empty() {
            request.profiles.push(default);
        }
        if problems.is_empty() {
            Ok(request)
        } else {
            Err(problems)
        }
    }
}

impl EnlightenmentRequest {
    /// Every item of the list, in canonical order.
    pub fn items(&self) -> Vec<String> {
        let profiles = self.profiles.iter().map(|p| p.name().to_owned());
        let wanted = self.wanted.iter().map(|(id, value)| match value {
            Value::On => id.name().to_owned(),
            Value::Auto => format!("{id}=auto"),
            Value::Number(n) => format!("{id}={n:#x}"),
            Value::Text(text) => format!("{id}={text}"),
        });
        let removed = self.removed.iter().map(|id| format!("-{id}"));
        profiles.chain(wanted).chain(removed).collect()
    }
}

impl fmt::Display for EnlightenmentRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.items().join(","))
    }
}

enum Item {
    Profile(Profile),
    /// `None` removes.
    Set(Enlightenment, Option<Value>),
}

fn read_item(item: &str) -> Result<Item, RequestProblem> {
    let text = item.trim();
    let own = || text.to_owned();
    let (removal, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (name, value) = match rest.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (rest, None),
    };
    let key = normalize(name);
    if key.is_empty() {
        return Err(if text.is_empty() {
            RequestProblem::Empty
        } else {
            RequestProblem::Unknown {
                item: own(),
                suggestion: None,
            }
        });
    }
    if let Some(profile) = Profile::ALL.into_iter().find(|p| p.name() == key) {
        // QEMU's form of the profile.
        let on = value.is_none_or(|v| v.eq_ignore_ascii_case("on"));
        return if removal || !on {
            Err(RequestProblem::ProfileMisused {
                item: own(),
                profile,
            })
        } else {
            Ok(Item::Profile(profile))
        };
    }
    let Some(id) = Enlightenment::by_name(&key) else {
        return Err(RequestProblem::Unknown {
            item: own(),
            suggestion: did_mean(&key),
        });
    };
    let row = id.row();
    match (removal, value) {
        (true, None) => Ok(Item::Set(id, None)),
        (true, Some(_)) => Err(RequestProblem::RemovalWithValue {
            item: own(),
            name: row.name,
        }),
        (false, value) => read_value(row, value)
            .map(|value| Item::Set(id, value))
            .ok_or(RequestProblem::Value {
                item: own(),
                name: row.name,
                argument: row.argument,
            }),
    }
}

/// `Some(None)` for `off`; `None` if the argument is not of the kind.
fn read_value(row: &Row, value: Option<&str>) -> Option<Option<Value>> {
    let lower = value.map(str::to_ascii_lowercase);
    match (row.argument, lower.as_deref()) {
        // A vendor string may be "off".
        (Argument::Text { max }, _) => value
            .filter(|v| (1..=max).contains(&v.len()))
            .map(|v| Some(Value::Text(v.to_owned()))),
        (_, Some("off")) => Some(None),
        (Argument::None | Argument::OnOffAuto, None | Some("on")) => Some(Some(Value::On)),
        (_, Some("auto")) if row.takes_auto() => Some(Some(Value::Auto)),
        (Argument::Number { min, max }, Some(text)) => {
            let number = match text.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => text.parse(),
            };
            number
                .ok()
                .filter(|n| (min..=max).contains(n))
                .map(|n| Some(Value::Number(n)))
        }
        _ => None,
    }
}

/// The valid name nearest to `name`.
pub(crate) fn did_mean(name: &str) -> Option<&'static str> {
    let spellings = || {
        TABLE
            .iter()
            .flat_map(|row| row.spellings().map(|s| (s, row.name)))
    };
    let profiles = || Profile::ALL.into_iter().map(|p| (p.name(), p.name()));
    let near = nearest(
        &normalize(name),
        spellings().chain(profiles()).map(|(s, _)| s),
    )?;
    spellings()
        .chain(profiles())
        .find(|(s, _)| *s == near)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Enlightenment as E;

    fn parse(list: &str) -> Result<EnlightenmentRequest, Vec<RequestProblem>> {
        EnlightenmentRequest::parse(list, Profile::Windows)
    }

    fn messages(list: &str) -> Vec<String> {
        parse(list)
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn lists_parse_as_documented() {
        for (list, canonical) in [
            ("windows", "windows"),
            ("none", "none"),
            (
                "hv-time,hv_relaxed,VPINDEX",
                "hv-relaxed,hv-vpindex,hv-time",
            ),
            ("time=on", "hv-time"),
            ("spinlocks=8191", "hv-spinlocks=0x1fff"),
            ("hv-spinlocks=0xFFF", "hv-spinlocks=0xfff"),
            ("windows,-time", "windows,-hv-time"),
            ("-time,windows", "windows,-hv-time"),
            ("windows,time=off", "windows,-hv-time"),
            ("windows,spinlocks=off", "windows,-hv-spinlocks"),
            // Only removals: from the default.
            ("-runtime", "windows,-hv-runtime"),
            ("nested,windows,nested", "nested,windows"),
            ("hv-vendor-id=Microsoft Hv", "hv-vendor-id=Microsoft Hv"),
            ("no-nonarch-coresharing", "hv-no-nonarch-coresharing"),
            (
                "no_nonarch_coresharing=auto",
                "hv-no-nonarch-coresharing=auto",
            ),
            ("hv-passthrough=on", "passthrough"),
            ("hv-apicv", "hv-avic"),
            ("time, relaxed", "hv-relaxed,hv-time"),
            ("time,time", "hv-time"),
        ] {
            assert_eq!(
                parse(list).map(|r| r.to_string()),
                Ok(canonical.to_owned()),
                "{list}"
            );
        }
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        assert_eq!(
            messages(
                "hv-tiem,spinlocks,-windows,vendor-id=Microsoft Hyper-V,time,-time,,-spinlocks=1"
            ),
            [
                "`hv-tiem`: there is no enlightenment or profile of that name; did you mean `hv-time`?",
                "`spinlocks`: hv-spinlocks takes a number from 1 to 0xffffffff, decimal or 0x…",
                "`-windows`: `windows` is a profile; write it alone, and remove single enlightenments by \
                 `-name`",
                "`vendor-id=Microsoft Hyper-V`: hv-vendor-id takes a text of 1 to 12 bytes",
                "hv-time is named twice, with different meanings (`time` and `-time`)",
                "an item of the list is empty",
                "`-spinlocks=1`: a removal takes no value; write `-hv-spinlocks`",
            ]
        );
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for list in [
            "spinlocks=0",
            "spinlocks=0x100000000",
            "spinlocks=-1",
            "spinlocks=many",
            "version-id-sbranch=256",
            "version-id-snumber=0x1000000",
            "vendor-id=",
            "vendor-id",
            "time=maybe",
            "version-id-build=auto",
            "no-nonarch-coresharing=maybe",
        ] {
            assert!(
                matches!(parse(list).unwrap_err()[..], [RequestProblem::Value { .. }]),
                "{list}"
            );
        }
    }

    #[test]
    fn only_near_names_are_suggested() {
        assert_eq!(did_mean("tlbfush"), Some("hv-tlbflush"));
        assert_eq!(did_mean("enlightened-vmcs"), None);
        assert_eq!(did_mean("window"), Some("windows"));
        assert_eq!(did_mean("evmc"), Some("hv-evmcs"));
        assert_eq!(did_mean("zzzzzz"), None);
    }

    #[test]
    fn an_empty_list_is_a_mistake() {
        assert_eq!(parse(""), Err(vec![RequestProblem::Empty]));
        assert!(matches!(
            parse("-").unwrap_err()[..],
            [RequestProblem::Unknown { .. }]
        ));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(list in ".{0,80}") {
            let _ = parse(&list);
        }

        #[test]
        fn parsed_requests_round_trip(
            picks in proptest::collection::btree_map(0..TABLE.len(), 0..3u8, 0..12),
            profiles in proptest::collection::vec(0..Profile::ALL.len(), 0..3),
        ) {
            let names = profiles.iter().map(|p| Profile::ALL[*p].name().to_owned());
            let mut items: Vec<String> = names.collect();
            for (index, how) in picks {
                let row = &TABLE[index];
                if row.id == E::Passthrough {
                    continue;
                }
                items.push(match (how, row.argument) {
                    (0, _) => format!("-{}", row.name),
                    (1, _) if row.takes_auto() => format!("{}=auto", row.name),
                    (_, Argument::None) => row.name.to_owned(),
                    (_, Argument::OnOffAuto) => format!("{}=auto", row.name),
                    (_, Argument::Number { min, .. }) => format!("{}={min}", row.name),
                    (_, Argument::Text { .. }) => format!("{}=x y", row.name),
                });
            }
            prop_assume!(!items.is_empty());
            let request = parse(&items.join(",")).unwrap();
            prop_assert_eq!(parse(&request.to_string()), Ok(request));
        }
    }
}
