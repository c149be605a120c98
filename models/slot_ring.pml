/* slot_ring.pml: a slot ring and a reader without a gate.
 *
 * C: shmd_slot_open, shmd_slot_commit, shmd_producer_announce (shmdriver.h); shmd_slot_copy (shmd_slot_ring.c);
 *    resync (shmd_consumer.c).
 *
 * Property: what the reader hands out is whole and is the message that it asked for; every seq is either handed out
 * or counted as lost, once, in order; a seq is counted only when the writer has begun to overwrite it; nothing that is
 * committed keeps the reader waiting.
 *
 * mutation NO_RELEASE_FENCE        P1: no fence between opening a slot and writing it
 * mutation OPEN_BY_RELEASE_STORE   P1: a release store in place of the fence
 * mutation COMMIT_RELAXED          P2: commit without release
 * mutation NO_ACQUIRE              P2: commit loaded without acquire
 * mutation NO_ACQUIRE_FENCE        U1: no fence before the second look (or an acquire load there)
 * mutation NO_SECOND_LOOK          U1: no second look
 * mutation OPEN_LATE               the slot is opened after the payload is written
 * mutation NOT_COUNTED             a lapped reader forgets to count
 *
 * fault: 42 (Spin: all reorderings of a weak machine)
 */
#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef MESSAGES
#define MESSAGES 5
#endif
#define COMMIT(s) ((s) % SLOTS)
#define FIRST_HALF(s) (SLOTS + (s) % SLOTS)
#define SECOND_HALF(s) (2 * SLOTS + (s) % SLOTS)
#define HEAD (3 * SLOTS)
#define WORDS (3 * SLOTS + 1)
#define WRITERS 1
#include "weak_memory.pml"

byte opened; /* ghost: seqs that the writer has opened or is about to */

proctype producer()
{
    byte seq;
    do
    :: seq < MESSAGES ->
        opened = seq + 1;
#ifdef OPEN_LATE
        STORE(0, FIRST_HALF(seq), seq + 1);
        STORE(0, SECOND_HALF(seq), seq + 1);
        STORE(0, COMMIT(seq), 2 * seq);
#else
#ifdef OPEN_BY_RELEASE_STORE
        STORE_RELEASE(0, COMMIT(seq), 2 * seq);
#else
        STORE(0, COMMIT(seq), 2 * seq);
#ifndef NO_RELEASE_FENCE
        FENCE_RELEASE(0);
#endif
#endif
        STORE(0, FIRST_HALF(seq), seq + 1);
        STORE(0, SECOND_HALF(seq), seq + 1);
#endif
#ifdef COMMIT_RELAXED
        STORE(0, COMMIT(seq), 2 * seq + 1);
#else
        STORE_RELEASE(0, COMMIT(seq), 2 * seq + 1);
#endif
        seq++;
        if
        :: STORE_RELEASE(0, HEAD, seq)
        :: seq < MESSAGES /* a batch: head once a call */
        fi
    :: else -> break
    od
}

#if defined(NO_ACQUIRE) && !defined(TSO)
#define PAYLOAD_MAY_LOAD 1
#else
#define PAYLOAD_MAY_LOAD (done & 1)
#endif
#if defined(NO_ACQUIRE_FENCE) && !defined(TSO)
#define SECOND_LOOK_MAY_LOAD (done & 1)
#else
#define SECOND_LOOK_MAY_LOAD ((done & 7) == 7)
#endif

proctype consumer()
{
    byte position, lost, handed, done, commit, again, first, second, next;
    do
    :: position < MESSAGES ->
        done = 0;
        do
        :: !(done & 1) -> atomic { commit = memory[COMMIT(position)]; done = done | 1 }
        :: !(done & 2) && PAYLOAD_MAY_LOAD -> atomic { first = memory[FIRST_HALF(position)]; done = done | 2 }
        :: !(done & 4) && PAYLOAD_MAY_LOAD -> atomic { second = memory[SECOND_HALF(position)]; done = done | 4 }
        :: !(done & 8) && SECOND_LOOK_MAY_LOAD -> atomic { again = memory[COMMIT(position)]; done = done | 8 }
        :: done == 15 -> break
        od;
#ifdef NO_SECOND_LOOK
        again = commit;
#endif
        if
        :: commit < 2 * position + 1 -> memory[COMMIT(position)] >= 2 * position + 1 /* not yet: wait, look anew */
        :: commit == 2 * position + 1 && again == commit ->
            assert(first == position + 1 && second == position + 1);
            handed++;
            position++
        :: else -> /* lapped: shmd_consumer.c, resync */
            next = memory[HEAD];
            atomic {
                next = (next > SLOTS -> next - SLOTS + SLOTS / 4 : 0);
                next = (next > position + 1 -> next : position + 1);
                assert(next - 1 + SLOTS < opened); /* none is given up that nobody overwrites */
#ifndef NOT_COUNTED
                lost = lost + next - position;
#endif
                position = next
            }
        fi;
        d_step { commit = 0; again = 0; first = 0; second = 0; next = 0 }
    :: else -> break
    od;
    assert(position == MESSAGES && handed + lost == MESSAGES)
}

init
{
    atomic { run drain(0); run producer(); run consumer() }
}
