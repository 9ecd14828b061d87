//! The host's `kvm_intel.enable_shadow_vmcs`, which is set by loading the module anew.

use std::path::Path;

use hypernest::kvm::host::System;

use crate::kvm_module::{self, ModuleError, Source, Vendor};

/// The setting, and what it was.
#[derive(Debug)]
pub(super) struct ShadowVmcs {
    source: Source,
    original: Option<bool>,
    now: Option<bool>,
}

impl ShadowVmcs {
    /// The setting `now`, changed by loading the module from `source`.
    pub(super) fn new(source: Source, now: Option<bool>) -> Self {
        Self {
            source,
            original: now,
            now,
        }
    }

    /// The present setting.
    pub(super) fn now(&self) -> Option<bool> {
        self.now
    }

    /// Makes it `wanted`, unless that is `None`. The error is why it is not.
    pub(super) fn set(&mut self, wanted: Option<bool>) -> Result<(), String> {
        if wanted.is_none() || wanted == self.now {
            return Ok(());
        }
        let reloaded = self.reload(wanted == Some(true));
        self.now = System::read(Path::new("/")).flag("kvm_intel", "enable_shadow_vmcs");
        reloaded.map_err(|e| crate::chain(&e))?;
        if self.now == wanted {
            Ok(())
        } else {
            Err("the host's CPU has no shadow VMCS".to_owned())
        }
    }

    /// Makes it what it was.
    pub(super) fn restore(&self) -> Result<(), ModuleError> {
        match self.original {
            Some(original) if self.now != self.original => self.reload(original),
            _ => Ok(()),
        }
    }

    fn reload(&self, on: bool) -> Result<(), ModuleError> {
        let parameter = format!("enable_shadow_vmcs={}", u8::from(on));
        kvm_module::reload(Vendor::Intel, &self.source, &parameter)
    }
}
