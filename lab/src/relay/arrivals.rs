//! The counts of a relay that counts mails instead of storing them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Mail, Mood, Relay};

/// How long [`Mood::HoldsOneIn`] holds a message.
pub(super) const HOLD: Duration = Duration::from_secs(30);

/// The mails to one address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival {
    /// When the first mail was accepted.
    pub taken_at: Option<Instant>,
    /// How many mails were accepted.
    pub taken: usize,
    /// The position of the first mail among the mails that the relay has accepted since the last
    /// [`Relay::takes_arrivals`].
    pub place: usize,
    /// Whether a mail was held.
    pub held: bool,
}

#[derive(Default)]
pub(super) struct Arrivals {
    by_address: HashMap<String, Arrival>,
    taken: usize,
}

impl Arrivals {
    pub fn holds(&mut self, address: &str) {
        self.of(address).held = true;
    }

    pub fn takes(&mut self, address: &str) {
        let place = self.taken;
        self.taken += 1;
        let arrival = self.of(address);
        arrival.taken += 1;
        if arrival.taken_at.is_none() {
            (arrival.taken_at, arrival.place) = (Some(Instant::now()), place);
        }
    }

    pub fn into_map(self) -> HashMap<String, Arrival> {
        self.by_address
    }

    fn of(&mut self, address: &str) -> &mut Arrival {
        self.by_address.entry(address.to_owned()).or_default()
    }
}

impl Relay {
    /// Starts a relay that stores no mails, only the recipients and times.
    pub async fn counting() -> Self {
        let relay = Self::start().await;
        relay.state.lock().unwrap().arrivals = Some(Arrivals::default());
        relay
    }

    /// Removes and returns the counts since the last call, by address. Only for a relay from
    /// [`Self::counting`].
    pub fn takes_arrivals(&self) -> HashMap<String, Arrival> {
        let mut state = self.state.lock().unwrap();
        state.arrivals.as_mut().map(std::mem::take).expect("it counts").into_map()
    }

    /// Whether the mood says to hold this message.
    pub(super) fn holds(&self, mood: Mood, recipients: &[String]) -> bool {
        let mut state = self.state.lock().unwrap();
        state.messages += 1;
        let held = matches!(mood, Mood::HoldsOneIn(count) if state.messages.is_multiple_of(count));
        if let (true, Some(arrivals)) = (held, &mut state.arrivals) {
            for address in recipients {
                arrivals.holds(address);
            }
        }
        held
    }

    /// Stores a mail, or counts it.
    pub(super) fn takes(&self, mail: Mail) {
        let mut state = self.state.lock().unwrap();
        match &mut state.arrivals {
            Some(arrivals) => mail.recipients.iter().for_each(|address| arrivals.takes(address)),
            None => state.mails.push(mail),
        }
        drop(state);
        self.changed.notify_waiters();
    }
}
