//! iceoryx2: publish-subscribe of a fixed type, polled. Reliable: no overflow, and a sample that found the subscriber's
//! queue full was not taken. It has no calls for several samples at once: batches are a loop here.
//!
//! Each queue is a service in a folder of its own, with a prefix of its own in /dev/shm; the process that made it closes
//! last and removes them.

#[path = "../message.rs"]
mod message;

use iceoryx2::{
    node::Node,
    port::{publisher::Publisher, subscriber::Subscriber},
    prelude::*,
    service::port_factory::{PortFactory as _, publish_subscribe::PortFactory},
};
use message::{Message, SLOTS, fail};

// SAFETY: plain bytes that hold no addresses.
unsafe impl ZeroCopySend for Message {}

type Ipc = ipc::Service;

/// One end of a queue; dropped in this order.
pub struct End {
    made: Option<(u32, i32)>, // in the process that made the queue: that, and which it is
    publisher: Option<Publisher<Ipc, Message, ()>>,
    subscriber: Option<Subscriber<Ipc, Message, ()>>,
    _service: PortFactory<Ipc, Message, ()>,
    _node: Node<Ipc>,
}

fn must<T, E: core::fmt::Debug>(what: &str, made: Result<T, E>) -> T {
    made.unwrap_or_else(|error| fail(what, error))
}

fn folder(pid: u32, which: i32) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("shmdriver-bench-{pid}-{which}.iceoryx2"))
}

fn prefix(pid: u32, which: i32) -> String {
    format!("shmdriver-bench-{pid}-{which}_")
}

fn config(pid: u32, which: i32) -> Config {
    let mut config = Config::default();
    let folder = folder(pid, which).into_os_string().into_encoded_bytes();
    config.global.set_root_path(&must("folder", Path::new(&folder)));
    config.global.prefix = must("prefix", FileName::new(prefix(pid, which).as_bytes()));
    config
}

/// The producer waits for the consumer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peer_open(shared: *const u32, which: i32, is_producer: i32) -> *mut End {
    set_log_level(LogLevel::Fatal);
    let config = config(unsafe { *shared }, which);
    let builder = NodeBuilder::new().config(&config).signal_handling_mode(SignalHandlingMode::Disabled);
    let node = must("node", builder.create::<Ipc>());
    let name = must("name", ServiceName::new("peer"));
    let builder = node.service_builder(&name).publish_subscribe::<Message>().max_publishers(1).max_subscribers(1);
    let builder = builder.history_size(0).subscriber_max_buffer_size(SLOTS).subscriber_max_borrowed_samples(2);
    let service = must("service", builder.enable_safe_overflow(false).open_or_create());
    let made = (unsafe { *shared } == std::process::id()).then_some((unsafe { *shared }, which));
    let mut end = End { made, publisher: None, subscriber: None, _service: service, _node: node };
    if is_producer == 0 {
        end.subscriber = Some(must("subscriber", end._service.subscriber_builder().create()));
    } else {
        while end._service.dynamic_config().number_of_subscribers() == 0 {
            std::thread::yield_now();
        }
        let builder = end._service.publisher_builder().backpressure_strategy(BackpressureStrategy::DiscardData);
        end.publisher = Some(must("publisher", builder.create()));
    }
    Box::into_raw(Box::new(end))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn peer_push(end: *mut End, from: *const Message, n: u64) -> u64 {
    let Some(publisher) = (unsafe { &(*end).publisher }) else { fail("peer_push", "no producer") };
    let mut done = 0;
    while done < n {
        let sample = must("loan", publisher.loan_uninit());
        let sample = sample.write_payload(unsafe { *from.add(done as usize) });
        if must("send", sample.send()) == 0 {
            break; // the subscriber's queue is full: it was given back
        }
        done += 1;
    }
    done
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn peer_pop(end: *mut End, to: *mut Message, n: u64) -> u64 {
    let Some(subscriber) = (unsafe { &(*end).subscriber }) else { fail("peer_pop", "no consumer") };
    let mut done = 0;
    while done < n {
        let Some(sample) = must("receive", subscriber.receive()) else { break };
        unsafe { *to.add(done as usize) = *sample };
        done += 1;
    }
    done
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn peer_close(end: *mut End) {
    let end = unsafe { Box::from_raw(end) };
    let made = end.made;
    drop(end);
    if let Some((pid, which)) = made {
        must("remove folder", std::fs::remove_dir_all(folder(pid, which)));
        for entry in must("list memory", std::fs::read_dir("/dev/shm")) {
            let entry = must("list memory", entry); // iceoryx2 leaves the node's management there
            if entry.file_name().to_string_lossy().starts_with(&prefix(pid, which)) {
                must("remove memory", std::fs::remove_file(entry.path()));
            }
        }
    }
}
