/* peer.h: what a queue must offer to be measured by peer.c. One producer, one consumer, messages of PEER_BYTES each. */
#ifndef PEER_H
#define PEER_H

#include <stddef.h>
#include <stdint.h>

#ifndef PEER_BYTES
#define PEER_BYTES 64
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct peer_message {
    uint64_t number;
    unsigned char rest[PEER_BYTES - 8];
} peer_message_t;

enum { PEER_SLOTS = 16384 };

size_t peer_shared_bytes(void);                 /* of the zeroed memory, shared by both processes, that a queue gets */
void peer_make(void *shared);                   /* before the processes part */
void *peer_open(void *shared, int which, int is_producer); /* in each of them; which: number of the queue */
uint64_t peer_push(void *queue, const peer_message_t *from, uint64_t n); /* how many of n it took, without waiting */
uint64_t peer_pop(void *queue, peer_message_t *to, uint64_t n);
void peer_close(void *queue);                   /* in the consumer, which then ends, and after that in the producer */

#ifdef __cplusplus
}
#endif
#endif
