//! Lets aya read and write the shared types. The only unsafe code of this crate.
#![expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]

use crate::{Address, Endpoint, FlowKey, FlowRecord, Heartbeat, Origin, PodEntry};

/// `aya::Pod` asks for what `bytemuck::Pod` has proven: this only compiles for types that have it.
macro_rules! plain_data {
    ($($type:ty),+ $(,)?) => {
        $(
            const _: () = {
                const fn proven<T: bytemuck::Pod>() {}
                proven::<$type>();
            };
            // SAFETY: the type is `bytemuck::Pod`, as asserted above, which is what aya asks for and more.
            unsafe impl aya::Pod for $type {}
        )+
    };
}

plain_data!(Address, Endpoint, FlowKey, FlowRecord, Heartbeat, Origin, PodEntry);
