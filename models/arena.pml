/* arena.pml: payloads in the arena and a reader without a gate.
 *
 * C: arena_take, arena_commit, shmd_abort (shmd_producer.c); copy_arena (shmd_slot_ring.c).
 *
 * The arena is shorter than the ring: a message's bytes are overwritten while its slot still says that it is there. The
 * slots are not reused here (slot_ring.pml has that); message s takes unit s of the arena, and a claim may be aborted
 * after its bytes were written.
 *
 * Property: the reader hands out whole payloads of the message that it asked for, or reports an overrun; an overrun is
 * reported only when the writer has begun to overwrite those bytes.
 *
 * mutation NO_RELEASE_FENCE   U2: no fence between the intent and the bytes
 * mutation INTENT_LATE        the intent is published after the bytes
 * mutation INTENT_REWINDS     an abort takes the intent back
 * mutation NO_ACQUIRE_FENCE   U2: no fence between the bytes and the second look at the intent
 * mutation NO_INTENT_LOOK     the reader looks at the commit word only
 *
 * fault: 42 (Spin: all reorderings of a weak machine)
 */
#ifndef MESSAGES
#define MESSAGES 4
#endif
#define UNITS 2
#define COMMIT(s) (s)
#define BYTES(s) (MESSAGES + (s) % UNITS)
#define INTENT (MESSAGES + UNITS)
#define WORDS (MESSAGES + UNITS + 1)
#define WRITERS 1
#include "weak_memory.pml"

#define SCRIBBLE 99

byte opened; /* ghost: the largest intent so far, in program order */

inline take(s)
{
    if
    :: s + 1 > intent ->
        intent = s + 1;
        opened = intent;
        STORE(0, INTENT, intent)
    :: else
    fi;
#ifndef NO_RELEASE_FENCE
    FENCE_RELEASE(0)
#endif
}

proctype producer()
{
    byte seq, intent;
    bit aborted;
    do
    :: seq < MESSAGES ->
#ifndef INTENT_LATE
        take(seq);
#endif
        if
        :: !aborted ->
            aborted = 1;
            STORE(0, BYTES(seq), SCRIBBLE);
#ifdef INTENT_REWINDS
            intent = seq;
            STORE(0, INTENT, seq)
#endif
        :: skip ->
            STORE(0, BYTES(seq), seq + 1);
#ifdef INTENT_LATE
            take(seq);
#endif
            STORE_RELEASE(0, COMMIT(seq), 2 * seq + 1);
            seq++;
            aborted = 0
        fi
    :: else -> break
    od
}

#if defined(NO_ACQUIRE_FENCE) && !defined(TSO)
#define SECOND_LOOK_MAY_LOAD (done & 1)
#else
#define SECOND_LOOK_MAY_LOAD (done & 2)
#endif

proctype consumer()
{
    byte position, done, commit, payload, intent;
    do
    :: position < MESSAGES ->
        done = 0;
        do
        :: !(done & 1) -> atomic { commit = memory[COMMIT(position)]; done = done | 1 }
        :: !(done & 2) && (done & 1) -> atomic { payload = memory[BYTES(position)]; done = done | 2 }
        :: !(done & 4) && SECOND_LOOK_MAY_LOAD -> atomic { intent = memory[INTENT]; done = done | 4 }
        :: done == 7 -> break
        od;
#ifdef NO_INTENT_LOOK
        intent = 0;
#endif
        if
        :: commit == 0 -> memory[COMMIT(position)] != 0
        :: commit != 0 && intent <= position + UNITS ->
            assert(payload == position + 1);
            position++
        :: else ->
            assert(position + UNITS < opened);
            position++
        fi;
        d_step { commit = 0; payload = 0; intent = 0 }
    :: else -> break
    od
}

init
{
    atomic { run drain(0); run producer(); run consumer() }
}
