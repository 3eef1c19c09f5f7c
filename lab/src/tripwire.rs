//! A proxy before PostgreSQL that breaks at a given message of the service: before PostgreSQL gets
//! it, or before the service gets the answer.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::proxy::{Server, Stream};

/// The message at which the proxy breaks, counted from the moment when it is armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// PostgreSQL gets neither this message nor any after it.
    Before(usize),
    /// PostgreSQL gets this message, and the service gets no answer.
    After(usize),
}

#[derive(Default)]
struct State {
    armed: Option<Break>,
    messages: usize,
    broken: bool,
}

pub struct Tripwire {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl Tripwire {
    pub async fn before(server: Server) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, changed) = (Arc::<Mutex<State>>::default(), Arc::<Notify>::default());
        let wire = (Arc::clone(&state), Arc::clone(&changed));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = server.connect().await else { continue };
                tokio::spawn(forward(client, server, wire.0.clone(), wire.1.clone()));
            }
        });
        Self { address, state, changed }
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://vos_auth@{}/{database}", self.address)
    }

    pub fn is_armed(&self, at: Break) {
        *self.state.lock().unwrap() = State { armed: Some(at), ..State::default() };
    }

    /// Forwards new connections again. Broken connections do not recover.
    pub fn is_repaired(&self) {
        *self.state.lock().unwrap() = State::default();
        self.changed.notify_waiters();
    }

    /// Waits until the proxy has broken.
    pub async fn until_broken(&self) {
        loop {
            let changed = self.changed.notified();
            if self.state.lock().unwrap().broken {
                return;
            }
            changed.await;
        }
    }
}

/// Copies in both directions. One read from the service counts as one message. While broken, it
/// keeps both ends open, as a dead network does, until it is repaired.
async fn forward(client: TcpStream, server: Box<dyn Stream>, state: Arc<Mutex<State>>, changed: Arc<Notify>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = split(server);
    let repaired = || async {
        loop {
            let noticed = changed.notified();
            if !state.lock().unwrap().broken {
                return;
            }
            noticed.await;
        }
    };
    let up = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from_client.read(&mut buffer).await.unwrap_or(0);
            if read == 0 {
                return;
            }
            let (held, last) = {
                let mut state = state.lock().unwrap();
                state.messages += 1;
                let was_broken = state.broken;
                let (before, after) = match state.armed {
                    Some(Break::Before(at)) => (state.messages >= at, false),
                    Some(Break::After(at)) => (was_broken, state.messages >= at),
                    None => (false, false),
                };
                state.broken |= before || after;
                (before, after)
            };
            if !held && to_server.write_all(&buffer[..read]).await.is_err() {
                return;
            }
            if held || last {
                changed.notify_waiters();
                return repaired().await;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from_server.read(&mut buffer).await.unwrap_or(0);
            if state.lock().unwrap().broken {
                return repaired().await;
            }
            if read == 0 || to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = up => {} () = down => {} }
}
