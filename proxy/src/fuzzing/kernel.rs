//! Bytes from the kernel: records of the flow table, and answers of the socket diagnostics.

use std::net::SocketAddr;

use understudy_common::{Endpoint, FlowKey, FlowRecord};

use crate::{
    kernel::{
        Flow,
        diag::{self, Answer},
    },
    pod::CgroupId,
};

/// What the eight bytes of time, a key and a record say. A record of the future is young, never a failure, and of an
/// address nothing is lost.
pub(super) fn flow(bytes: &[u8]) {
    let Some((now, rest)) = bytes.split_at_checked(8) else {
        return;
    };
    let Some((key, rest)) = rest.split_at_checked(size_of::<FlowKey>()) else {
        return;
    };
    let (Ok(now), Some(record)) = (<[u8; 8]>::try_from(now), rest.get(..size_of::<FlowRecord>())) else {
        return;
    };
    let key: FlowKey = bytemuck::pod_read_unaligned(key);
    let record: FlowRecord = bytemuck::pod_read_unaligned(record);
    let now = u64::from_ne_bytes(now);

    let flow = Flow::from_record(&record, now);
    assert_eq!(
        (flow.cgroup_id, flow.enrolment),
        (CgroupId(record.cgroup_id), record.enrolment)
    );
    let age = u64::try_from(flow.age.as_nanos());
    assert_eq!(age, Ok(now.saturating_sub(record.boot_ns)));
    for endpoint in [record.original, key.client] {
        // An IPv4-mapped address is the IPv4 address: whoever dials either is turned alike.
        let address = SocketAddr::from(endpoint);
        assert_eq!(address.ip(), address.ip().to_canonical());
        let again = Endpoint::from(address);
        assert_eq!((again.address, again.port), (endpoint.address, endpoint.port));
    }
    assert_eq!(flow.original_dst.0, record.original.into());
}

/// Messages are told apart to their end, and a socket that is destroyed is the very one that was described.
pub(super) fn diag(bytes: &[u8]) {
    let answers = diag::answers(bytes);
    assert!(answers.len() <= bytes.len() / 8, "more answers than there is room for");
    for answer in &answers {
        let Answer::Socket(socket) = answer else { continue };
        let request = diag::destroy(socket);
        assert_eq!(request.len(), 72);
        let id = &request[24..];
        assert!(
            bytes.windows(id.len()).any(|window| window == id),
            "a socket that nobody described"
        );
        assert_eq!(socket.peer.ip(), socket.peer.ip().to_canonical());
        assert_eq!(socket.peer.port().to_be_bytes(), id[2..4]);
    }
}
