//! The loop around the scheduler, without workers.

use super::*;
use crate::{
    digest::Digest,
    exec::{
        ErrandEnd, ExecLimits, SandboxConfig,
        errand::{Errand, Load, PeerCapacity},
    },
};
use std::time::Duration;

fn config(queue_max: usize) -> ExecutionsConfig {
    ExecutionsConfig {
        slots: 1,
        queue_max,
        operations_max: queue_max + 1,
        operations_kept: Duration::from_secs(60),
        node_id: "node".into(),
        cpus: Vec::new(),
        directory: "/nowhere".into(),
        limits: ExecLimits::for_tests(),
        sandbox: SandboxConfig {
            mounts: Vec::new(),
            limits: sandbox::Limits {
                file_bytes_max: 1,
                open_files_max: 1,
                processes_max: 1,
                tmp_bytes_max: 1,
                tmp_inodes_max: 1,
            },
            network: false,
            uid_first: 1,
        },
    }
}

struct Rig {
    schedule: Schedule,
    jobs: crossbeam_channel::Receiver<Job>,
    errands: async_channel::Receiver<Errand>,
    reports: async_channel::Receiver<Request>,
    load: watch::Receiver<Load>,
}

impl Rig {
    fn new(queue_max: usize) -> Self {
        let (sender, jobs) = crossbeam_channel::bounded(1);
        let (send, errands) = async_channel::bounded(10);
        let (report, reports) = async_channel::bounded(10);
        let (publish, load) = watch::channel(Load::default());
        let away = Away::new(send, report, publish);
        let schedule = Schedule::new(&config(queue_max), sender, away, Clock::start());
        Self { schedule, jobs, errands, reports, load }
    }

    /// One that has two slots free.
    fn hear_of(&mut self, names: &[&str]) {
        let peer = |name: &&str| PeerCapacity {
            node_id: (*name).into(),
            slots: 2,
            running: 0,
            queued: 0,
            draining: false,
            fits: true,
        };
        self.schedule.serve(Request::Peers { peers: names.iter().map(peer).collect() });
        self.schedule.publish_load();
    }

    /// Ends an errand, and serves what it reports.
    fn end(&mut self, errand: Errand, end: ErrandEnd) {
        futures_lite::future::block_on(errand.end(end));
        self.schedule.serve(self.reports.try_recv().unwrap());
        self.schedule.publish_load();
    }

    fn execute(&mut self, number: usize) -> (Listening, Arc<Prepared>) {
        let digest = Digest::of(&number.to_be_bytes());
        let prepared = Arc::new(Prepared::for_tests(digest));
        let (reply, mut answer) = oneshot::channel();
        let request =
            Request::Execute { prepared: prepared.clone(), priority: 0, forwarded: false, reply };
        self.schedule.serve(request);
        (answer.try_recv().unwrap().unwrap(), prepared)
    }

    fn finish(&mut self, run: RunId) {
        let outcome = Box::default();
        self.schedule.serve(Request::Finished { run, outcome });
    }
}

#[test]
fn a_queue_that_no_worker_takes_ends_without_a_call_for_each_in_it() {
    // Enough to end a thread by its stack, if each start that fails were a call deeper.
    let mut rig = Rig::new(50_000);
    let listening: Vec<Listening> = (0..50_000).map(|number| rig.execute(number).0).collect();
    let first = rig.jobs.recv().unwrap();
    let Rig { mut schedule, jobs, .. } = rig;
    drop(jobs);
    let outcome = Box::default();
    schedule.serve(Request::Finished { run: first.run, outcome });
    assert!(schedule.scheduler.is_idle());
    for (number, listening) in listening.iter().enumerate() {
        let state = listening.borrow();
        assert_eq!(state.stage, Stage::Completed);
        let error = &state.outcome.as_ref().unwrap().error;
        assert_eq!(matches!(error, Some(ExecError::Worker(_))), number > 0, "{number} {error:?}");
    }
}

#[test]
fn an_operation_that_has_ended_holds_its_command_no_longer() {
    let mut rig = Rig::new(1);
    let (listening, prepared) = rig.execute(0);
    let job = rig.jobs.recv().unwrap();
    let run = job.run;
    drop(job);
    rig.finish(run);
    assert_eq!(listening.borrow().stage, Stage::Completed);
    assert!(!rig.schedule.operations.is_empty(), "it is remembered");
    assert_eq!(Arc::strong_count(&prepared), 1);
}

#[test]
fn what_waits_goes_to_a_peer_and_ends_with_what_it_gave() {
    let mut rig = Rig::new(10);
    let (_, _) = rig.execute(0);
    let (listening, prepared) = rig.execute(1);
    rig.hear_of(&["b"]);
    let errand = rig.errands.try_recv().unwrap();
    assert_eq!((&*errand.peer, errand.prepared.digest), ("b", prepared.digest));
    assert_eq!(*rig.load.borrow(), Load { slots: 1, running: 1, away: 1, ..Load::default() });
    futures_lite::future::block_on(errand.executing(None));
    let report = rig.reports.try_recv().unwrap();
    rig.schedule.serve(report);
    assert_eq!(listening.borrow().stage, Stage::Executing);
    assert_eq!(listening.borrow().peer.as_deref(), Some("b"));
    rig.end(errand, ErrandEnd::Finished(Box::default()));
    assert_eq!(listening.borrow().stage, Stage::Completed);
    assert!(listening.borrow().outcome.as_ref().unwrap().error.is_none());
}

#[test]
fn a_peer_that_is_gone_gives_its_actions_back() {
    let mut rig = Rig::new(10);
    let (_, _) = rig.execute(0);
    let (listening, _) = rig.execute(1);
    rig.hear_of(&["b"]);
    let mut errand = rig.errands.try_recv().unwrap();
    rig.hear_of(&[]);
    futures_lite::future::block_on(errand.unwanted());
    assert_eq!(*rig.load.borrow(), Load { slots: 1, running: 1, queued: 1, ..Load::default() });
    // What it says too late changes nothing.
    rig.end(errand, ErrandEnd::Finished(Box::default()));
    assert_eq!(listening.borrow().stage, Stage::Queued);
    let job = rig.jobs.recv().unwrap();
    rig.finish(job.run);
    let job = rig.jobs.recv().unwrap();
    rig.finish(job.run);
    assert_eq!(listening.borrow().stage, Stage::Completed);
}

#[test]
fn an_errand_that_nobody_wants_any_more_is_told() {
    let mut rig = Rig::new(10);
    let (_, _) = rig.execute(0);
    let (listening, _) = rig.execute(1);
    rig.hear_of(&["b"]);
    let mut errand = rig.errands.try_recv().unwrap();
    let name = listening.borrow().name.to_string();
    let (reply, _) = oneshot::channel();
    rig.schedule.serve(Request::Cancel { name, reply });
    futures_lite::future::block_on(errand.unwanted());
    rig.end(errand, ErrandEnd::Finished(Box::default()));
    assert_eq!(rig.load.borrow().away, 0);
    let outcome = listening.borrow().outcome.clone().unwrap();
    assert!(matches!(outcome.error, Some(ExecError::Cancelled)));
}

#[test]
fn who_joins_a_run_at_a_peer_is_told_where_it_runs_until_it_comes_back() {
    let mut rig = Rig::new(10);
    let (here, _) = rig.execute(0);
    let (first, _) = rig.execute(1);
    rig.hear_of(&["b"]);
    let errand = rig.errands.try_recv().unwrap();
    futures_lite::future::block_on(errand.executing(None));
    let report = rig.reports.try_recv().unwrap();
    rig.schedule.serve(report);
    let (joined, _) = rig.execute(1);
    for listening in [&first, &joined] {
        assert_eq!(listening.borrow().stage, Stage::Executing);
        assert_eq!(listening.borrow().peer.as_deref(), Some("b"));
    }
    assert_eq!(here.borrow().peer, None);
    rig.end(errand, ErrandEnd::Returned("it died".to_owned()));
    for listening in [&first, &joined] {
        assert_eq!(listening.borrow().stage, Stage::Queued);
        assert_eq!(listening.borrow().peer, None);
    }
}

#[test]
fn it_is_said_once_in_a_while_of_each_peer_that_it_takes_nothing() {
    let mut rig = Rig::new(10);
    rig.hear_of(&["b", "c"]);
    let minute = Duration::from_secs(60);
    let mut said = |peer, at| rig.schedule.away.is_news(peer, at);
    assert!(said("b", minute) && said("c", minute));
    assert!(!said("b", minute + Duration::from_secs(59)));
    assert!(said("b", 2 * minute) && !said("b", 2 * minute));
    rig.hear_of(&["c"]);
    assert!(rig.schedule.away.said.len() <= 1, "only of those that are known");
}

#[test]
fn a_node_whose_store_is_full_takes_nothing_from_peers_and_says_so() {
    let mut rig = Rig::new(10);
    let (_, prepared) = rig.execute(0);
    let job = rig.jobs.recv().unwrap();
    let error = Some(ExecError::Store(BlobError::Full));
    let outcome = Box::new(ExecuteOutcome { error, ..ExecuteOutcome::default() });
    rig.schedule.serve(Request::Finished { run: job.run, outcome });
    rig.schedule.publish_load();
    assert_eq!(*rig.load.borrow(), Load::default());
    let mut submit = |forwarded| {
        let (reply, mut answer) = oneshot::channel();
        let prepared = prepared.clone();
        rig.schedule.serve(Request::Execute { prepared, priority: 0, forwarded, reply });
        answer.try_recv().unwrap().map(drop)
    };
    assert!(matches!(submit(true), Err(ExecError::Overloaded)));
    assert!(submit(false).is_ok(), "its own client is told what the store says");
}
