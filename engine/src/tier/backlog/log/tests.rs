//! The log on real files: whatever happened to them, what was kept is found again.

use super::*;
use crate::digest::Digest;

fn blob(number: u64) -> Arc<Item> {
    Arc::new(Item::Blob(Digest::of(&number.to_le_bytes())))
}

fn action(number: u64) -> Arc<Item> {
    let action = Digest::of(&number.to_le_bytes());
    Arc::new(Item::Action { instance: format!("instance-{number}"), action })
}

fn open(directory: &Path) -> (Log, Damage) {
    Log::open(directory, false).unwrap()
}

fn numbers(log: &Log) -> Vec<u64> {
    log.pending().into_iter().map(|(number, _)| number).collect()
}

#[test]
fn what_was_appended_and_not_finished_is_found_again() {
    for sync in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(directory.path(), sync).unwrap();
        let kept = log.append(vec![blob(1), action(2), blob(3)]).unwrap();
        log.finish(&[kept[1].0]).unwrap();
        drop(log);
        let (mut log, damage) = open(directory.path());
        assert_eq!(damage, Damage::default());
        assert_eq!(log.pending(), [kept[0].clone(), kept[2].clone()]);
        let more = log.append(vec![action(4)]).unwrap();
        drop(log);
        let (log, _) = open(directory.path());
        assert_eq!(log.pending(), [kept[0].clone(), kept[2].clone(), more[0].clone()]);
    }
}

#[test]
fn a_tail_torn_at_any_byte_costs_only_the_last_record() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path());
    let first = log.append(vec![blob(1), action(2)]).unwrap();
    let before = log.disk_bytes();
    log.append(vec![action(3)]).unwrap();
    drop(log);
    let name = path(directory.path(), 1);
    let whole = fs::read(&name).unwrap();
    for length in usize::try_from(before).unwrap()..whole.len() {
        for zeros in [0, 64] {
            let torn = tempfile::tempdir().unwrap();
            let mut bytes = whole[..length].to_vec();
            bytes.resize(length + zeros, 0);
            fs::write(path(torn.path(), 1), &bytes).unwrap();
            let (mut log, damage) = open(torn.path());
            assert_eq!(log.pending(), first, "cut at {length}");
            assert_eq!(damage.torn, u64::from(bytes.len() as u64 > before));
            assert_eq!(fs::metadata(path(torn.path(), 1)).unwrap().len(), before);
            log.append(vec![blob(9)]).unwrap();
            drop(log);
            let (log, damage) = open(torn.path());
            assert_eq!((log.pending().len(), damage), (3, Damage::default()));
        }
    }
}

#[test]
fn a_flipped_byte_costs_no_more_than_its_own_record() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path());
    log.append(vec![blob(1), action(2), blob(3)]).unwrap();
    drop(log);
    let whole = fs::read(path(directory.path(), 1)).unwrap();
    for at in 0..whole.len() {
        let other = tempfile::tempdir().unwrap();
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        fs::write(path(other.path(), 1), &bytes).unwrap();
        let (log, damage) = open(other.path());
        assert_eq!(damage.damaged + damage.torn, 1, "flipped at {at}");
        let left = numbers(&log);
        assert_eq!(left.len(), if at < HEADER_BYTES { 3 } else { 2 }, "flipped at {at}");
    }
}

#[test]
fn a_segment_of_another_version_is_refused_and_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let mut header = record::header();
    header[8] = 2;
    let crc = crc32fast::hash(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    fs::write(path(directory.path(), 7), header).unwrap();
    let error = Log::open(directory.path(), false).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(fs::read(path(directory.path(), 7)).unwrap(), header);
}

#[test]
fn leftovers_of_any_name_are_counted_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path());
    log.append(vec![blob(1)]).unwrap();
    drop(log);
    for name in ["x.log", "1.log", "0000000000000001.log.tmp", "ffffffffffffffff.log", "LOCK"] {
        fs::write(directory.path().join(name), b"not ours").unwrap();
    }
    fs::create_dir(path(directory.path(), 2)).unwrap();
    fs::write(path(directory.path(), 3), b"").unwrap();
    let (mut log, damage) = open(directory.path());
    assert_eq!((damage.strangers, damage.torn, damage.damaged), (6, 1, 0));
    log.append(vec![blob(2)]).unwrap();
    drop(log);
    let (log, _) = open(directory.path());
    assert_eq!(log.pending().len(), 2);
    assert!(directory.path().join("x.log").exists());
}

#[test]
fn the_directory_stays_in_proportion_to_what_is_pending() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path());
    let stays = log.append(vec![action(0)]).unwrap();
    for round in 0..60 {
        let items = (1..2000).map(|number| blob(round * 2000 + number)).collect();
        let kept = log.append(items).unwrap();
        let numbers: Vec<u64> = kept.into_iter().map(|(number, _)| number).collect();
        log.finish(&numbers).unwrap();
        let on_disk: u64 = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert_eq!(on_disk, log.disk_bytes());
        assert!(on_disk < 4 * SEGMENT_BYTES, "{on_disk} bytes");
    }
    drop(log);
    let (log, _) = open(directory.path());
    assert_eq!(log.pending(), stays);
}

#[test]
fn many_starts_leave_few_segments() {
    let directory = tempfile::tempdir().unwrap();
    let mut stays = Vec::new();
    for round in 0..50 {
        let (mut log, _) = open(directory.path());
        let kept = log.append(vec![blob(round), action(round)]).unwrap();
        log.finish(&[kept[1].0]).unwrap();
        stays.push(kept[0].clone());
        assert_eq!(log.pending(), stays);
    }
    assert!(fs::read_dir(directory.path()).unwrap().count() <= 10);
}

#[test]
fn a_write_that_fails_promises_nothing_and_the_next_one_works() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path());
    let first = log.append(vec![blob(1)]).unwrap();
    // Neither writable nor to be cut: as bad as a disk gets.
    log.active = Some(File::open(path(directory.path(), 1)).unwrap());
    log.append(vec![blob(2)]).unwrap_err();
    assert_eq!(log.pending(), first);
    let third = log.append(vec![blob(3)]).unwrap();
    assert_eq!(log.pending(), [first[0].clone(), third[0].clone()]);
    let again = open(directory.path()).0.pending();
    assert_eq!(again, log.pending());
}

#[test]
fn what_a_failed_sync_covered_is_appended_again() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path());
    let kept = log.append(vec![blob(1), action(2)]).unwrap();
    log.doubtful.push(1);
    log.seal();
    log.flush().unwrap();
    assert!(!path(directory.path(), 1).exists());
    assert!(!log.is_dirty());
    assert_eq!(open(directory.path()).0.pending(), kept);
}
