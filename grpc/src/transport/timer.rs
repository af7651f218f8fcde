//! Time for hyper, which wants timers that are `Send`: those of the control core's runtime. A data
//! core's own are not. For what happens once in a while to a connection; never for requests.

use hyper::rt::{Sleep, Timer};
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// The control core's clock.
#[derive(Clone)]
pub(crate) struct ControlTimer {
    control: Handle,
}

impl ControlTimer {
    pub(crate) fn new(control: Handle) -> Self {
        Self { control }
    }
}

impl Timer for ControlTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        let _control = self.control.enter();
        Box::pin(ControlSleep(Box::pin(tokio::time::sleep(duration))))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let _control = self.control.enter();
        Box::pin(ControlSleep(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<ControlSleep>() {
            Some(ours) => ours.get_mut().0.as_mut().reset(deadline.into()),
            None => *sleep = self.sleep_until(deadline),
        }
    }
}

struct ControlSleep(Pin<Box<tokio::time::Sleep>>);

impl Future for ControlSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl Sleep for ControlSleep {}
