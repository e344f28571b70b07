//! `connect()`: looks up what the decision needs, and acts on it.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_boot_ns},
    programs::SockAddrContext,
};
use understudy_common::{Address, Counter, Dial, Endpoint, FlowKey, Origin, Verdict, decide};

use crate::{
    count::count,
    maps::{API_SERVERS, HEARTBEAT},
    origin, places,
    pod::{self, Tagged},
};

/// The kernel fails the `connect()` with EPERM.
const DENY: i32 = 0;
const ALLOW: i32 = 1;

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

/// `connect()` to an IPv4 address.
#[inline(always)]
pub(crate) fn v4(ctx: &SockAddrContext) -> i32 {
    // SAFETY: a field of the context, read as a word.
    let word = unsafe { (&raw const (*ctx.sock_addr).user_ip4).read_volatile() };
    match judge(ctx, Address::from_v4_word(word)) {
        Outcome::Untouched => ALLOW,
        Outcome::Denied => DENY,
        Outcome::Redirected { port } => {
            origin::redirect_v4(ctx, port);
            ALLOW
        }
    }
}

/// `connect()` to an IPv6 address, IPv4-mapped ones among them.
#[inline(always)]
pub(crate) fn v6(ctx: &SockAddrContext) -> i32 {
    // SAFETY: fields of the context, read word by word.
    let words = unsafe {
        [
            (&raw const (*ctx.sock_addr).user_ip6[0]).read_volatile(),
            (&raw const (*ctx.sock_addr).user_ip6[1]).read_volatile(),
            (&raw const (*ctx.sock_addr).user_ip6[2]).read_volatile(),
            (&raw const (*ctx.sock_addr).user_ip6[3]).read_volatile(),
        ]
    };
    let address = Address::from_v6_words(words);
    match judge(ctx, address) {
        Outcome::Untouched => ALLOW,
        Outcome::Denied => DENY,
        Outcome::Redirected { port } => {
            origin::redirect_v6(ctx, address.family(), port);
            ALLOW
        }
    }
}

/// What is left to do to the context.
enum Outcome {
    Untouched,
    Denied,
    Redirected { port: u16 },
}

#[inline(always)]
fn judge(ctx: &SockAddrContext, address: Address) -> Outcome {
    // SAFETY: a field of the context, read as a word; the port is its lower half, in network byte order.
    let port = unsafe { (&raw const (*ctx.sock_addr).user_port).read_volatile() };
    let original = Endpoint::new(address, u16::from_be((port & 0xffff) as u16));

    origin::forget(ctx);
    // Most connects of a node end here: one look-up.
    if !is_tcp(ctx) || API_SERVERS.get_ptr(original).is_none() {
        count(Counter::Untouched);
        return Outcome::Untouched;
    }
    let Some(tagged) = pod::current() else {
        count(Counter::Untouched);
        return Outcome::Untouched;
    };
    // SAFETY: helpers without preconditions beyond a context of their program type.
    let (netns_cookie, now_ns) = unsafe { (bpf_get_netns_cookie(ctx.as_ptr()), bpf_ktime_get_boot_ns()) };
    let verdict = decide(&Dial {
        pod: Some(&tagged.entry),
        family: address.family(),
        flows: places::held(tagged.entry.enrolment),
        netns_cookie,
        heartbeat: HEARTBEAT.get(0),
        now_ns,
    });
    let (outcome, reason) = match verdict {
        Verdict::Redirect { port } => redirect(ctx, &tagged, original, port, now_ns),
        Verdict::Deny(reason) => (Outcome::Denied, reason),
        Verdict::Untouched => (Outcome::Untouched, Counter::Untouched),
    };
    count(reason);
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        ctx,
        "connect to the API server's port {}: {}",
        original.port,
        reason.name()
    );
    outcome
}

/// Sees that the flow table has room, and remembers on the socket what it dialled.
#[inline(always)]
fn redirect(ctx: &SockAddrContext, tagged: &Tagged, original: Endpoint, port: u16, now_ns: u64) -> (Outcome, Counter) {
    // SAFETY: a helper without preconditions beyond a context of its program type.
    let flow = FlowKey::trial(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) });
    let mut origin = Origin {
        cgroup_id: tagged.cgroup_id,
        enrolment: tagged.entry.enrolment,
        flow,
        original,
        reserved: 0,
    };
    // The place isn't kept until the source port is known: a pod could hold the whole table with sockets whose
    // connect comes to nothing. Should the last place go in between, the connection has no record, and the agent
    // refuses it.
    if !places::are_left(flow, &origin.record(now_ns)) || !origin::remember(ctx, &mut origin) {
        return (Outcome::Denied, Counter::MapFull);
    }
    (Outcome::Redirected { port }, Counter::Redirected)
}

#[inline(always)]
fn is_tcp(ctx: &SockAddrContext) -> bool {
    // SAFETY: fields of the context, read as words.
    let (kind, protocol) = unsafe {
        (
            (&raw const (*ctx.sock_addr).type_).read_volatile(),
            (&raw const (*ctx.sock_addr).protocol).read_volatile(),
        )
    };
    kind == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP)
}
