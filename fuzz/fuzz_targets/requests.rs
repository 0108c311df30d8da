//! Bodies of requests, any bytes: what is no request is an error that can be told.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| include!("../exercise_requests.rs"));
