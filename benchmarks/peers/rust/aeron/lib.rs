//! Nothing: see Cargo.toml, and ../../native/aeron.c for the peer.
