//! How often each byte is copied by construction, and by whom: what the measurement beside it is to
//! be read against.

use serde::Serialize;

use super::methods::{ReceiveMethod, SendMethod};

/// Who moves the bytes of a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mover {
    /// The processor, byte by byte, through its caches.
    Cpu,
    /// A device, by itself.
    Dma,
}

/// One move of every byte.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Step {
    from: &'static str,
    to: &'static str,
    by: Mover,
    why: &'static str,
}

/// Every step a byte takes on one side, in order.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Path {
    /// Steps when the interface gathers packets from scattered pages.
    pub(super) with_gather: Vec<Step>,
    /// Steps when it does not.
    pub(super) without_gather: Vec<Step>,
    /// System calls per chunk.
    pub(super) system_calls_per_chunk: u32,
    /// Changes between user and kernel mode per chunk: two per system call.
    pub(super) mode_switches_per_chunk: u32,
}

/// How many steps are `mover`'s.
pub(super) fn copies(steps: &[Step], mover: Mover) -> usize {
    steps.iter().filter(|step| step.by == mover).count()
}

/// The steps in words: `page cache -CPU-> user buffer (read copies out), ...`.
pub(super) fn describe(steps: &[Step]) -> String {
    let words = steps.iter().map(|step| {
        let by = match step.by {
            Mover::Cpu => "CPU",
            Mover::Dma => "DMA",
        };
        format!("{} -{by}-> {} ({})", step.from, step.to, step.why)
    });
    words.collect::<Vec<_>>().join(", ")
}

const FROM_DISK: Step = Step {
    from: "disk",
    to: "page cache",
    by: Mover::Dma,
    why: "only when the file is not cached",
};
const TO_DISK: Step = Step {
    from: "page cache",
    to: "disk",
    by: Mover::Dma,
    why: "write-back, later",
};
const TO_DEVICE: Step = Step {
    from: "socket buffer",
    to: "interface",
    by: Mover::Dma,
    why: "no device on loopback",
};
const FROM_DEVICE: Step = Step {
    from: "interface",
    to: "socket buffer",
    by: Mover::Dma,
    why: "no device on loopback",
};
const RECEIVE: Step = Step {
    from: "socket buffer",
    to: "user buffer",
    by: Mover::Cpu,
    why: "recv copies out",
};

const fn cpu(from: &'static str, to: &'static str, why: &'static str) -> Step {
    Step {
        from,
        to,
        by: Mover::Cpu,
        why,
    }
}

fn path(with_gather: Vec<Step>, without_gather: Vec<Step>, system_calls_per_chunk: u32) -> Path {
    Path {
        with_gather,
        without_gather,
        system_calls_per_chunk,
        mode_switches_per_chunk: 2 * system_calls_per_chunk,
    }
}

impl SendMethod {
    /// The way of a byte from the file to the interface.
    pub(super) fn path(self) -> Path {
        match self {
            Self::ReadWrite => {
                let read = cpu("page cache", "user buffer", "read copies out");
                let write = cpu("user buffer", "socket buffer", "write copies in");
                let steps = vec![FROM_DISK, read, write, TO_DEVICE];
                path(steps.clone(), steps, 2)
            }
            Self::MmapWrite => {
                let write = cpu(
                    "page cache",
                    "socket buffer",
                    "write copies in from the mapped pages",
                );
                let steps = vec![FROM_DISK, write, TO_DEVICE];
                path(steps.clone(), steps, 1)
            }
            Self::Sendfile => {
                let gather = Step {
                    from: "page cache",
                    to: "interface",
                    by: Mover::Dma,
                    why: "the socket buffer holds references to the pages; the device gathers them",
                };
                let linearize = cpu(
                    "page cache",
                    "socket buffer",
                    "a device that cannot gather needs one piece",
                );
                path(
                    vec![FROM_DISK, gather],
                    vec![FROM_DISK, linearize, TO_DEVICE],
                    1,
                )
            }
        }
    }
}

impl ReceiveMethod {
    /// The way of a byte from the interface to the file; gathering is a matter of sending only.
    pub(super) fn path(self) -> Path {
        let (steps, calls) = match self {
            Self::Discard => (vec![FROM_DEVICE, RECEIVE], 1),
            Self::Pwrite => {
                let write = cpu("user buffer", "page cache", "pwrite copies in");
                (vec![FROM_DEVICE, RECEIVE, write, TO_DISK], 2)
            }
            Self::CopyIntoMap => {
                let store = cpu("user buffer", "page cache", "memcpy into the mapped pages");
                (vec![FROM_DEVICE, RECEIVE, store, TO_DISK], 1)
            }
            Self::ReceiveIntoMap => {
                let receive = cpu(
                    "socket buffer",
                    "page cache",
                    "recv copies out, into the mapped pages",
                );
                (vec![FROM_DEVICE, receive, TO_DISK], 1)
            }
        };
        path(steps.clone(), steps, calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(steps: &[Step]) -> (usize, usize) {
        (copies(steps, Mover::Cpu), copies(steps, Mover::Dma))
    }

    #[test]
    fn sending_takes_four_copies_three_or_two_with_a_gathering_device() {
        let expected = [
            (SendMethod::ReadWrite, (2, 2), (2, 2), 4),
            (SendMethod::MmapWrite, (1, 2), (1, 2), 2),
            (SendMethod::Sendfile, (0, 2), (1, 2), 2),
        ];
        for (method, with_gather, without_gather, switches) in expected {
            let path = method.path();
            assert_eq!(counts(&path.with_gather), with_gather, "{method:?}");
            assert_eq!(counts(&path.without_gather), without_gather, "{method:?}");
            assert_eq!(path.mode_switches_per_chunk, switches, "{method:?}");
        }
    }

    #[test]
    fn receiving_saves_a_copy_only_straight_into_the_map() {
        let expected = [
            (ReceiveMethod::Discard, (1, 1), 2),
            (ReceiveMethod::Pwrite, (2, 2), 4),
            (ReceiveMethod::CopyIntoMap, (2, 2), 2),
            (ReceiveMethod::ReceiveIntoMap, (1, 2), 2),
        ];
        for (method, copies, switches) in expected {
            let path = method.path();
            assert_eq!(counts(&path.with_gather), copies, "{method:?}");
            assert_eq!(path.mode_switches_per_chunk, switches, "{method:?}");
        }
    }

    #[test]
    fn every_path_is_a_chain_from_one_end_to_the_other() {
        let sends = [
            SendMethod::ReadWrite,
            SendMethod::MmapWrite,
            SendMethod::Sendfile,
        ]
        .map(SendMethod::path);
        for path in sends {
            for steps in [&path.with_gather, &path.without_gather] {
                assert!(steps.windows(2).all(|pair| pair[0].to == pair[1].from));
                assert_eq!(
                    (steps[0].from, steps[steps.len() - 1].to),
                    ("disk", "interface")
                );
            }
        }
    }
}
