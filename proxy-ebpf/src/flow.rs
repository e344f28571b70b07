//! The flow table's life on this side: a record when the source port is known, and its end with the socket.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_SOCK_OPS_TCP_CONNECT_CB,
    helpers::generated::{bpf_get_netns_cookie, bpf_ktime_get_boot_ns},
    programs::{SockContext, SockOpsContext},
};
use understudy_common::{Address, Endpoint, FlowKey};

use crate::{count::count, origin, places};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// The kernel is about to send the SYN: both ends are settled.
#[inline(always)]
pub(crate) fn connecting(ctx: &SockOpsContext) {
    if ctx.op() != BPF_SOCK_OPS_TCP_CONNECT_CB {
        return;
    }
    // SAFETY: a field of the context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    let Some((local, remote)) = addresses(ctx) else {
        return;
    };
    // SAFETY: a helper without preconditions beyond a context of its program type.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let client = Endpoint::new(local, (ctx.local_port() & 0xffff) as u16);
    // The remote port is in network byte order, in the word's upper half.
    let key = FlowKey::new(netns_cookie, client, u16::from_be((ctx.remote_port() >> 16) as u16));

    // SAFETY: a socket, checked not to be null.
    let origin = unsafe { origin::of(sk.cast()) };
    if origin.is_null() {
        // Somebody dials a loopback port by itself, and must not inherit what an earlier socket left.
        if remote.is_loopback() {
            places::clear(key);
        }
        return;
    }
    // SAFETY: checked above; the socket is locked by the connect() that runs.
    let record = unsafe {
        (*origin).flow = key;
        (*origin).record(bpf_ktime_get_boot_ns())
    };
    // Without a record the agent refuses the connection.
    if let Err(reason) = places::fill(key, &record) {
        count(reason);
    }
}

/// A socket's last holder lets go. What it dialled goes with the socket; a record that nobody took goes now.
#[inline(always)]
pub(crate) fn released(ctx: &SockContext) {
    // SAFETY: in this program type the helper takes the context for the socket.
    let origin = unsafe { origin::of(ctx.as_ptr()) };
    if origin.is_null() {
        return;
    }
    // SAFETY: checked above; nobody else holds the socket.
    places::clear(unsafe { (*origin).flow });
}

/// Local and remote address. An IPv6 socket on an IPv4 path has IPv4-mapped ones.
#[inline(always)]
fn addresses(ctx: &SockOpsContext) -> Option<(Address, Address)> {
    match ctx.family() {
        AF_INET => Some((
            Address::from_v4_word(ctx.local_ip4()),
            Address::from_v4_word(ctx.remote_ip4()),
        )),
        AF_INET6 => {
            let ops = ctx.ops;
            // SAFETY: fields of the context, read word by word.
            let (local, remote) = unsafe {
                (
                    [
                        (&raw const (*ops).local_ip6[0]).read_volatile(),
                        (&raw const (*ops).local_ip6[1]).read_volatile(),
                        (&raw const (*ops).local_ip6[2]).read_volatile(),
                        (&raw const (*ops).local_ip6[3]).read_volatile(),
                    ],
                    [
                        (&raw const (*ops).remote_ip6[0]).read_volatile(),
                        (&raw const (*ops).remote_ip6[1]).read_volatile(),
                        (&raw const (*ops).remote_ip6[2]).read_volatile(),
                        (&raw const (*ops).remote_ip6[3]).read_volatile(),
                    ],
                )
            };
            Some((Address::from_v6_words(local), Address::from_v6_words(remote)))
        }
        _ => None,
    }
}
