//! Throttles the vCPUs, so that a guest writes less memory than can be sent.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::VcpuFd;

use crate::sys::{Role, spawn};
use crate::vcpu::control::Control;

/// The vCPUs wait and run once in each period.
const PERIOD: Duration = Duration::from_millis(50);

/// The vCPUs wait for a share of each period as long as this lives. It adds no work to the exit path.
#[derive(Debug)]
pub(super) struct Throttle {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Throttle {
    /// Reduces the running time of the vCPUs of `controls` by `percent`.
    pub(super) fn start(controls: Vec<Arc<Control<VcpuFd>>>, percent: u8) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let (wait, run) = split(percent);
        let thread = spawn(Role::Throttle, move || {
            let all = |on| controls.iter().for_each(|control| control.throttle(on));
            let over = |time| stopped.recv_timeout(time) != Err(RecvTimeoutError::Timeout);
            loop {
                all(true);
                let ends = over(wait);
                all(false);
                if ends || over(run) {
                    return;
                }
            }
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // The panic hook has reported a panic of the thread.
            let _panicked = thread.join();
        }
    }
}

/// The waiting and the running time of the vCPUs in each period.
fn split(percent: u8) -> (Duration, Duration) {
    let wait = PERIOD * u32::from(percent.min(99)) / 100;
    (wait, PERIOD - wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        for (percent, wait) in [(0, 0), (20, 10), (50, 25), (98, 49), (255, 49)] {
            let (waits, runs) = split(percent);
            assert_eq!(waits.as_millis(), wait, "{percent} %");
            assert_eq!(waits + runs, PERIOD);
        }
    }

    #[test]
    fn throttled_vcpus_run_when_it_ends() {
        let control = Arc::new(Control::new());
        drop(Throttle::start(vec![Arc::clone(&control)], 50).unwrap());
        assert!(!format!("{control:?}").contains("throttled: true"));
    }
}
