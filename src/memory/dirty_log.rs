//! Which pages were written, for several who want to know: a migration, and a display.
//!
//! KVM's log and [`WrittenPages`] give each write away once. Whoever collects it first passes it on to all
//! others.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::RamPiece;
use super::dirty::{PageSet, WrittenPages};

/// The written pages of guest RAM.
#[derive(Clone, Debug)]
pub struct DirtyLog(Arc<Log>);

#[derive(Debug)]
struct Log {
    written: Arc<WrittenPages>,
    regions: Vec<RamPiece>,
    subscribers: Mutex<Subscribers>,
}

#[derive(Debug, Default)]
struct Subscribers {
    next: u64,
    /// Number, and what others have collected of it; nothing is allocated for a single one.
    all: Vec<(u64, Option<PageSet>)>,
}

impl DirtyLog {
    /// Of RAM that consists of `regions`, and whose writes by other than vCPUs are in `written`.
    pub fn new(written: Arc<WrittenPages>, regions: impl IntoIterator<Item = RamPiece>) -> Self {
        Self(Arc::new(Log {
            written,
            regions: regions.into_iter().collect(),
            subscribers: Mutex::default(),
        }))
    }

    /// From now on writes are kept for this subscriber, too, until it is dropped.
    pub fn subscribe(&self) -> Subscription {
        let mut subscribers = self.lock();
        let number = subscribers.next;
        subscribers.next += 1;
        subscribers.all.push((number, None));
        self.0.written.switch(true);
        Subscription {
            log: self.clone(),
            number,
        }
    }

    /// All of RAM has changed, if anybody wants to know.
    pub fn mark_all(&self) {
        for region in &self.0.regions {
            self.0.written.mark(region.gpa, region.len);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Subscribers> {
        let subscribers = self.0.subscribers.lock();
        subscribers.unwrap_or_else(PoisonError::into_inner)
    }
}

/// One subscriber's end of a [`DirtyLog`].
#[derive(Debug)]
pub struct Subscription {
    log: DirtyLog,
    number: u64,
}

impl Subscription {
    /// Whether there is no other subscriber.
    pub fn is_only(&self) -> bool {
        self.log.lock().all.len() == 1
    }

    /// Adds the pages that were written since the last call, or since the subscription, to `set`. `harvest`
    /// gets those from KVM: into the set that it is given, or into the [`WrittenPages`].
    ///
    /// # Errors
    /// If `harvest` fails, which may lose writes: all pages count as written for the other subscribers then.
    pub fn collect<E>(
        &self,
        set: &mut PageSet,
        harvest: impl FnOnce(&mut PageSet) -> Result<(), E>,
    ) -> Result<(), E> {
        let Log {
            written, regions, ..
        } = &*self.log.0;
        let mut subscribers = self.log.lock();
        let is_this = |number: &u64| *number == self.number;
        let own = subscribers.all.iter_mut().find(|(n, _)| is_this(n));
        if let Some(pending) = own.and_then(|(_, pending)| pending.take()) {
            set.insert_set(&pending);
        }
        let mut others = subscribers
            .all
            .iter_mut()
            .filter(|(n, _)| !is_this(n))
            .peekable();
        if others.peek().is_none() {
            harvest(set)?;
            written.collect(set);
            return Ok(());
        }
        let none = || PageSet::none(regions.iter().copied());
        let mut found = none();
        let result = harvest(&mut found);
        written.collect(&mut found);
        for (_, pending) in others {
            let pending = pending.get_or_insert_with(none);
            match result {
                Ok(()) => pending.insert_set(&found),
                Err(_) => pending.fill(),
            }
        }
        set.insert_set(&found);
        result
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut subscribers = self.log.lock();
        subscribers.all.retain(|(n, _)| *n != self.number);
        if subscribers.all.is_empty() {
            self.log.0.written.switch(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::dirty::PAGE;
    use crate::units::Gpa;

    fn log() -> DirtyLog {
        let regions = [(0, 100), (1 << 32, 70)].map(|(gpa, pages)| RamPiece {
            gpa: Gpa(gpa),
            len: pages * PAGE,
            host: 0,
        });
        DirtyLog::new(Arc::new(WrittenPages::new(regions)), regions)
    }

    fn none(log: &DirtyLog) -> PageSet {
        PageSet::none(log.0.regions.iter().copied())
    }

    /// What a subscriber gets, if KVM has these pages of the first region.
    fn collect(of: &Subscription, kvm: &[u64]) -> BTreeSet<u64> {
        let mut set = none(&of.log);
        let harvest = |set: &mut PageSet| {
            kvm.iter().for_each(|page| set.insert(0, *page));
            Ok::<_, ()>(())
        };
        of.collect(&mut set, harvest).unwrap();
        set.runs(1).map(|run| run.gpa.0 / PAGE).collect()
    }

    #[test]
    fn writes_count_from_the_subscription_to_its_end() {
        let log = log();
        let written = Arc::clone(&log.0.written);
        written.mark(Gpa(0), 1);
        let first = log.subscribe();
        assert_eq!(collect(&first, &[]), BTreeSet::new());
        written.mark(Gpa(PAGE), 1);
        let second = log.subscribe();
        assert_eq!(collect(&first, &[5]), BTreeSet::from([1, 5]));
        assert!(!first.is_only());
        drop(first);
        assert!(second.is_only());
        assert_eq!(collect(&second, &[6]), BTreeSet::from([1, 5, 6]));
        log.mark_all();
        assert_eq!(collect(&second, &[]).len(), 170);
        drop(second);
        written.mark(Gpa(0), 1);
        assert_eq!(collect(&log.subscribe(), &[]), BTreeSet::new());
    }

    #[test]
    fn what_a_failed_harvest_may_have_lost_counts_as_written() {
        let log = log();
        let (first, second) = (log.subscribe(), log.subscribe());
        let failed = first.collect(&mut none(&log), |_| Err("ring overflowed"));
        assert_eq!(failed, Err("ring overflowed"));
        assert_eq!(collect(&second, &[]).len(), 170);
    }

    #[test]
    fn what_is_in_the_set_before_is_not_passed_on() {
        let log = log();
        let (first, second) = (log.subscribe(), log.subscribe());
        let mut set = none(&log);
        set.insert(0, 9);
        first.collect(&mut set, |_| Ok::<_, ()>(())).unwrap();
        assert_eq!(set.count(), 1);
        assert_eq!(collect(&second, &[]), BTreeSet::new());
    }

    proptest! {
        /// Each subscriber gets exactly what was written since it last looked, whoever looked in between, and
        /// whether KVM or this process had it.
        #[test]
        fn each_subscriber_sees_each_write(
            ops in proptest::collection::vec((0_u8..4, 0_usize..3, 0_u64..100), 0..150)
        ) {
            let log = log();
            let subscriptions = [log.subscribe(), log.subscribe(), log.subscribe()];
            let mut expected = [const { BTreeSet::new() }; 3];
            let mut kvm = Vec::new();
            for (op, who, page) in ops {
                match op {
                    0 => {
                        log.0.written.mark(Gpa(page * PAGE), 1);
                        expected.iter_mut().for_each(|set| { set.insert(page); });
                    }
                    1 => {
                        kvm.push(page);
                        expected.iter_mut().for_each(|set| { set.insert(page); });
                    }
                    _ => {
                        let found = collect(&subscriptions[who], &kvm);
                        kvm.clear();
                        prop_assert_eq!(&found, &expected[who]);
                        expected[who].clear();
                    }
                }
            }
        }
    }
}
