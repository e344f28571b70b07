//! What a redirected socket dialled: remembering, forgetting, giving back.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock_addr},
    cty::c_void,
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    programs::SockAddrContext,
};
use core::ptr;
use understudy_common::{Address, Endpoint, Family, Origin};

use crate::{maps::ORIGINS, places};

/// The map as helpers want it.
fn map() -> *mut c_void {
    (&raw const ORIGINS).cast_mut().cast()
}

/// A socket's origin, for the helper's own reading of what `socket` is: a socket, or the context of a socket
/// program.
///
/// # Safety
/// `socket` is a pointer that the verifier takes in this program type.
#[inline(always)]
pub(crate) unsafe fn of(socket: *mut c_void) -> *mut Origin {
    // SAFETY: the caller's promise; the verifier checks it again.
    unsafe { bpf_sk_storage_get(map(), socket, ptr::null_mut(), 0) }.cast()
}

#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *mut c_void {
    // SAFETY: the context is valid while the program runs, and its `sk` is never null there.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }.cast()
}

/// Drops what the socket dialled before, and its record in the flow table: the next `connect()` of a socket that was
/// disconnected must leave no trace of the last.
#[inline(always)]
pub(crate) fn forget(ctx: &SockAddrContext) {
    let sk = socket(ctx);
    // SAFETY: a socket, as the helper wants it here.
    let origin = unsafe { of(sk) };
    if origin.is_null() {
        return;
    }
    // SAFETY: checked above; the storage lives as long as the socket, which the connect() holds locked.
    places::clear(unsafe { (*origin).flow });
    // SAFETY: as above.
    let _absent = unsafe { bpf_sk_storage_delete(map(), sk) };
}

/// Remembers. False where the socket has no room for it.
#[inline(always)]
pub(crate) fn remember(ctx: &SockAddrContext, origin: &mut Origin) -> bool {
    // SAFETY: a socket, and a value of the map's type.
    let slot = unsafe {
        bpf_sk_storage_get(
            map(),
            socket(ctx),
            ptr::from_mut(origin).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    };
    !slot.is_null()
}

/// Gives the dialled address back to `getpeername()` of an IPv4 socket.
#[inline(always)]
pub(crate) fn restore_v4(ctx: &SockAddrContext) {
    if let Some(original) = original(ctx) {
        rewrite_v4(ctx, original.address.words()[3], original.port);
    }
}

/// Likewise of an IPv6 socket, whose peer may be an IPv4-mapped address.
#[inline(always)]
pub(crate) fn restore_v6(ctx: &SockAddrContext) {
    if let Some(original) = original(ctx) {
        rewrite_v6(ctx, &original.address, original.port);
    }
}

#[inline(always)]
fn original(ctx: &SockAddrContext) -> Option<Endpoint> {
    // SAFETY: a socket, as the helper wants it here; and null is checked before the read.
    unsafe { of(socket(ctx)).as_ref() }.map(|origin| origin.original)
}

/// Turns an IPv4 connect to a loopback port.
#[inline(always)]
pub(crate) fn redirect_v4(ctx: &SockAddrContext, port: u16) {
    rewrite_v4(ctx, Address::V4_LOOPBACK.words()[3], port);
}

/// Turns an IPv6 connect to a loopback port; an IPv4-mapped one stays mapped.
#[inline(always)]
pub(crate) fn redirect_v6(ctx: &SockAddrContext, family: Family, port: u16) {
    rewrite_v6(ctx, &Address::loopback(family), port);
}

#[inline(always)]
fn rewrite_v4(ctx: &SockAddrContext, address: u32, port: u16) {
    let at: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: fields of the context that these programs may write, a word at a time.
    unsafe {
        (&raw mut (*at).user_ip4).write_volatile(address);
        (&raw mut (*at).user_port).write_volatile(u32::from(port.to_be()));
    }
}

#[inline(always)]
fn rewrite_v6(ctx: &SockAddrContext, address: &Address, port: u16) {
    let at: *mut bpf_sock_addr = ctx.sock_addr;
    let words = address.words();
    // SAFETY: fields of the context that these programs may write, a word at a time.
    unsafe {
        (&raw mut (*at).user_ip6[0]).write_volatile(words[0]);
        (&raw mut (*at).user_ip6[1]).write_volatile(words[1]);
        (&raw mut (*at).user_ip6[2]).write_volatile(words[2]);
        (&raw mut (*at).user_ip6[3]).write_volatile(words[3]);
        (&raw mut (*at).user_port).write_volatile(u32::from(port.to_be()));
    }
}
