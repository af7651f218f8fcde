//! Buffers for disk and network: page-aligned, and used again. The first touch of a page costs
//! more than copying it, and some CPUs copy 7 to 25 times slower between a page and an address
//! just behind one, which is where an allocator puts large vectors. Must never hand out what
//! another holder still reads.

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;

/// Where a buffer's bytes begin: the size of a page.
const ALIGNMENT: usize = 4096;
/// Buffers that one pool keeps for the next user.
const BUFFERS_MAX: usize = 64;

/// Buffers of one size that come home from whichever thread lets go of them.
#[derive(Clone)]
pub(crate) struct Buffers {
    home: Arc<ArrayQueue<Vec<u8>>>,
    size: usize,
}

/// A buffer on loan; back home when dropped.
pub(crate) struct Buffer {
    storage: Vec<u8>,
    start: usize,
    length: usize,
    size: usize,
    home: Arc<ArrayQueue<Vec<u8>>>,
}

impl Buffers {
    /// A pool of buffers that hold `size` bytes each.
    pub(crate) fn new(size: usize) -> Self {
        Self { home: Arc::new(ArrayQueue::new(BUFFERS_MAX)), size }
    }

    /// A buffer with nothing in it.
    pub(crate) fn take(&self) -> Buffer {
        let storage = self.home.pop().unwrap_or_else(|| vec![0; self.size + ALIGNMENT]);
        // Can't be told only while a program is compiled: then any start is right.
        let start = storage.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Buffer { storage, start, length: 0, size: self.size, home: self.home.clone() }
    }
}

impl Buffer {
    /// The bytes that were put in.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.length]
    }

    /// Where further bytes go; `grow` says how many were put there.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.storage[self.start + self.length..self.start + self.size]
    }

    /// Counts bytes that were put into `room`.
    pub(crate) fn grow(&mut self, count: usize) {
        assert!(count <= self.size - self.length, "no more than there was room for");
        self.length += count;
    }

    /// Copies in as much as fits; says how much that was.
    pub(crate) fn fill_from(&mut self, bytes: &[u8]) -> usize {
        let room = self.room();
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        self.grow(count);
        count
    }

    /// Whether nothing more fits.
    pub(crate) fn is_full(&self) -> bool {
        self.length == self.size
    }

    /// What is in it, to be shared; the buffer goes home with the last holder.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.filled()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // A full pool drops the buffer: that is its bound.
        drop(self.home.push(std::mem::take(&mut self.storage)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_bounded_and_used_again() {
        let buffers = Buffers::new(10_000);
        let mut buffer = buffers.take();
        assert_eq!(buffer.fill_from(&[7; 6000]), 6000);
        assert_eq!(buffer.fill_from(&[8; 6000]), 4000);
        assert!(buffer.is_full());
        let first = buffer.filled().as_ptr();
        assert_eq!(first.addr() % ALIGNMENT, 0);
        let shared = buffer.into_bytes();
        let other = shared.slice(6000..);
        drop(shared);
        assert!(other.iter().all(|&byte| byte == 8));
        assert_ne!(buffers.take().filled().as_ptr(), first, "somebody still reads it");
        drop(other);
        let again: Vec<_> = (0..2).map(|_| buffers.take()).collect();
        assert!(again.iter().any(|buffer| buffer.filled().as_ptr() == first));
        assert!(again.iter().all(|buffer| buffer.filled().is_empty()));
    }
}
