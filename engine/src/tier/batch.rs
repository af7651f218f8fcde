//! How many blobs go into one request. Must never leave one out.

/// Blobs in one request: their digests are bytes too, about 80 for each.
const BATCH_LEN_MAX: usize = 4000;

/// Items in their order, in groups of which each has up to `bytes_max` bytes; one that is larger
/// is a group of its own.
pub(super) fn batches<T>(
    items: impl IntoIterator<Item = T>,
    size: impl Fn(&T) -> u64,
    bytes_max: u64,
) -> Vec<Vec<T>> {
    let mut batches: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for item in items {
        let size = size(&item);
        match batches.last_mut() {
            Some(batch) if size <= room && batch.len() < BATCH_LEN_MAX => batch.push(item),
            _ => {
                room = bytes_max;
                batches.push(vec![item]);
            }
        }
        room = room.saturating_sub(size);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_in_one_batch_and_none_is_too_large() {
        for (sizes, expected) in [
            (vec![], vec![]),
            (vec![3], vec![vec![3]]),
            (vec![30], vec![vec![30]]),
            (vec![3, 7, 1], vec![vec![3, 7], vec![1]]),
            (vec![11, 1, 9, 1], vec![vec![11], vec![1, 9], vec![1]]),
        ] {
            assert_eq!(batches(sizes, |&size| size, 10), expected);
        }
        let many = batches(vec![0; BATCH_LEN_MAX + 1], |_| 0, 10);
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [BATCH_LEN_MAX, 1]);
    }
}
