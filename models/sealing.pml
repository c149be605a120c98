/* sealing.pml: the driver ends an epoch while its producer may be alive, dead, or a zombie that wakes at any moment.
 *
 * C: shmd_epoch_seal, scan (shmd_stream.c); shmd_publish_inline, shmd_consumer_unchanged (shmdriver.h);
 *    shmd_consumer_look (shmd_consumer.c); shmd_producer_room (shmd_producer.c).
 *
 * Property: when sealed_seq is fixed nothing at or past it was handed out, and nothing ever is; every commit that had
 * reached memory when the sealing began is below it; every message below it is delivered, in order, to the gated reader.
 * The producer can be killed between any two steps (sealed with proof: one phase) or go on through all of it (two phases).
 *
 * mutation ONE_PHASE        X1: sealed without SEALING although the producer's death is not proved
 * mutation NO_SEAL_FENCE    X1: the scan may overtake the SEALING store
 * mutation STATE_FIRST      X1: the reader looks at the state before the commit word
 * mutation SEALED_EARLY     X2: SEALED may be seen before sealed_seq
 * mutation HEAD_ONLY        sealed at head, without a scan for what was committed behind it
 * mutation NO_STATE_LOOK    the producer does not look at the state between finding room and opening a slot
 * mutation LOOK_BEFORE_ROOM the same look, but before the room's fence
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
#define HEAD SLOTS
#define GATE (SLOTS + 1)
#define STATE (SLOTS + 2)
#define SEALED_SEQ (SLOTS + 3)
#define WORDS (SLOTS + 4)
#define WRITERS 3
#define PRODUCER 0
#define DRIVER 1
#define CONSUMER 2

#define OPEN 0
#define SEALING 1
#define SEALED 2

/* ghost: seqs whose commit has reached memory */
byte committed;
#define ON_STORE(a, v) if :: a < SLOTS && ((v) & 1) -> committed = (v) / 2 + 1 :: else fi
#include "weak_memory.pml"

byte handed; /* ghost: seqs handed out */
byte fixed_at = 255; /* ghost: sealed_seq, from the moment the driver knows it */
bit is_dead;

#define LOOK_AT_STATE if :: memory[STATE] != OPEN -> goto ended :: else fi
#define DIES if :: is_dead = 1; goto dead :: skip fi

proctype producer()
{
    byte seq, limit, gate;
    do
    :: seq < MESSAGES ->
#ifdef LOOK_BEFORE_ROOM
        LOOK_AT_STATE;
#endif
        do
        :: seq >= limit ->
            LOOK_AT_STATE;
            STORE_RELEASE(PRODUCER, HEAD, seq);
            FENCE_SEQ_CST(PRODUCER); /* J1, and what makes the look below see a seal that missed this head */
            gate = memory[GATE];
            limit = gate + SLOTS;
            if
            :: seq >= limit -> memory[GATE] != gate || memory[STATE] != OPEN
            :: else
            fi;
            gate = 0
        :: else -> break
        od;
#if !defined(NO_STATE_LOOK) && !defined(LOOK_BEFORE_ROOM)
        LOOK_AT_STATE;
#endif
        DIES;
        STORE(PRODUCER, COMMIT(seq), 2 * seq);
        FENCE_RELEASE(PRODUCER);
        DIES;
        STORE_RELEASE(PRODUCER, COMMIT(seq), 2 * seq + 1);
        seq++;
        DIES;
        if
        :: STORE_RELEASE(PRODUCER, HEAD, seq)
        :: seq < MESSAGES /* a batch: head once a call */
        fi
    :: else -> break
    od;
ended:
    is_dead = 1;
dead:
    skip
}

proctype driver()
{
    byte sealed, n, before;
    if
    :: is_dead && DRAINED(PRODUCER) -> before = committed /* proved: what it stored has long arrived */
    :: skip -> /* expired or revoked: it may be alive, now or again */
#ifdef ONE_PHASE
        before = committed;
#else
        STORE_RELEASE(DRIVER, STATE, SEALING);
#ifndef NO_SEAL_FENCE
        FENCE_SEQ_CST(DRIVER);
#endif
        before = committed
#endif
    fi;
    sealed = memory[HEAD];
#ifndef HEAD_ONLY
    do
    :: n < SLOTS && memory[COMMIT(sealed)] == 2 * sealed + 1 -> sealed++; n++
    :: else -> break
    od;
#endif
    atomic { fixed_at = sealed; assert(handed <= sealed && before <= sealed) }
#ifdef SEALED_EARLY
    STORE(DRIVER, SEALED_SEQ, sealed + 1);
    STORE(DRIVER, STATE, SEALED);
#else
    STORE_RELEASE(DRIVER, SEALED_SEQ, sealed + 1);
    STORE_RELEASE(DRIVER, STATE, SEALED);
#endif
    FENCE_SEQ_CST(DRIVER)
}

proctype consumer()
{
    byte position, commit, state;
    byte bound = 255;
    do
    :: position < bound ->
#ifdef STATE_FIRST
        state = memory[STATE];
        commit = memory[COMMIT(position)];
#else
        commit = memory[COMMIT(position)]; /* acquire: what follows is loaded after it */
        state = memory[STATE];
#endif
        assert(commit <= 2 * position + 1);
        if
        :: state == SEALED && bound == 255 -> /* the seal is news: look again, up to it */
            assert(memory[SEALED_SEQ] != 0);
            bound = memory[SEALED_SEQ] - 1;
            assert(position <= bound)
        :: state == SEALING -> memory[STATE] == SEALED
        :: (state == OPEN || bound != 255) && commit == 2 * position + 1 ->
            d_step { assert(position < fixed_at); position++; handed = position }
            STORE_RELEASE(CONSUMER, GATE, position)
        :: state == OPEN && commit != 2 * position + 1 ->
            memory[COMMIT(position)] == 2 * position + 1 || memory[STATE] != OPEN
        :: state == SEALED && bound != 255 && commit != 2 * position + 1 -> assert(false) /* a hole below the seal */
        fi;
        d_step { commit = 0; state = 0 }
    :: else -> break
    od;
    assert(position == bound)
}

init
{
    atomic { run drain(PRODUCER); run drain(DRIVER); run drain(CONSUMER); run producer(); run driver(); run consumer() }
}
