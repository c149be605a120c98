//! tachyon-ipc: its ring of one producer and one consumer by its C interface, in spin mode (no wake-ups, no fence).
//!
//! Its rings are anonymous memory handed over through a socket, whose file is gone when both ends are open.

#[path = "../message.rs"]
mod message;

use std::{ffi::CString, ptr, thread, time::Duration};

use message::{BYTES, Message, SLOTS, fail};
use tachyon_sys::*;

const HEADER_BYTES: usize = 64; // in front of each message, and what it is aligned to
const RING_BYTES: usize = (SLOTS * (HEADER_BYTES + BYTES)).next_power_of_two();
const VIEWS: usize = 1024; // at most so many messages a call of peer_pop
const TRIES: u32 = 5000;

/// One end of a ring.
pub struct End {
    bus: *mut tachyon_bus_t,
    views: Vec<tachyon_msg_view_t>,
}

/// The consumer listens, which waits for the producer to connect.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peer_open(shared: *const u32, which: i32, is_producer: i32) -> *mut End {
    let name = format!("shmdriver-bench-{}-{which}.tachyon", unsafe { *shared });
    let path = std::env::temp_dir().join(name).into_os_string().into_encoded_bytes();
    let path = CString::new(path).unwrap_or_else(|error| fail("path of the socket", error));
    let mut bus = ptr::null_mut();
    let mut rc = unsafe {
        if is_producer == 0 { tachyon_bus_listen(path.as_ptr(), RING_BYTES, &mut bus) } else { tachyon_bus_connect(path.as_ptr(), &mut bus) }
    };
    for _ in 0..TRIES {
        if rc != tachyon_error_t_TACHYON_ERR_NETWORK || is_producer == 0 {
            break;
        }
        thread::sleep(Duration::from_millis(1)); // nobody listens yet
        rc = unsafe { tachyon_bus_connect(path.as_ptr(), &mut bus) };
    }
    if rc != tachyon_error_t_TACHYON_SUCCESS {
        fail("tachyon", rc);
    }
    unsafe { tachyon_bus_set_polling_mode(bus, 1) };
    let empty = tachyon_msg_view_t { ptr: ptr::null(), actual_size: 0, reserved_: 0, type_id: 0, padding_: 0 };
    Box::into_raw(Box::new(End { bus, views: vec![empty; VIEWS] }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn peer_push(end: *mut End, from: *const Message, n: u64) -> u64 {
    let bus = unsafe { (*end).bus };
    let mut done = 0;
    while done < n {
        let place = unsafe { tachyon_acquire_tx(bus, BYTES) };
        if place.is_null() {
            break;
        }
        unsafe {
            ptr::copy_nonoverlapping(from.add(done as usize), place.cast(), 1);
            tachyon_commit_tx(bus, BYTES, 1);
        }
        done += 1;
    }
    unsafe { tachyon_flush(bus) };
    done
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn peer_pop(end: *mut End, to: *mut Message, n: u64) -> u64 {
    if n == 1 { unsafe { pop_one((*end).bus, to) } } else { unsafe { pop_some(&mut *end, to, n) } }
}

unsafe fn pop_one(bus: *mut tachyon_bus_t, to: *mut Message) -> u64 {
    let (mut kind, mut bytes) = (0, 0);
    let place = unsafe { tachyon_acquire_rx(bus, &mut kind, &mut bytes) };
    if place.is_null() {
        return 0;
    }
    unsafe {
        ptr::copy_nonoverlapping(place.cast(), to, 1);
        tachyon_commit_rx(bus);
    }
    1
}

unsafe fn pop_some(end: &mut End, to: *mut Message, n: u64) -> u64 {
    let views = end.views.as_mut_ptr();
    let found = unsafe { tachyon_acquire_rx_batch(end.bus, views, (n as usize).min(VIEWS)) };
    for (i, view) in end.views[..found].iter().enumerate() {
        unsafe { ptr::copy_nonoverlapping(view.ptr.cast(), to.add(i), 1) };
    }
    unsafe { tachyon_commit_rx_batch(end.bus, views, found) };
    found as u64
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn peer_close(end: *mut End) {
    unsafe { tachyon_bus_destroy(Box::from_raw(end).bus) }
}
