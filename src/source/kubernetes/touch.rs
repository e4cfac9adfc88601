//! Owns the news that the API server is in reach again. Where packets were lost one way only, connections live on, and
//! what was sent meanwhile is repeated at ever longer intervals, so they stay silent for as long again as the loss
//! lasted. A new connection does not; so whoever waits on an old one begins anew when a call is answered again.

use tokio::sync::watch;

/// Tells all others how the calls fare that are made all the time.
#[derive(Debug)]
pub(super) struct Pulse {
    regained: watch::Sender<()>,
    is_lost: bool,
}

/// Hears when touch was regained.
#[derive(Clone, Debug)]
pub(super) struct Touch(watch::Receiver<()>);

impl Pulse {
    pub(super) fn new() -> (Self, Touch) {
        let (regained, touch) = watch::channel(());
        (Self { regained, is_lost: false }, Touch(touch))
    }

    /// A call was answered, whatever the answer, or it was not.
    pub(super) fn beat(&mut self, is_answered: bool) {
        if is_answered && self.is_lost {
            self.regained.send_replace(());
        }
        self.is_lost = !is_answered;
    }
}

impl Touch {
    /// Waits until touch is lost and regained once more. May be dropped at any time.
    pub(super) async fn regained(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn touch_is_regained_once_for_each_loss() {
        let (mut pulse, mut touch) = Pulse::new();
        let mut heard = |beats: &[bool]| {
            beats.iter().for_each(|beat| pulse.beat(*beat));
            touch.regained().now_or_never().is_some()
        };
        assert!(!heard(&[true, true, false, false]));
        assert!(heard(&[true]));
        assert!(!heard(&[true]));
        assert!(heard(&[false, true]));
    }
}
