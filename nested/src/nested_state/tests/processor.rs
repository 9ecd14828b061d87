use super::super::*;
use super::builder::*;

pub(super) fn processor() -> Processor {
    Processor {
        has_vmx: true,
        has_evmcs: true,
        has_svm: true,
        efer_svme: true,
        in_smm: false,
        physical_address_bits: 40,
    }
}

#[test]
fn a_processor_takes_what_it_has_everything_for() {
    let far = 1 << 40;
    let table = [
        (vmx_guest(), processor(), Ok(())),
        (
            vmx_off(),
            Processor {
                has_vmx: false,
                has_evmcs: false,
                ..processor()
            },
            Ok(()),
        ),
        (
            vmx_on(),
            Processor {
                has_vmx: false,
                ..processor()
            },
            Err(Refused::NoVmx),
        ),
        (
            evmcs(),
            Processor {
                has_vmx: false,
                ..processor()
            },
            Err(Refused::NoVmx),
        ),
        (
            evmcs(),
            Processor {
                has_evmcs: false,
                ..processor()
            },
            Err(Refused::NoEvmcs),
        ),
        (
            Builder {
                flags: flag::EVMCS,
                ..vmx_off()
            },
            Processor {
                has_evmcs: false,
                ..processor()
            },
            Err(Refused::NoEvmcs),
        ),
        (
            vmx_loaded(),
            Processor {
                has_evmcs: false,
                ..processor()
            },
            Ok(()),
        ),
        (
            vmx_guest(),
            Processor {
                in_smm: true,
                ..processor()
            },
            Err(Refused::Smm { in_smm: true }),
        ),
        (
            vmx_loaded(),
            Processor {
                in_smm: true,
                ..processor()
            },
            Ok(()),
        ),
        (
            Builder {
                smm_flags: 2,
                ..vmx_on()
            },
            processor(),
            Err(Refused::Smm { in_smm: false }),
        ),
        (
            Builder {
                smm_flags: 2,
                ..vmx_on()
            },
            Processor {
                in_smm: true,
                ..processor()
            },
            Ok(()),
        ),
        (
            Builder {
                first: far,
                ..vmx_on()
            },
            processor(),
            Err(Refused::Address {
                what: "VMXON region",
                gpa: far,
                bits: 40,
            }),
        ),
        (
            Builder {
                second: far,
                ..vmx_loaded()
            },
            processor(),
            Err(Refused::Address {
                what: "VMCS",
                gpa: far,
                bits: 40,
            }),
        ),
        (
            Builder {
                second: far - 0x1000,
                ..vmx_loaded()
            },
            processor(),
            Ok(()),
        ),
        (
            svm(),
            Processor {
                has_svm: false,
                efer_svme: false,
                ..processor()
            },
            Ok(()),
        ),
        (svm_guest(), processor(), Ok(())),
        (
            svm_guest(),
            Processor {
                efer_svme: false,
                ..processor()
            },
            Err(Refused::NoSvme),
        ),
        (
            Builder { flags: 0, ..svm() },
            Processor {
                efer_svme: false,
                ..processor()
            },
            Err(Refused::NoSvme),
        ),
        (
            svm_guest(),
            Processor {
                has_svm: false,
                efer_svme: false,
                ..processor()
            },
            Err(Refused::NoSvm),
        ),
        (
            svm_guest(),
            Processor {
                in_smm: true,
                ..processor()
            },
            Err(Refused::Smm { in_smm: true }),
        ),
        (
            Builder {
                first: far,
                ..svm_guest()
            },
            processor(),
            Err(Refused::Address {
                what: "VMCB",
                gpa: far,
                bits: 40,
            }),
        ),
    ];
    for (blob, processor, expected) in table {
        let bytes = blob.bytes();
        let state = NestedState::parse(&bytes).expect("well formed");
        assert_eq!(state.check(&processor), expected, "{state}, {processor:?}");
    }
}
