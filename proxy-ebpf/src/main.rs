//! Understudy's kernel programs: entry points only. The decision is `understudy_common::decide`; what is looked up
//! for it and done after it lives in the modules.
//!
//! The verifier of Linux 5.15 must take every program here: no kernel types by BTF relocation, no `bpf_loop`, and
//! context fields touched one 4-byte word at a time.
#![feature(asm_experimental_arch)]
#![no_std]
#![no_main]
#![expect(
    clippy::inline_always,
    reason = "the verifier sees through what is inlined, and calls cost stack"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's macros hand each program its context by value"
)]

mod connect;
mod count;
mod flow;
mod maps;
mod origin;
mod places;
mod pod;

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockContext, SockOpsContext},
};

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    connect::v4(&ctx)
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    connect::v6(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
fn peer_name4(ctx: SockAddrContext) -> i32 {
    origin::restore_v4(&ctx);
    1
}

#[cgroup_sock_addr(getpeername6)]
fn peer_name6(ctx: SockAddrContext) -> i32 {
    origin::restore_v6(&ctx);
    1
}

// Not called `sockops`: that is the name of its ELF section, and the two clash.
#[sock_ops]
fn flow_record(ctx: SockOpsContext) -> u32 {
    flow::connecting(&ctx);
    1
}

#[cgroup_sock(sock_release)]
fn socket_release(ctx: SockContext) -> i32 {
    flow::released(&ctx);
    1
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
