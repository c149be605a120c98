// boost_spsc.cpp: boost::lockfree::spsc_queue, whose elements lie inside the object, in shared memory.
#include <boost/lockfree/spsc_queue.hpp>

#include <new>

#include "peer.h"

using queue_t = boost::lockfree::spsc_queue<peer_message_t, boost::lockfree::capacity<PEER_SLOTS>>;

size_t peer_shared_bytes() { return sizeof(queue_t); }
void peer_make(void *shared) { new (shared) queue_t; }
void *peer_open(void *shared, int, int) { return shared; }
uint64_t peer_push(void *queue, const peer_message_t *from, uint64_t n) { return static_cast<queue_t *>(queue)->push(from, n); }
uint64_t peer_pop(void *queue, peer_message_t *to, uint64_t n) { return static_cast<queue_t *>(queue)->pop(to, n); }
void peer_close(void *) {}
