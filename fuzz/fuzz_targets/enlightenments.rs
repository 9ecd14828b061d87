//! Lists of enlightenments.
#![no_main]

use hypernest::hyperv::{Profile, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|list: &str| {
    if let Ok(request) = Request::parse(list, Profile::Windows) {
        let shown = request.to_string();
        assert_eq!(
            Request::parse(&shown, Profile::None).as_ref(),
            Ok(&request),
            "{shown}"
        );
    }
});
