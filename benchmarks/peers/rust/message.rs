// message.rs: peer.h for Rust. Each library is compiled for one size of message, PEER_BYTES in the environment.

/// Bytes of a message.
pub const BYTES: usize = match option_env!("PEER_BYTES") {
    Some(text) => parsed(text.as_bytes()),
    None => 64,
};

/// Messages that a queue should have room for.
pub const SLOTS: usize = 16384;

/// What peer.c sends and counts.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub number: u64,
    pub rest: [u8; BYTES - 8],
}

/// What the two ends share before they are opened: the process that made it, whose number is part of all names.
#[unsafe(no_mangle)]
pub extern "C" fn peer_shared_bytes() -> usize {
    size_of::<u32>()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn peer_make(shared: *mut u32) {
    unsafe { *shared = std::process::id() }
}

const fn parsed(digits: &[u8]) -> usize {
    let (mut number, mut at) = (0, 0);
    while at < digits.len() {
        assert!(digits[at].is_ascii_digit(), "PEER_BYTES is no number");
        number = number * 10 + (digits[at] - b'0') as usize;
        at += 1;
    }
    number
}

/// Ends the process: in a benchmark nothing can be put right.
pub fn fail(what: &str, why: impl core::fmt::Debug) -> ! {
    eprintln!("{what}: {why:?}");
    std::process::exit(2)
}
