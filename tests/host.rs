//! Properties of the hosts.

use hypernest_lab::suite::{Test, TestResult};
use kvm_ioctls::Kvm;

pub(crate) const TESTS: &[Test] = &[Test::new("host::kvm_speaks_api_version_12", api_version)];

/// The only version there will ever be (Documentation/virt/kvm/api.rst, 4.1).
fn api_version() -> TestResult {
    let kvm = Kvm::new()?;
    let version = kvm.get_api_version();
    assert_eq!(version, 12, "KVM_GET_API_VERSION");
    Ok(())
}
