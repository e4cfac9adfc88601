//! Owns the beat of an open loop: a timer of the kernel, because tokio's own wakes only once a millisecond, which
//! would send the requests of a fast schedule in bursts and time the bursts.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

pub(crate) struct Metronome {
    timer: AsyncFd<OwnedFd>,
}

impl Metronome {
    pub(crate) fn every(period: Duration) -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let beat = Timespec::try_from(period).map_err(io::Error::other)?;
        let schedule = Itimerspec { it_interval: beat, it_value: beat };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &schedule)?;
        #[expect(
            deprecated,
            reason = "unsound for types that may change their descriptor; an OwnedFd does not"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self { timer })
    }

    /// Returns at the next beat; those that were missed count as one.
    pub(crate) async fn beat(&self) -> io::Result<()> {
        loop {
            let mut ready = self.timer.readable().await?;
            match rustix::io::read(self.timer.get_ref(), &mut [0; 8]) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
