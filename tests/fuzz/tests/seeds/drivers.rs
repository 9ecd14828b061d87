//! Drivers of virtio devices, in the steps of their targets; and the devices' states.

type Add<'a> = &'a mut dyn FnMut(&'static str, &str, Vec<u8>);

/// Bytes of a step.
const STEP: usize = 11;

// What a step accesses.
const CONFIG: u8 = 0;
const STRUCTURES: u8 = 1;
const MSIX: u8 = 2;
const NOTIFY: u8 = 3;
const QUIESCE: u8 = 4;
const RESUME: u8 = 5;
const RAM: u8 = 6;
const REQUEST: u8 = 7;

/// How a driver has its rings.
struct Form {
    /// Of the seeds' names.
    prefix: &'static str,
    /// Bits 63:32 of the features that it agrees on.
    features: u64,
    /// Bytes of a ring's saved state.
    saved: u16,
}

/// With VERSION_1.
const SPLIT: Form = Form {
    prefix: "",
    features: 1,
    saved: 6,
};

/// With VERSION_1 and RING_PACKED; no request is saved.
const PACKED: Form = Form {
    prefix: "packed-",
    features: 1 | 4,
    saved: 16,
};

/// The second half of a descriptor of a packed ring, which is available.
fn packed(len: u64, id: u64, flags: u64) -> u64 {
    len | id << 32 | (flags | 1 << 7) << 48
}

/// The steps of a driver.
#[derive(Default)]
struct Steps(Vec<u8>);

impl Steps {
    fn write(&mut self, to: u8, size: u8, offset: u64, value: u64) {
        self.0.push(0x20 | size << 3 | to);
        self.0.extend(u16::try_from(offset).unwrap().to_le_bytes());
        self.0.extend(value.to_le_bytes());
    }

    /// Bytes in RAM, eight at once.
    fn put(&mut self, at: u64, bytes: &[u8]) {
        for (offset, chunk) in (0..).step_by(8).zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write(RAM, 3, at + offset, u64::from_le_bytes(word));
        }
    }

    /// Words in RAM: (address, value).
    fn put_words(&mut self, words: &[(u64, u64)]) {
        for &(address, value) in words {
            self.write(RAM, 3, address, value);
        }
    }

    /// Makes buffers available in queue `queue`: (address, length, the device writes it).
    fn offer(&mut self, queue: u64, buffers: &[(u64, u32, bool)]) {
        let [table, available, _] = rings(queue);
        let mut ring = vec![0; 2];
        ring.extend(u16::try_from(buffers.len()).unwrap().to_le_bytes());
        for (head, (gpa, len, written)) in (0_u16..).zip(buffers) {
            let mut descriptor = gpa.to_le_bytes().to_vec();
            descriptor.extend(len.to_le_bytes());
            descriptor.extend(if *written { [2, 0, 0, 0] } else { [0; 4] });
            self.put(table + u64::from(head) * 16, &descriptor);
            ring.extend(head.to_le_bytes());
        }
        self.put(available, &ring);
    }

    /// The driver begins: it agrees on `features` below bit 32 and on the form, and uses these queues.
    fn begin(&mut self, features: u64, form: &Form, queues: &[u64]) {
        // Acknowledge and driver; the form; features OK (virtio 1.2, 3.1.1).
        self.write(STRUCTURES, 0, 0x14, 3);
        self.write(STRUCTURES, 2, 0x08, 0);
        self.write(STRUCTURES, 2, 0x0c, features);
        self.write(STRUCTURES, 2, 0x08, 1);
        self.write(STRUCTURES, 2, 0x0c, form.features);
        self.write(STRUCTURES, 0, 0x14, 0xb);
        for queue in queues {
            self.write(STRUCTURES, 1, 0x16, *queue);
            self.write(STRUCTURES, 1, 0x18, 8);
            for (register, ring) in [0x20, 0x28, 0x30].into_iter().zip(rings(*queue)) {
                self.write(STRUCTURES, 3, register, ring);
            }
            self.write(STRUCTURES, 1, 0x1c, 1);
        }
        self.write(STRUCTURES, 0, 0x14, 0xf);
    }

    fn notify(&mut self, queue: u64) {
        self.write(NOTIFY, 1, queue * 4, 0);
    }

    /// Stopped and not, and reset.
    fn end(&mut self) {
        self.write(QUIESCE, 0, 0, 0);
        self.write(RESUME, 0, 0, 0);
        self.write(STRUCTURES, 0, 0x14, 0);
    }

    fn count(&self) -> u8 {
        u8::try_from(self.0.len() / STEP).unwrap()
    }

    /// States that are saved after `before` steps, and damaged from so many bytes before their end on.
    fn states(
        &self,
        add: Add<'_>,
        target: &'static str,
        form: &Form,
        before: u8,
        damages: &[(&str, u16, &[u8])],
    ) {
        for (name, position, damage) in damages {
            let mut state = position.to_le_bytes().to_vec();
            state.push(u8::try_from(damage.len()).unwrap());
            state.extend(*damage);
            state.push(before);
            state.extend(&self.0);
            add(target, &format!("{}{name}", form.prefix), state);
        }
    }
}

/// The rings of a queue, of 8 descriptors each.
fn rings(queue: u64) -> [u64; 3] {
    let at = 0x1000 + queue * 0x400;
    [at, at + 0x100, at + 0x200]
}

/// Drivers that start a device and make a request, in the steps of that target; and the device's state, which
/// ends with `own` bytes of its own.
pub(super) fn all(add: Add<'_>) {
    // A buffer of 64 bytes that the device writes, in rings at 0x1000, 0x2000 and 0x3000.
    let bytes = [(0x1000, 0x8000), (0x1008, 64 | 2 << 32), (0x2000, 1 << 16)];
    virtio_device(add, "virtio-rng", "virtio-state", &SPLIT, &bytes, 0);
    let bytes = [(0x1000, 0x8000), (0x1008, packed(64, 7, 2))];
    virtio_device(add, "virtio-rng", "virtio-state", &PACKED, &bytes, 0);
    // Three requests of a header, data, and a status, which the device writes (virtio 1.2, 5.2.6): a read, a
    // write and write zeroes. The size of the disk and the number of requests end the state.
    let [mut split, mut both, mut in_packed] = [(); 3].map(|()| Vec::new());
    for (n, (kind, writes)) in (0_u64..).zip([(0, 2), (1, 0), (13, 0)]) {
        let (table, buffers) = (0x1000 + n * 48, 0x8000 + n * 0x400);
        let next = |index: u64| (1 | index << 16) << 32;
        let data = if kind == 13 { 16 } else { 512 };
        split.extend([
            (table, buffers),
            (table + 8, 16 | next(3 * n + 1)),
            (table + 16, buffers + 0x100),
            (table + 24, data | writes << 32 | next(3 * n + 2)),
            (table + 32, buffers + 0x80),
            (table + 40, 1 | 2 << 32),
        ]);
        in_packed.extend([
            (table, buffers),
            (table + 8, packed(16, 0, 1)),
            (table + 16, buffers + 0x100),
            (table + 24, packed(data, 0, 1 | writes)),
            (table + 32, buffers + 0x80),
            (table + 40, packed(1, n, 2)),
        ]);
        both.extend([
            (buffers, kind),
            (buffers + 8, 3 + n),
            // The range that is zeroed: 8 sectors, which may be given back.
            (buffers + 0x108, 8 | 1 << 32),
        ]);
    }
    // Available: the heads 0, 3 and 6.
    split.extend([(0x2000, 3 << 16 | 3 << 48), (0x2008, 6)]);
    for (form, ring) in [(&SPLIT, split), (&PACKED, in_packed)] {
        let ram = [&ring[..], &both].concat();
        virtio_device(add, "virtio-blk", "virtio-blk-state", form, &ram, 16);
    }
    virtio_net(add, &SPLIT);
    virtio_net(add, &PACKED);
    console(add);
    port(add);
    balloon(add);
}

/// A driver of a network card that sends a frame in three descriptors, gets it back in two buffers of queue
/// 0, and gives a command; and the card's state.
fn virtio_net(add: Add<'_>, form: &Form) {
    // Buffers at 0x8000. Of each queue: address, length and flags of elements, and the requests that they are
    // of, by the first.
    type Buffers = (u64, &'static [(u64, u64, u64)], &'static [u64]);
    let buffers: [Buffers; 3] = [
        (0, &[(0x8000, 40, 2), (0x8100, 2000, 2)], &[0, 1]),
        (1, &[(0x9000, 7, 1), (0x9007, 5, 1), (0x9100, 60, 0)], &[0]),
        (4, &[(0xa000, 4, 1), (0xa010, 1, 2)], &[0]),
    ];
    // To use two pairs.
    let mut ram = vec![(0xa000, 4 | 2 << 16)];
    for (queue, elements, heads) in buffers {
        let [table, available, _] = rings(queue);
        for (n, (address, len, flags)) in (0..).zip(elements) {
            let end = match form.prefix {
                "" => len | (flags | ((flags & 1) * (n + 1)) << 16) << 32,
                _ => packed(*len, n, *flags),
            };
            ram.extend([(table + 16 * n, *address), (table + 16 * n + 8, end)]);
        }
        if form.prefix.is_empty() {
            let count = heads.len() as u64;
            let heads = heads.iter().rev().fold(0, |all, head| all << 16 | head);
            ram.push((available, count << 16 | heads << 32));
        }
    }
    let mut steps = Steps::default();
    steps.put_words(&ram);
    // Merged buffers, the command queue and pairs of queues.
    steps.begin(1 << 15 | 1 << 17 | 1 << 22, form, &[0, 1, 4]);
    for queue in [1, 0, 4] {
        steps.notify(queue);
    }
    let before = steps.count();
    // The link down and up again.
    steps.write(REQUEST, 3, 0, 1);
    steps.notify(1);
    steps.write(REQUEST, 3, 0, 0);
    steps.end();
    add(
        "virtio-net",
        &format!("{}a-driver", form.prefix),
        steps.0.clone(),
    );
    // The state ends with the address, the pairs in use, the offloads, the link and the announcement.
    let damages: &[(&str, u16, &[u8])] = &[
        ("as-saved", 0, &[]),
        ("no-pairs", 12, &[0, 0]),
        ("all-offloads", 10, &[0xff; 8]),
        // Of the last queue.
        ("other-indices", 18 + form.saved, &[0xff; 6]),
    ];
    steps.states(add, "virtio-net-state", form, before, damages);
}

/// A driver with one queue.
fn virtio_device(
    add: Add<'_>,
    target: &'static str,
    of_state: &'static str,
    form: &Form,
    ram: &[(u64, u64)],
    own: u16,
) {
    /// So many steps from the first notification on.
    const FROM_NOTIFICATION: u8 = 12;
    let mut steps = Steps::default();
    // MSI-X: a message for each vector, none masked; enabled at its capability.
    for vector in 0..2 {
        steps.write(MSIX, 3, vector * 16, 0xfee0_0000);
        steps.write(MSIX, 3, vector * 16 + 8, 0x40);
    }
    for offset in (0x40..0xa0).step_by(4) {
        steps.write(CONFIG, 1, offset + 2, 0x8000);
    }
    steps.put_words(ram);
    // Acknowledge and driver; the form; the queue; driver OK (virtio 1.2, 3.1.1).
    steps.write(STRUCTURES, 0, 0x14, 3);
    steps.write(STRUCTURES, 2, 0x08, 1);
    steps.write(STRUCTURES, 2, 0x0c, form.features);
    steps.write(STRUCTURES, 0, 0x14, 0xb);
    steps.write(STRUCTURES, 1, 0x10, 0);
    steps.write(STRUCTURES, 1, 0x1a, 1);
    for (register, ring) in [(0x20, 0x1000), (0x28, 0x2000), (0x30, 0x3000)] {
        steps.write(STRUCTURES, 3, register, ring);
    }
    steps.write(STRUCTURES, 1, 0x1c, 1);
    steps.write(STRUCTURES, 0, 0x14, 0xf);
    steps.notify(0);
    // A user lets the disk grow, limits it, and lets it shrink.
    steps.write(REQUEST, 3, 0, 4 << 20);
    steps.write(REQUEST, 3, 1, 1 << 42 | 50);
    steps.write(REQUEST, 3, 2, 1 << 19);
    // Bus mastering off, device stopped, BARs moved, device reset.
    steps.write(CONFIG, 1, 0x04, 2);
    steps.notify(0);
    steps.write(QUIESCE, 0, 0, 0);
    steps.write(CONFIG, 1, 0x04, 6);
    steps.write(RESUME, 0, 0, 0);
    steps.write(CONFIG, 2, 0x10, 0xd800_0000);
    steps.write(CONFIG, 2, 0x10, 0xd000_0000);
    steps.write(STRUCTURES, 0, 0x14, 0);
    add(target, &format!("{}a-driver", form.prefix), steps.0.clone());
    // Saved before it is notified. The state ends with the queue's three addresses, the ISR status, and the
    // ring's places.
    let before = steps.count() - FROM_NOTIFICATION;
    let ring = form.saved + own;
    let damages: &[(&str, u16, &[u8])] = &[
        ("as-saved", 0, &[]),
        ("other-indices", ring, &[0xff; 4]),
        ("an-interrupt", 1 + ring, &[1]),
        ("descriptors-behind-the-ram", 25 + ring, &[0, 0, 0, 0, 1]),
        ("a-ring-at-no-place", 25 + ring, &[0xff; 24]),
    ];
    steps.states(add, of_state, form, before, damages);
}

/// A console that says something and reads something, on a terminal that changes its size.
fn console(add: Add<'_>) {
    let mut steps = Steps::default();
    steps.put(0x8000, b"hello, world\n");
    steps.offer(1, &[(0x8000, 13, false), (0x8000, 0x5000, false)]);
    steps.offer(0, &[(0x9000, 100, true), (0x9100, 1000, true)]);
    steps.begin(5, &SPLIT, &[0, 1]);
    // An emergency (5.3.6).
    steps.write(STRUCTURES, 2, 0x2008, u64::from(b'!'));
    steps.notify(1);
    steps.write(REQUEST, 3, 0, u64::from_le_bytes(*b"date\nls\n"));
    steps.write(REQUEST, 3, 3, 132 << 16 | 50);
    steps.notify(0);
    steps.write(REQUEST, 3, 1, 0);
    steps.notify(1);
    steps.end();
    add("virtio-console", "a-driver", steps.0);
}

/// A port that is added, opened, and used both ways; and its state.
fn port(add: Add<'_>) {
    let message = |id: u32, event: u16, value: u16| {
        let mut bytes = id.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        bytes
    };
    let mut steps = Steps::default();
    steps.put(0x8000, &message(u32::MAX, 0, 1));
    steps.put(0x8008, &message(1, 3, 1));
    steps.put(0x8010, &message(1, 6, 1));
    steps.offer(
        2,
        &[(0x9000, 64, true), (0x9040, 64, true), (0x9080, 64, true)],
    );
    steps.offer(
        3,
        &[(0x8000, 8, false), (0x8008, 8, false), (0x8010, 8, false)],
    );
    steps.offer(4, &[(0xa000, 100, true)]);
    steps.offer(5, &[(0x8000, 24, false), (0x8000, 0x6000, false)]);
    steps.begin(2, &SPLIT, &[2, 3, 4, 5]);
    steps.write(REQUEST, 3, 2, 1);
    steps.notify(3);
    steps.notify(5);
    steps.write(REQUEST, 3, 0, 0x0807_0605_0403_0201);
    let before = steps.count();
    steps.notify(4);
    steps.write(REQUEST, 3, 1, 0);
    steps.notify(5);
    steps.write(REQUEST, 3, 2, 0);
    steps.notify(2);
    steps.end();
    add("virtio-port", "a-driver", steps.0.clone());
    // The state ends with the input on its way, five words of the port, its size, and the bytes sent.
    let damages: &[(&str, u16, &[u8])] = &[
        ("as-saved", 0, &[]),
        ("more-input-than-there-is", 8, &[0xff; 8]),
        ("not-yes-or-no", 13, &[2]),
        ("all-to-be-told", 13, &[1; 5]),
        ("more-sent-than-there-is", 25, &[0xff; 8]),
        ("other-indices", 31, &[0xff; 6]),
    ];
    steps.states(add, "virtio-port-state", &SPLIT, before, damages);
}

/// A balloon that is filled and emptied, and asked for statistics; reports; and its state.
fn balloon(add: Add<'_>) {
    let mut steps = Steps::default();
    // Two pages of RAM and one of none; statistics; and pages that are reported.
    steps.put(
        0x8000,
        &[0x21, 0, 0, 0, 0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
    );
    steps.put(
        0x8100,
        &[4, 0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 0, 9, 0, 0, 0, 0, 0, 0, 0],
    );
    steps.offer(0, &[(0x8000, 12, false), (0x8000, 3, false)]);
    steps.offer(1, &[(0x8000, 8, false)]);
    steps.offer(2, &[(0x8100, 20, false), (0x8100, 9, false)]);
    steps.offer(3, &[(0x3_0000, 0x2800, true), (0x5_0001, 0x1000, true)]);
    steps.begin(0x36, &SPLIT, &[0, 1, 2, 3]);
    steps.write(REQUEST, 3, 0, 32 << 20);
    let before = steps.count();
    for queue in [0, 2, 3] {
        steps.notify(queue);
    }
    // What the driver says is in it, and what it fills free pages with (5.5.4).
    steps.write(STRUCTURES, 2, 0x2004, 3);
    steps.write(STRUCTURES, 2, 0x200c, 0);
    steps.notify(1);
    steps.write(REQUEST, 3, 0, 1);
    steps.end();
    add("virtio-balloon", "a-driver", steps.0.clone());
    // The state ends with pages wanted and there, the poison, and the buffer of statistics.
    let damages: &[(&str, u16, &[u8])] = &[
        ("as-saved", 0, &[]),
        ("all-of-it", 15, &[0xff; 12]),
        ("a-buffer-that-is-none", 3, &[1, 0xff, 0xff]),
        ("other-indices", 21, &[0xff; 6]),
    ];
    steps.states(add, "virtio-balloon-state", &SPLIT, before, damages);
}
