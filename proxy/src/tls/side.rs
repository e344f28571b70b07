//! The two ends of a TLS connection, as one thing.

use std::ops::DerefMut;

use rustls::{
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{UnbufferedConnectionCommon, UnbufferedStatus},
};

/// A client's or a server's end. rustls has one method of this name for each.
pub trait Side: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> + Unpin {
    /// What rustls keeps of it.
    type Data;

    /// Whether what it says last in a handshake of TLS 1.3 can go with what is written first: a server's tickets, which
    /// nobody waits for.
    const LAST_WORDS_CAN_WAIT: bool;

    /// Looks at records, and tells what to do next.
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    const LAST_WORDS_CAN_WAIT: bool = true;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    const LAST_WORDS_CAN_WAIT: bool = false;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}
