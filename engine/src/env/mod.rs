//! The outside world, as values: all that a core may touch besides its inputs. Code of the
//! engine must never take the time or open a file of the store in any other way.

pub mod alarms;
pub(crate) mod buffer;
pub mod clock;
pub mod disk;
mod naming;

use alarms::Alarms;
use clock::Clock;
use disk::Disk;
use std::rc::Rc;

/// What one core sees of the world.
pub struct Env {
    /// Time.
    pub clock: Clock,
    /// Waiting.
    pub alarms: Alarms,
    /// Files.
    pub disk: Disk,
}

impl Env {
    /// The real world, for the executor that runs on the calling thread.
    #[must_use]
    pub fn real() -> Rc<Self> {
        let clock = Clock::start();
        Rc::new(Self { clock, alarms: Alarms::new(clock), disk: Disk::real() })
    }
}
