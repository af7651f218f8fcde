//! Emptying a segment: what is to stay is copied to the one that grows, and made as durable as it
//! was; then the old one goes as a whole. Must never let a segment go while a record that is
//! promised, or was used meanwhile, lies nowhere else.

use super::{
    Shard,
    index::{Entry, Place, Shadow},
    recovery::records_of,
    segment::{self, Kind, RECORD_HEADER_BYTES, Record, RecordEntry},
    segments::SegmentFile,
    survey::{Ages, Cutoff},
};
use crate::{
    blob::{BlobError, Home, Result},
    digest::Digest,
};
use bytes::Bytes;
use futures_lite::future::yield_now;
use futures_util::future::join_all;
use std::sync::Arc;

/// Records that are copied at the same time: one write of the segment that grows.
const CARRIED_MAX: usize = 128;
/// Bytes of records that are copied at the same time.
const CARRIED_BYTES_MAX: u64 = 4 << 20;
/// Times that a segment is looked at again for what was used while it was emptied.
const PASSES_MAX: usize = 4;

/// A segment that is emptied.
struct Emptied<'a> {
    id: u32,
    file: Arc<SegmentFile>,
    /// Whether its file stays, because another shard has records in it.
    shared: bool,
    records: Vec<RecordEntry>,
    cutoff: &'a Cutoff,
    /// When that began.
    since: u32,
}

/// A record that is the one of its blob or action.
struct Live {
    record: RecordEntry,
    age: u32,
    /// Whether it may not go.
    stays: bool,
    /// Whether nothing asks for it to go.
    wanted: bool,
}

impl Shard {
    /// Copies what stays of a segment and lets it go; leaves it as it is where that is not to be
    /// had.
    pub(super) async fn empty_segment(&self, id: u32, cutoff: &Cutoff) -> Result<()> {
        let Some((file, shared)) = self.segments.held.file(id) else { return Ok(()) };
        let opened = file.clone();
        let look = move || records_of(&opened.path, &opened.file);
        let records = self.env.disk.look(look).await?;
        let since = self.env.clock.seconds();
        let emptied = Emptied { id, file, shared, records, cutoff, since };
        let mut chosen = self.first_choice(&emptied).await;
        for _ in 0..PASSES_MAX {
            let failed_syncs = self.failed_syncs.get();
            self.carry(&emptied, &chosen).await?;
            // What is copied has to be as durable as what it was copied from.
            if !self.sync_epoch().await || self.failed_syncs.get() != failed_syncs {
                self.shadow(&emptied);
                return Err(std::io::Error::other("the copies could not be synced").into());
            }
            chosen = self.let_blobs_go(&emptied).await;
            if chosen.is_empty() {
                chosen = self.late_results(&emptied);
            }
            if chosen.is_empty() {
                return self.drop_segment(&emptied).await;
            }
        }
        self.shadow(&emptied);
        Ok(())
    }

    /// What may not go, and of the rest what was used last, up to half of the segment.
    async fn first_choice(&self, emptied: &Emptied<'_>) -> Vec<RecordEntry> {
        let (mut live, mut ages, mut all) = (Vec::new(), Ages::new(), 0);
        for records in emptied.records.chunks(CARRIED_MAX) {
            for record in records {
                let bytes = segment::record_bytes(record.length);
                all += bytes;
                let Some(one) = self.live(emptied, record) else { continue };
                if one.stays || one.wanted {
                    // What stays comes before the youngest.
                    ages.add(if one.stays { 0 } else { one.age }, bytes);
                    live.push(one);
                }
            }
            yield_now().await;
        }
        let fits = ages.youngest(all / 2);
        live.retain(|live| live.stays || fits(live.age));
        live.into_iter().map(|live| live.record).collect()
    }

    /// Takes from the index, a part at a time, the blobs that are to go with the segment; those
    /// that were promised or used meanwhile are still to be copied.
    async fn let_blobs_go(&self, emptied: &Emptied<'_>) -> Vec<RecordEntry> {
        let mut late = Vec::new();
        for records in emptied.records.chunks(CARRIED_MAX) {
            for record in records.iter().filter(|record| record.kind == Kind::Blob) {
                match self.live(emptied, record) {
                    Some(live) if live.stays => late.push(*record),
                    Some(_) => self.let_go(&digest_of(record), Home::Segment),
                    None => {}
                }
            }
            yield_now().await;
        }
        late
    }

    /// The results that may not go with the segment and are not copied yet.
    fn late_results(&self, emptied: &Emptied<'_>) -> Vec<RecordEntry> {
        let stays = |record: &&RecordEntry| {
            record.kind == Kind::Action && self.live(emptied, record).is_some_and(|live| live.stays)
        };
        emptied.records.iter().filter(stays).copied().collect()
    }

    /// What a record is to its blob or action; `None` where that is elsewhere by now, or gone.
    fn live(&self, emptied: &Emptied<'_>, record: &RecordEntry) -> Option<Live> {
        let (record, place, now) = (*record, record.place(emptied.id), self.env.clock.seconds());
        match record.kind {
            Kind::Blob => {
                let digest = digest_of(&record);
                let mut index = self.index.borrow_mut();
                let entry = index.get_mut(&digest).filter(|entry| entry.place() == Some(place))?;
                let stays = emptied.cutoff.keeps_promise(entry) || entry.used > emptied.since;
                let wanted = !emptied.cutoff.takes(entry);
                Some(Live { record, age: entry.age(now), stays, wanted })
            }
            Kind::Action => {
                let mut actions = self.actions.borrow_mut();
                let entry = actions.get_mut(&record.hash).filter(|entry| entry.place == place)?;
                let overshadowed = self.segments.held.casts(entry.shadow, emptied.id);
                let stays = emptied.shared || overshadowed || entry.used > emptied.since;
                let wanted = !emptied.cutoff.takes_result(entry.used);
                Some(Live { record, age: now.saturating_sub(entry.used), stays, wanted })
            }
        }
    }

    async fn carry(&self, emptied: &Emptied<'_>, chosen: &[RecordEntry]) -> Result<()> {
        let mut rest = chosen;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |record: &&RecordEntry| {
                bytes += segment::record_bytes(record.length);
                bytes <= CARRIED_BYTES_MAX
            };
            let count = rest.iter().take(CARRIED_MAX).take_while(fits).count().max(1);
            let (batch, later) = rest.split_at(count);
            rest = later;
            let carried = batch.iter().map(|record| self.carry_one(emptied, record));
            join_all(carried).await.into_iter().collect::<Result<()>>()?;
            yield_now().await;
        }
        Ok(())
    }

    /// Copies a record, if it is what it says.
    async fn carry_one(&self, emptied: &Emptied<'_>, record: &RecordEntry) -> Result<()> {
        let old = record.place(emptied.id);
        let Some(payload) = self.payload(emptied, record).await? else {
            self.lose_unreadable(record, old);
            return Ok(());
        };
        let (kind, function, hash) = (record.kind, record.function, &record.hash);
        let copy = Record { kind, function, hash, payload: &payload };
        let appended = self.segments.append(copy).await?;
        let bytes = segment::record_bytes(record.length);
        self.count(|evictions| evictions.carried_bytes += bytes);
        self.dirty.set(true);
        match kind {
            Kind::Blob => {
                let mut index = self.index.borrow_mut();
                let here = |entry: &&mut Entry| entry.place() == Some(old);
                if let Some(entry) = index.get_mut(&digest_of(record)).filter(here) {
                    entry.moved(appended.place);
                }
            }
            Kind::Action => {
                let mut actions = self.actions.borrow_mut();
                if let Some(entry) = actions.get_mut(hash).filter(|entry| entry.place == old) {
                    entry.place = appended.place;
                }
            }
        }
        Ok(())
    }

    /// A record's payload; `None` where it is damaged.
    async fn payload(&self, emptied: &Emptied<'_>, record: &RecordEntry) -> Result<Option<Bytes>> {
        let length = usize::try_from(record.length).map_err(|_| BlobError::Stopped)?;
        let start = u64::from(record.offset).saturating_sub(RECORD_HEADER_BYTES as u64);
        let read = self.env.disk.read(&emptied.file.file, start, RECORD_HEADER_BYTES + length);
        let read = match read.await {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let payload = segment::checked_payload(&read, &record.hash);
        let right = |payload: &Bytes| match record.kind {
            Kind::Blob => Digest::of(payload) == digest_of(record),
            Kind::Action => true,
        };
        Ok(payload.filter(right))
    }

    fn lose_unreadable(&self, record: &RecordEntry, place: Place) {
        match record.kind {
            Kind::Blob => self.lose_record(&digest_of(record), place),
            Kind::Action => self.lose_result(&record.hash, place),
        }
    }

    /// Lets an emptied segment go, with the results that are still in it. All at once: a result
    /// that is forgotten while its record stays would be taken for the last one by a start.
    async fn drop_segment(&self, emptied: &Emptied<'_>) -> Result<()> {
        let Some((bytes, path)) = self.segments.held.release(emptied.id) else { return Ok(()) };
        for record in emptied.records.iter().filter(|record| record.kind == Kind::Action) {
            if self.live(emptied, record).is_some() {
                self.actions.borrow_mut().remove(&record.hash);
                self.count(|evictions| evictions.results += 1);
            }
        }
        if emptied.shared {
            self.shadow(emptied);
        }
        self.space.sub(bytes);
        self.count(|evictions| evictions.bytes += bytes);
        match path {
            Some(path) => Ok(self.env.disk.remove(path).await?),
            None => Ok(()),
        }
    }

    /// Remembers of the results that were copied that older ones are left in the segment.
    fn shadow(&self, emptied: &Emptied<'_>) {
        let mut actions = self.actions.borrow_mut();
        for record in emptied.records.iter().filter(|record| record.kind == Kind::Action) {
            if let Some(entry) = actions.get_mut(&record.hash)
                && entry.place.segment != emptied.id
                && entry.shadow != Shadow::In(emptied.id)
            {
                entry.shadow = entry.shadow.and(emptied.id);
                self.segments.held.overwritten(emptied.id);
            }
        }
    }
}

fn digest_of(record: &RecordEntry) -> Digest {
    Digest::from_parts(record.function, record.hash, record.length)
}
