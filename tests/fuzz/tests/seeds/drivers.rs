//! Drivers of consoles and balloons, which have several queues.

type Add<'a> = &'a mut dyn FnMut(&'static str, &str, Vec<u8>);

/// Bytes of a step.
const STEP: usize = 11;

// What a step accesses.
const STRUCTURES: u8 = 1;
const NOTIFY: u8 = 3;
const QUIESCE: u8 = 4;
const RESUME: u8 = 5;
const RAM: u8 = 6;
const REQUEST: u8 = 7;

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

    /// The driver begins: it agrees on `features` below bit 32, and uses these queues.
    fn begin(&mut self, features: u64, queues: &[u64]) {
        // Acknowledge and driver; VERSION_1; features OK (virtio 1.2, 3.1.1).
        self.write(STRUCTURES, 0, 0x14, 3);
        self.write(STRUCTURES, 2, 0x08, 0);
        self.write(STRUCTURES, 2, 0x0c, features);
        self.write(STRUCTURES, 2, 0x08, 1);
        self.write(STRUCTURES, 2, 0x0c, 1);
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
        before: u8,
        damages: &[(&str, u16, &[u8])],
    ) {
        for (name, position, damage) in damages {
            let mut state = position.to_le_bytes().to_vec();
            state.push(u8::try_from(damage.len()).unwrap());
            state.extend(*damage);
            state.push(before);
            state.extend(&self.0);
            add(target, name, state);
        }
    }
}

/// The rings of a queue, of 8 descriptors each.
fn rings(queue: u64) -> [u64; 3] {
    let at = 0x1000 + queue * 0x400;
    [at, at + 0x100, at + 0x200]
}

/// A console that says something and reads something, on a terminal that changes its size.
pub(super) fn console(add: Add<'_>) {
    let mut steps = Steps::default();
    steps.put(0x8000, b"hello, world\n");
    steps.offer(1, &[(0x8000, 13, false), (0x8000, 0x5000, false)]);
    steps.offer(0, &[(0x9000, 100, true), (0x9100, 1000, true)]);
    steps.begin(5, &[0, 1]);
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
pub(super) fn port(add: Add<'_>) {
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
    steps.begin(2, &[2, 3, 4, 5]);
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
    steps.states(add, "virtio-port-state", before, damages);
}

/// A balloon that is filled and emptied, and asked for statistics; reports; and its state.
pub(super) fn balloon(add: Add<'_>) {
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
    steps.begin(0x36, &[0, 1, 2, 3]);
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
    steps.states(add, "virtio-balloon-state", before, damages);
}
