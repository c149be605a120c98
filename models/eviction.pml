/* eviction.pml: the driver clears a slow consumer's bit while it reads.
 *
 * C: shmd_consumer_stands, shmd_consumer_unchanged, shmd_poll_inline, shmd_consumer_valid_inline, shmd_advance_inline
 *    (shmdriver.h); shmd_epoch_leave (shmd_stream.c); shmd_producer_room (shmd_producer.c).
 *
 * Property: what a gated consumer hands out was not overwritten when it was checked, and neither was what the consumer
 * read of it until its advance succeeded, although its gate may stop protecting it at any moment; an evicted consumer
 * never holds the producer.
 *
 * mutation NO_ACQUIRE_FENCE   C1: the mask may be loaded before the header
 * mutation MASK_FIRST         the mask is looked at before the header is read, not after
 * mutation NO_LOOK            the poll does not look at the mask
 * mutation NO_USE_FENCE       C1: at the advance the mask may be loaded before the payload that was used
 * mutation VALID_FIRST        the mask is looked at before the payload is used, not after
 * mutation NO_VALID           the advance does not look at the mask
 *
 * fault: 42, 43 (Spin: all reorderings of a weak machine, eviction at each step of poll, use and advance)
 */
#define SLOTS 2
#ifndef MESSAGES
#define MESSAGES 5
#endif
#define COMMIT(s) ((s) % SLOTS)
#define PAYLOAD(s) (SLOTS + (s) % SLOTS)
#define MASK (2 * SLOTS)
#define GATE (2 * SLOTS + 1)
#define WORDS (2 * SLOTS + 2)
#define WRITERS 3
#define PRODUCER 0
#define DRIVER 1
#define CONSUMER 2
#include "weak_memory.pml"

proctype producer()
{
    byte seq, limit, gate;
    do
    :: seq < MESSAGES ->
        do
        :: seq >= limit ->
            FENCE_SEQ_CST(PRODUCER);
            if
            :: memory[MASK] -> gate = memory[GATE]
            :: else -> gate = seq
            fi;
            limit = gate + SLOTS;
            if
            :: seq >= limit -> memory[GATE] != gate || !memory[MASK]
            :: else
            fi
        :: else -> break
        od;
        STORE(PRODUCER, COMMIT(seq), 2 * seq);
        FENCE_RELEASE(PRODUCER);
        STORE(PRODUCER, PAYLOAD(seq), seq + 1);
        STORE_RELEASE(PRODUCER, COMMIT(seq), 2 * seq + 1);
        seq++
    :: else -> break
    od
}

proctype driver()
{
    if
    :: STORE_RELEASE(DRIVER, MASK, 0) /* at any moment; a consumer that never reads is evicted in the end */
    fi
}

/* The loads of one message, a bit each when it is done: its commit word, its header, the poll's look at the mask; then the
 * payload in use, and the advance's look. One word stands for header and payload: they are overwritten together. */
#define COMMIT_DONE 1
#define HEADER_DONE 2
#define POLL_DONE 4
#define USE_DONE 8
#define ADVANCE_DONE 16
#define ALL_DONE 31
#define HAS(what) ((done & (what)) == (what))

#if defined(MASK_FIRST)
#define HEADER_MAY_LOAD HAS(COMMIT_DONE | POLL_DONE)
#define POLL_MAY_LOOK HAS(COMMIT_DONE)
#elif defined(NO_ACQUIRE_FENCE) && !defined(TSO)
#define HEADER_MAY_LOAD HAS(COMMIT_DONE)
#define POLL_MAY_LOOK HAS(COMMIT_DONE)
#else
#define HEADER_MAY_LOAD HAS(COMMIT_DONE)
#define POLL_MAY_LOOK HAS(HEADER_DONE)
#endif
#define POLLED HAS(HEADER_DONE | POLL_DONE)
#if defined(VALID_FIRST)
#define USE_MAY_LOAD (POLLED && HAS(ADVANCE_DONE))
#define ADVANCE_MAY_LOOK POLLED
#elif defined(NO_USE_FENCE) && !defined(TSO)
#define USE_MAY_LOAD POLLED
#define ADVANCE_MAY_LOOK POLLED
#else
#define USE_MAY_LOAD POLLED
#define ADVANCE_MAY_LOOK HAS(USE_DONE)
#endif

proctype consumer()
{
    byte position, done, commit, header, used;
    bit is_polled, is_advanced;
end:
    do
    :: position < MESSAGES ->
        done = 0;
        do
        :: !HAS(COMMIT_DONE) -> atomic { commit = memory[COMMIT(position)]; done = done | COMMIT_DONE }
        :: !HAS(HEADER_DONE) && HEADER_MAY_LOAD -> atomic { header = memory[PAYLOAD(position)]; done = done | HEADER_DONE }
        :: !HAS(POLL_DONE) && POLL_MAY_LOOK -> atomic { is_polled = memory[MASK]; done = done | POLL_DONE }
        :: POLLED -> break
        od;
#ifdef NO_LOOK
        is_polled = 1;
#endif
        if
        :: !is_polled -> break /* revoked: nothing is handed out */
        :: is_polled && commit == 2 * position + 1 ->
            assert(header == position + 1);
            do
            :: !HAS(USE_DONE) && USE_MAY_LOAD -> atomic { used = memory[PAYLOAD(position)]; done = done | USE_DONE }
            :: !HAS(ADVANCE_DONE) && ADVANCE_MAY_LOOK -> atomic { is_advanced = memory[MASK]; done = done | ADVANCE_DONE }
            :: done == ALL_DONE -> break
            od;
#ifdef NO_VALID
            is_advanced = 1;
#endif
            if
            :: !is_advanced -> break /* revoked: the user is told that what it made of this message is worth nothing */
            :: else
            fi;
            assert(used == position + 1);
            position++;
            STORE_RELEASE(CONSUMER, GATE, position)
        :: is_polled && commit != 2 * position + 1 -> memory[COMMIT(position)] == 2 * position + 1 || !memory[MASK]
        fi;
        d_step { commit = 0; header = 0; used = 0; is_polled = 0; is_advanced = 0 }
    :: else -> break
    od
}

init
{
    atomic {
        memory[MASK] = 1;
        run drain(PRODUCER); run drain(DRIVER); run drain(CONSUMER); run producer(); run driver(); run consumer()
    }
}
