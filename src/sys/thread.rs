//! The threads of a process by their roles: [`Role`] lists them, and all are started here.

use std::fmt;
use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// What a thread is there for. Its name in the kernel (`ps -L`, `perf`, `/proc/PID/task/*/comm`) is the
/// role's, of at most 15 bytes (`TASK_COMM_LEN` less the zero; pthread_setname_np(3)). docs/architecture.md
/// lists the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role<'a> {
    /// Runs a vCPU.
    Vcpu(u32),
    /// Serves the queues of the virtio function with this name.
    Queues(&'a str),
    /// Reads and writes the image of the disk with this name, of at most 10 bytes.
    Disk(&'a str),
    /// Serves consoles and timed devices.
    Io,
    /// Waits for signals.
    Signals,
    /// Serves the control socket.
    Api,
    /// Saves or migrates the VM for a client of the control socket.
    Job,
    /// Takes run time from vCPUs while the VM is migrated.
    Throttle,
    /// Reads the first message of a connection of an incoming migration.
    Arrival,
    /// Sends RAM over an additional connection.
    Migrate(u64),
    /// Receives RAM from an additional connection.
    Incoming(u64),
    /// Waits for the exit of the process of an `exec:` address.
    Reap,
    /// Allocates guest RAM in advance.
    Populate,
    /// Tries on which CPUs a thread can run.
    Affinity,
    /// Shows the progress of a migration, in the process of `hypernest migrate`.
    Progress,
}

impl fmt::Display for Role<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpu(index) => write!(f, "vcpu{index}"),
            Self::Queues(function) => f.write_str(function),
            Self::Disk(name) => write!(f, "disk {name}"),
            Self::Io => f.write_str("io"),
            Self::Signals => f.write_str("signals"),
            Self::Api => f.write_str("api"),
            Self::Job => f.write_str("job"),
            Self::Throttle => f.write_str("throttle"),
            Self::Arrival => f.write_str("arrival"),
            Self::Migrate(index) => write!(f, "migrate{index}"),
            Self::Incoming(index) => write!(f, "incoming{index}"),
            Self::Reap => f.write_str("reap"),
            Self::Populate => f.write_str("populate"),
            Self::Affinity => f.write_str("affinity"),
            Self::Progress => f.write_str("progress"),
        }
    }
}

/// Starts a thread.
///
/// # Errors
/// If the kernel refuses another thread.
pub(crate) fn spawn<T: Send + 'static>(
    role: Role<'_>,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(role.to_string()).spawn(run)
}

/// Starts a thread that ends before `scope` does.
///
/// # Errors
/// If the kernel refuses another thread.
pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    role: Role<'_>,
    run: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new()
        .name(role.to_string())
        .spawn_scoped(scope, run)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    /// Each role with the largest number that it can have.
    const ROLES: [Role<'static>; 15] = [
        Role::Vcpu(254),
        Role::Queues("virtio ff:1f.7"),
        Role::Disk("ff:1f.7/63"),
        Role::Io,
        Role::Signals,
        Role::Api,
        Role::Job,
        Role::Throttle,
        Role::Arrival,
        Role::Migrate(63),
        Role::Incoming(63),
        Role::Reap,
        Role::Populate,
        Role::Affinity,
        Role::Progress,
    ];

    fn own_name() -> String {
        let name = fs::read_to_string("/proc/thread-self/comm").unwrap();
        name.trim_end().to_owned()
    }

    #[test]
    fn the_kernel_shows_the_whole_name_of_each_role() {
        for role in ROLES {
            let shown = spawn(role, own_name).unwrap().join().unwrap();
            assert_eq!(shown, role.to_string());
            let shown = std::thread::scope(|scope| {
                let thread = spawn_scoped(scope, role, own_name).unwrap();
                thread.join().unwrap()
            });
            assert_eq!(shown, role.to_string());
        }
    }

    #[test]
    fn names_are_unique_and_documented() {
        let page = include_str!("../../docs/architecture.md");
        let threads = page.split("\n## Threads\n").nth(1).unwrap();
        let threads = threads.split("\n## ").next().unwrap();
        let mut names = BTreeSet::new();
        for role in ROLES {
            let name = match role {
                Role::Vcpu(_) => "vcpuN".to_owned(),
                Role::Queues(_) => "virtio BB:DD.F".to_owned(),
                Role::Disk(_) => "disk NAME".to_owned(),
                Role::Migrate(_) => "migrateN".to_owned(),
                Role::Incoming(_) => "incomingN".to_owned(),
                _ => role.to_string(),
            };
            assert!(threads.contains(&format!("| `{name}` |")), "{name}");
            assert!(names.insert(name));
        }
        assert_eq!(threads.matches("\n| `").count(), names.len());
    }
}
