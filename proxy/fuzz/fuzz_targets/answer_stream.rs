//! `understudy::fuzzing` says what must hold.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| understudy::fuzzing::hold("answer_stream", bytes));
