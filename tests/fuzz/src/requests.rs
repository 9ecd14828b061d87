//! Input from users and clients.

use std::path::Path;

use hypernest::api::{ControlReply, ControlRequest};
use hypernest::config::{ConfigFile, Flags, HostLimits, build};
use hypernest::hyperv::{EnlightenmentRequest, Profile};

/// Configuration files.
pub(crate) fn config_file(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let file = ConfigFile::new(Path::new("fuzz.toml"), text.to_owned());
    build(Some(&file), &Flags::default(), HostLimits::default()).is_ok()
}

/// Lists of enlightenments.
pub(crate) fn enlightenments(bytes: &[u8]) -> bool {
    let request = std::str::from_utf8(bytes)
        .ok()
        .and_then(|list| EnlightenmentRequest::parse(list, Profile::Windows).ok());
    let Some(request) = request else {
        return false;
    };
    let shown = request.to_string();
    assert_eq!(
        EnlightenmentRequest::parse(&shown, Profile::None).as_ref(),
        Ok(&request),
        "{shown}"
    );
    true
}

/// Requests over the control socket.
pub(crate) fn control_request(bytes: &[u8]) -> bool {
    match ControlRequest::read(bytes) {
        Ok(request) => {
            let line = request.write().expect("a path from JSON is UTF-8");
            assert_eq!(ControlRequest::read(line.as_bytes()), Ok(request), "{line}");
            true
        }
        Err(why) => {
            assert!(!why.is_empty());
            false
        }
    }
}

/// Replies over the control socket.
pub(crate) fn control_reply(bytes: &[u8]) -> bool {
    let Ok(reply) = ControlReply::read(bytes) else {
        return false;
    };
    let line = reply.write();
    assert_eq!(ControlReply::read(&line).ok(), Some(reply));
    true
}
