//! An experiment, which no agent loads: both ends of a loopback connection in one socket hash, and what either sends put
//! straight into the other's queue (`sock_ops`, sockhash, `sk_msg`). `docs/performance.md` says what came of it, and
//! `proxy/tests/shortcut.rs` shows it.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's macros hand a program its context by value"
)]

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_INGRESS, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, sk_action::SK_PASS,
    },
    helpers::generated::bpf_get_netns_cookie,
    macros::{map, sk_msg, sock_ops},
    maps::SockHash,
    programs::{SkMsgContext, SockOpsContext},
};

/// A socket, by its own end and its peer's. IPv4 is enough to see what becomes of bytes.
#[derive(Clone, Copy)]
#[repr(C)]
struct Ends {
    netns_cookie: u64,
    own_address: u32,
    peer_address: u32,
    /// In host byte order.
    own_port: u32,
    /// As the kernel's contexts have it: network byte order, in the upper half.
    peer_port: u32,
}

const AF_INET: u32 = 2;

#[map]
static PAIRS: SockHash<Ends> = SockHash::with_max_entries(1024, 0);

/// Takes both ends of what is connected.
#[sock_ops]
fn pair(ctx: SockOpsContext) -> u32 {
    let joins = matches!(
        ctx.op(),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
    );
    if joins && ctx.family() == AF_INET {
        let ends = Ends {
            // SAFETY: a helper without preconditions beyond a context of its program type.
            netns_cookie: unsafe { bpf_get_netns_cookie(ctx.as_ptr()) },
            own_address: ctx.local_ip4(),
            peer_address: ctx.remote_ip4(),
            own_port: ctx.local_port(),
            peer_port: ctx.remote_port(),
        };
        // SAFETY: the context is valid while the program runs.
        let _full = PAIRS.update(ends, unsafe { &mut *ctx.ops }, 0);
    }
    1
}

/// Puts what is sent into the peer's queue, or leaves it to TCP where the peer isn't known.
#[sk_msg]
fn pass(ctx: SkMsgContext) -> u32 {
    // SAFETY: fields of the context, read word by word; and a helper without preconditions beyond it.
    let peer = unsafe {
        let msg = ctx.msg;
        Ends {
            netns_cookie: bpf_get_netns_cookie(ctx.as_ptr()),
            own_address: (&raw const (*msg).remote_ip4).read_volatile(),
            peer_address: (&raw const (*msg).local_ip4).read_volatile(),
            own_port: u32::from_be((&raw const (*msg).remote_port).read_volatile()),
            peer_port: (&raw const (*msg).local_port).read_volatile().to_be(),
        }
    };
    let _unknown = PAIRS.redirect_msg(&ctx, peer, u64::from(BPF_F_INGRESS));
    SK_PASS
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// No helper in use asks for the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 18] = *b"Apache-2.0 OR MIT\0";
