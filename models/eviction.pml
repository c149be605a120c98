/* eviction.pml: the driver clears a slow consumer's bit while it reads.
 *
 * C: shmd_consumer_unchanged, shmd_poll_inline (shmdriver.h); shmd_epoch_leave (shmd_stream.c); shmd_producer_room.
 *
 * Property: what a gated consumer hands out was not overwritten when it was checked, although its gate may stop
 * protecting it at any moment; an evicted consumer never holds the producer.
 *
 * mutation NO_ACQUIRE_FENCE   C1: the mask may be loaded before the payload
 * mutation MASK_FIRST         the mask is looked at before the payload is read, not after
 * mutation NO_LOOK            the mask is not looked at
 *
 * fault: 42 (Spin: all reorderings of a weak machine)
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

#if defined(MASK_FIRST)
#define PAYLOAD_MAY_LOAD ((done & 5) == 5)
#define MASK_MAY_LOAD (done & 1)
#elif defined(NO_ACQUIRE_FENCE) && !defined(TSO)
#define PAYLOAD_MAY_LOAD (done & 1)
#define MASK_MAY_LOAD (done & 1)
#else
#define PAYLOAD_MAY_LOAD (done & 1)
#define MASK_MAY_LOAD (done & 2)
#endif

proctype consumer()
{
    byte position, done, commit, payload, mask;
end:
    do
    :: position < MESSAGES ->
        done = 0;
        do
        :: !(done & 1) -> atomic { commit = memory[COMMIT(position)]; done = done | 1 }
        :: !(done & 2) && PAYLOAD_MAY_LOAD -> atomic { payload = memory[PAYLOAD(position)]; done = done | 2 }
        :: !(done & 4) && MASK_MAY_LOAD -> atomic { mask = memory[MASK]; done = done | 4 }
        :: done == 7 -> break
        od;
#ifdef NO_LOOK
        mask = 1;
#endif
        if
        :: !mask -> break /* revoked: nothing is handed out */
        :: mask && commit == 2 * position + 1 ->
            assert(payload == position + 1);
            position++;
            STORE_RELEASE(CONSUMER, GATE, position)
        :: mask && commit != 2 * position + 1 -> memory[COMMIT(position)] == 2 * position + 1 || !memory[MASK]
        fi;
        d_step { commit = 0; payload = 0; mask = 0 }
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
