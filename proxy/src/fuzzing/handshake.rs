//! The first bytes of a connection, as far as TLS reads them.

use std::{
    io::Read as _,
    sync::{Arc, OnceLock},
};

use rustls::{ServerConfig, ServerConnection};

use crate::trust::serving;

/// Whatever a client begins with: nothing that it sends is taken for a request before the handshake is over, which no
/// fixed bytes bring to its end, early data is refused, and what it gets is bounded.
///
/// The first byte says how long the pieces are in which the rest arrives.
pub(super) fn holds(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else {
        return;
    };
    let Ok(mut connection) = ServerConnection::new(Arc::clone(config())) else {
        return;
    };
    let mut sent = Vec::new();
    for mut piece in bytes.chunks(usize::from(*piece).max(1)) {
        while !piece.is_empty() {
            match connection.read_tls(&mut piece) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        let read = connection.process_new_packets();
        while connection.wants_write() && connection.write_tls(&mut sent).is_ok() {}
        assert!(
            connection.is_handshaking(),
            "bytes that knew no secret made a connection"
        );
        assert!(connection.early_data().is_none(), "early data is taken");
        let mut request = [0];
        let plain = connection.reader().read(&mut request);
        // Its end may have been told.
        assert!(matches!(plain, Ok(0) | Err(_)), "a request before the handshake");
        if read.is_err() {
            break;
        }
    }
    assert!(sent.len() < 16 * 1024, "{} bytes for {}", sent.len(), bytes.len());
}

fn config() -> &'static Arc<ServerConfig> {
    static CONFIG: OnceLock<Arc<ServerConfig>> = OnceLock::new();
    CONFIG.get_or_init(|| match serving::self_signed() {
        Ok(config) => config,
        Err(error) => panic!("no certificate to serve: {error}"),
    })
}
