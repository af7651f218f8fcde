//! The loop around the scheduler, without workers.

use super::*;
use crate::{
    digest::Digest,
    exec::{ExecLimits, SandboxConfig},
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
}

impl Rig {
    fn new(queue_max: usize) -> Self {
        let (sender, jobs) = crossbeam_channel::bounded(1);
        let schedule = Schedule::new(&config(queue_max), sender, Clock::start());
        Self { schedule, jobs }
    }

    fn execute(&mut self, number: usize) -> (Listening, Arc<Prepared>) {
        let digest = Digest::of(&number.to_be_bytes());
        let prepared = Arc::new(Prepared::for_tests(digest));
        let (reply, mut answer) = oneshot::channel();
        let request = Request::Execute { prepared: prepared.clone(), priority: 0, reply };
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
    let Rig { mut schedule, jobs } = rig;
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
