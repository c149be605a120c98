/* joiner.pml: a reliable consumer joins while the producer runs.
 *
 * C: shmd_producer_room, slowest (shmd_producer.c); shmd_epoch_join (shmd_stream.c); shmd_poll_inline,
 *    shmd_advance_inline (shmdriver.h).
 *
 * Property: from the seq that its join was answered with, the consumer finds every message, whole and in order: the
 * writer never passes it by a ring, neither while it joins nor later. Nobody waits forever.
 *
 * mutation NO_PRODUCER_FENCE   J1: the producer loads the mask while its head is still on the way
 * mutation NO_DRIVER_FENCE     J1: the driver loads head while its mask bit is still on the way
 * mutation NO_SECOND_HEAD      the gate stays at the head that was read before the bit was set
 * mutation HEAD_INEXACT        the producer looks for room without storing its head first
 * mutation GATE_RELAXED        C2: the gate may pass the loads of the payload in front of it
 * mutation ANSWER_EARLY        the consumer is told before its gate stands
 *
 * fault: 42 (Spin: all reorderings of a weak machine)
 */
#define SLOTS 2
#ifndef MESSAGES
#define MESSAGES 5
#endif
#define COMMIT(s) ((s) % SLOTS)
#define PAYLOAD(s) (SLOTS + (s) % SLOTS)
#define HEAD (2 * SLOTS)
#define MASK (2 * SLOTS + 1)
#define GATE (2 * SLOTS + 2)
#define ANSWER (2 * SLOTS + 3)
#define WORDS (2 * SLOTS + 4)
#define WRITERS 3
#define PRODUCER 0
#define DRIVER 1
#define CONSUMER 2
#include "weak_memory.pml"

proctype producer()
{
    byte seq, limit, gate;
    bit mask;
    do
    :: seq < MESSAGES ->
        do
        :: seq >= limit ->
#ifndef HEAD_INEXACT
            STORE_RELEASE(PRODUCER, HEAD, seq);
#endif
#ifndef NO_PRODUCER_FENCE
            FENCE_SEQ_CST(PRODUCER);
#endif
            mask = memory[MASK];
            gate = seq;
            if
            :: mask -> gate = memory[GATE]
            :: else
            fi;
            d_step {
                gate = (gate > seq -> seq : gate);
                gate = (seq - gate > SLOTS -> seq - SLOTS : gate);
                limit = gate + SLOTS
            }
            if
            :: seq >= limit -> memory[GATE] != gate || !memory[MASK] /* no room: wait, look anew */
            :: else
            fi
        :: else -> break
        od;
        STORE(PRODUCER, COMMIT(seq), 2 * seq);
        FENCE_RELEASE(PRODUCER);
        STORE(PRODUCER, PAYLOAD(seq), seq + 1);
        STORE_RELEASE(PRODUCER, COMMIT(seq), 2 * seq + 1);
        seq++;
        if
        :: STORE_RELEASE(PRODUCER, HEAD, seq)
        :: seq < MESSAGES /* a batch: head once a call */
        fi
    :: else -> break
    od
}

proctype driver()
{
    byte head;
    head = memory[HEAD];
    STORE_RELEASE(DRIVER, GATE, head);
    STORE_RELEASE(DRIVER, MASK, 1);
#ifdef ANSWER_EARLY
    STORE_RELEASE(DRIVER, ANSWER, head + 1);
#endif
#ifndef NO_DRIVER_FENCE
    FENCE_SEQ_CST(DRIVER);
#endif
#ifndef NO_SECOND_HEAD
    head = memory[HEAD];
#endif
    STORE_RELEASE(DRIVER, GATE, head);
#ifndef ANSWER_EARLY
    STORE_RELEASE(DRIVER, ANSWER, head + 1)
#endif
}

proctype consumer()
{
    byte position, commit, payload;
    bit is_stored;
    atomic { memory[ANSWER] != 0 -> position = memory[ANSWER] - 1 }
    do
    :: position < MESSAGES ->
        commit = memory[COMMIT(position)];
        assert(commit <= 2 * position + 1); /* larger: passed by a ring */
        if
        :: commit < 2 * position + 1 -> memory[COMMIT(position)] >= 2 * position + 1
        :: else ->
#ifdef GATE_RELAXED
            if
            :: is_stored = 1; STORE(CONSUMER, GATE, position + 1)
            :: skip
            fi;
#endif
            payload = memory[PAYLOAD(position)];
            assert(payload == position + 1);
            position++;
            if
            :: is_stored -> is_stored = 0
            :: else -> STORE_RELEASE(CONSUMER, GATE, position)
            fi
        fi;
        d_step { commit = 0; payload = 0 }
    :: else -> break
    od
}

init
{
    atomic { run drain(PRODUCER); run drain(DRIVER); run drain(CONSUMER); run producer(); run driver(); run consumer() }
}
