//! Owns the resource limits of an action. Never raises one above what the node itself has.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::spec::Limits;
use crate::step::{At, Step, StepFailure};

const LOCKED_BYTES_MAX: u64 = 64 << 10;
const MESSAGE_QUEUE_BYTES_MAX: u64 = 800 << 10;
const PENDING_SIGNALS_MAX: u64 = 4096;
const STACK_BYTES: u64 = 8 << 20;

/// Sets every limit, soft and hard.
pub(crate) fn apply(limits: &Limits) -> Result<(), StepFailure> {
    let bounds = [
        (Resource::Core, 0),
        (Resource::Fsize, limits.file_bytes_max),
        (Resource::Nofile, limits.open_files_max),
        // Counted for this user in this user namespace, so for this action alone.
        (Resource::Nproc, limits.processes_max),
        (Resource::Memlock, LOCKED_BYTES_MAX),
        (Resource::Msgqueue, MESSAGE_QUEUE_BYTES_MAX),
        (Resource::Sigpending, PENDING_SIGNALS_MAX),
        (Resource::Rtprio, 0),
        (Resource::Nice, 0),
    ];
    for (resource, wanted) in bounds {
        let hard = getrlimit(resource).maximum.map_or(wanted, |own| own.min(wanted));
        setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) })
            .at(Step::Limits)?;
    }
    // Compilers raise the soft limit of their stack by themselves.
    let hard = getrlimit(Resource::Stack).maximum;
    let soft = hard.map_or(STACK_BYTES, |own| own.min(STACK_BYTES));
    setrlimit(Resource::Stack, Rlimit { current: Some(soft), maximum: hard }).at(Step::Limits)
}
