/* joiner.pml: a reliable consumer joins while the producer runs.
 *
 * C: shmd_producer_room, slowest (shmd_producer.c); shmd_epoch_join, place_of_joiner (shmd_stream.c); shmd_poll_inline,
 *    shmd_advance_inline (shmdriver.h).
 *
 * Property: from the seq that its join was answered with, the consumer finds every message, whole and in order: the
 * writer never passes it by a ring, neither while it joins nor later. Nobody waits forever. Without a peer it is
 * answered with the head; with one, another reliable consumer that reads on meanwhile, with where that one stands.
 *
 * also PEER=1 MESSAGES=4
 *
 * mutation NO_PRODUCER_FENCE   J1: the producer loads the mask while its head is still on the way
 * mutation NO_DRIVER_FENCE     J1: the driver loads head while its mask bit is still on the way
 * mutation NO_SECOND_HEAD      the gate stays at the head that was read before the bit was set
 * mutation HEAD_INEXACT        the producer looks for room without storing its head first
 * mutation GATE_RELAXED        C2: the gate may pass the loads of the payload in front of it
 * mutation ANSWER_EARLY        the consumer is told before its gate stands
 * mutation NO_SECOND_MASK      J2: the producer does not look at the mask again after the gates
 * mutation SECOND_MASK_EARLY   J2: the producer's second look at the mask may pass its look at the peer's gate
 * mutation NO_SECOND_PEER      J2: the gate stays where the peer stood before the bit was set
 *
 * fault: 42, 55 (Spin: all reorderings of a weak machine; a shard joins while the others read on)
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
#define PEER_GATE (2 * SLOTS + 4)
#define WORDS (2 * SLOTS + 5)
#define PRODUCER 0
#define DRIVER 1
#define CONSUMER 2
#ifdef PEER
#define READER 3
#define WRITERS 4
#else
#define WRITERS 3
#endif
#include "weak_memory.pml"
#define LEAST(a, b) ((a) < (b) -> (a) : (b))

proctype producer()
{
    byte seq, limit, gate;
    bit mask, again;
#ifdef PEER
    byte peer;
#endif
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
            do
            ::
#if defined(SECOND_MASK_EARLY) && !defined(TSO)
                again = memory[MASK];
#endif
                gate = seq;
#ifdef PEER
                peer = memory[PEER_GATE];
                gate = LEAST(gate, peer);
#endif
                if
                :: mask -> atomic { gate = LEAST(gate, memory[GATE]) }
                :: else
                fi;
#ifdef NO_SECOND_MASK
                again = mask;
#elif !defined(SECOND_MASK_EARLY) || defined(TSO)
                again = memory[MASK];
#endif
                if
                :: again == mask -> break
                :: else -> mask = again
                fi
            od;
            skip;
            d_step {
                gate = (gate > seq -> seq : gate);
                gate = (seq - gate > SLOTS -> seq - SLOTS : gate);
                limit = gate + SLOTS
            }
            if
            :: seq >= limit -> /* no room: wait until the gate that is behind has moved, look anew */
#ifdef PEER
                (mask && memory[GATE] > gate && memory[PEER_GATE] > gate) || (!mask && (memory[PEER_GATE] > gate || memory[MASK]))
#else
                memory[GATE] != gate || !memory[MASK]
#endif
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

/* Where the joiner is to stand. */
inline find_place()
{
    atomic { place = memory[HEAD] };
#ifdef PEER
    atomic { place = LEAST(place, memory[PEER_GATE]) }
#endif
}

proctype driver()
{
    byte place;
    find_place();
    STORE_RELEASE(DRIVER, GATE, place);
    STORE_RELEASE(DRIVER, MASK, 1);
#ifdef ANSWER_EARLY
    STORE_RELEASE(DRIVER, ANSWER, place + 1);
#endif
#ifndef NO_DRIVER_FENCE
    FENCE_SEQ_CST(DRIVER);
#endif
#if !defined(NO_SECOND_HEAD) && !(defined(NO_SECOND_PEER) && defined(PEER))
    find_place();
#endif
    STORE_RELEASE(DRIVER, GATE, place);
#ifndef ANSWER_EARLY
    STORE_RELEASE(DRIVER, ANSWER, place + 1)
#endif
}

#ifdef PEER
/* It was there before. */
proctype reader()
{
    byte position;
    do
    :: position < MESSAGES ->
        memory[COMMIT(position)] >= 2 * position + 1;
        assert(memory[COMMIT(position)] == 2 * position + 1);
        position++;
        STORE_RELEASE(READER, PEER_GATE, position)
    :: else -> break
    od
}
#endif

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
    atomic {
#ifdef PEER
        run drain(READER); run reader();
#endif
        run drain(PRODUCER); run drain(DRIVER); run drain(CONSUMER); run producer(); run driver(); run consumer()
    }
}
