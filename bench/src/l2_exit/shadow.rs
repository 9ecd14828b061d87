//! The host's `kvm_intel.enable_shadow_vmcs`, which is changed by reloading the module.

use std::path::Path;

use hypernest::kvm::host::System;

use crate::kvm_module::{self, ModuleError, Source, Vendor};

/// The present setting and the original one.
#[derive(Debug)]
pub(super) struct ShadowVmcs {
    source: Source,
    original: Option<bool>,
    now: Option<bool>,
}

impl ShadowVmcs {
    /// The setting `now`; to change it, the module is loaded from `source`.
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

    /// Sets it to `wanted`, unless that is `None`. The error is the reason of a failure.
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

    /// Restores the original setting.
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
