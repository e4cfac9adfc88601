//! Owns a connection of a port that speaks no HTTP: it goes to the backend of its client's key, and its bytes pass as
//! they are.

use std::rc::Rc;
use std::time::Instant;

use super::client::{Client, Expiry, Phase};
use super::connection::Connection;
use super::passage::Passage;
use super::rescue::ProxyError;
use super::service::{Delivery, Stop};
use super::tunnel::Ended;
use super::view::PoolView;
use crate::balance::key;
use crate::metrics::RescueReason;

impl Connection {
    /// Carries the connection to a backend until it ends. Without a backend, or where one side broke off, it ends with
    /// a reset: nobody may take a part of the bytes for all of them.
    pub(super) async fn carry(&mut self) {
        self.client.enter(Phase::Tunnel);
        let owner = self.worker.view().port(self.client.port).and_then(|port| port.owner().cloned());
        let Some(pool) = owner else {
            self.client.home().meters.rescue(ProxyError::NoPool.reason());
            return self.client.reset_on_close();
        };
        self.client.visit(&pool.home);
        let (key, begun) = (key::of_client(self.client.ip()), Instant::now());
        let mut account = Account::begin(self, &pool, key, begun);
        if pool.introduces() {
            self.client.came_to(|| self.socket.local_address());
        }
        let mut delivery = Delivery::new(&pool, &self.client, key, begun, false);
        let reached = self.approach(delivery.connect(&account.passage)).await;
        match reached.and_then(|reached| reached.map_err(Stop::Rescue)) {
            Ok(reached) => {
                self.client.begin_exchange(&reached.slot, None);
                if let Some(reason) = reason(self.tunnel(reached).await) {
                    account.passage.fail(reason);
                }
            }
            Err(Stop::Rescue(error)) => {
                account.passage.fail(error.reason());
                self.client.reset_on_close();
            }
            // Nobody waits for a backend any more.
            Err(_) => account.passage.fail(RescueReason::ClientGone),
        }
        account.is_over = true;
    }
}

/// What is told of an end that was not in order.
fn reason(ended: Ended) -> Option<RescueReason> {
    match ended {
        Ended::InOrder => None,
        Ended::Late(Expiry::Drained) => Some(RescueReason::Drained),
        Ended::Late(_) => Some(RescueReason::Idle),
        Ended::ByClient => Some(RescueReason::ClientGone),
        Ended::ByBackend => Some(RescueReason::Truncated),
    }
}

/// One connection. What it carried is written down also when the task that carries it is cut off, because the process
/// ends.
struct Account {
    passage: Passage,
    client: Rc<Client>,
    is_over: bool,
}

impl Account {
    fn begin(connection: &Connection, pool: &PoolView, key: u64, begun: Instant) -> Self {
        let client = connection.client.clone();
        let protocol = if connection.socket.is_plain() { "TCP" } else { "TLS" };
        let from = (client.ip(), client.own_port().map(Into::into));
        let passage = Passage::begin(&pool.home, from, protocol, key, begun);
        Self { passage, client, is_over: false }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.is_over {
            self.passage.fail(RescueReason::Drained);
            self.client.reset_on_close();
        }
        let (slot, carried) = self.client.end_request();
        self.passage.end(Instant::now(), slot.as_deref(), carried);
    }
}
