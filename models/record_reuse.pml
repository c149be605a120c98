/* record_reuse.pml: a record is used for one epoch after the other while late readers look how theirs ended.
 *
 * C: shmd_seqlock_read, shmd_seqlock_same, shmd_seqlock_unchanged, shmd_seqlock_rewrite, shmd_seqlock_publish
 *    (shmd_seqlock.h); shmd_epoch_end, shmd_epoch_copy, shmd_record_copy (shmd_record.c); shmd_producer_room,
 *    shmd_commit (shmd_producer.c); fill_record, free_record (driver/epochs.py); next_epoch, _clear (driver/streams.py).
 *
 * Property: what a reader is told of its epoch (its fields; once it has ended, why and where) is all of that epoch and
 * complete, or the reader is told that the record does not say. It is told, when the epoch has ended and its record is not
 * used again. A producer whose epoch has ended never finds it open again, however late it looks. The driver may be killed at
 * any step of the reuse; its successor begins the step anew. WORD is the epoch's number * 2, + 1 once it has ended, and 0
 * while the record is rewritten: the same as a table entry's generation with its odd numbers. The first epoch is one stream's,
 * and those after it are of a stream that got the record later.
 *
 * mutation NO_MARK                the record's word stays as it is while the fields are rewritten
 * mutation HAND_MADE              as NO_MARK, and readers look at a field that holds the number instead
 * mutation NO_RELEASE_FENCE       T2: no fence between the mark and the fields
 * mutation MARK_BY_RELEASE_STORE  T2: a release store in place of the fence
 * mutation PUBLISH_RELAXED        T1: the new word may be seen before the fields
 * mutation END_RELAXED            T1: the end may be seen before its reason and its number
 * mutation NO_ACQUIRE             T1: the fields may be loaded before the first look
 * mutation NO_ACQUIRE_FENCE       T2: the second look may be done before the fields are loaded
 * mutation NO_SECOND_LOOK         T2: no second look
 * mutation FROM_ONE               the first epoch of a stream is 1, also where its record was another stream's
 *
 * fault: 46 (Spin: reuse of a record, a weak machine)
 */
#define WORD 0
#define REASON 1
#define SEALED 2
#define NUMBER 3
#define WORDS 4
#define WRITERS 1
#ifndef EPOCHS
#define EPOCHS 3
#endif
#include "weak_memory.pml"

#ifdef FROM_ONE
#define NAME(use) ((use) == 1 -> 1 : (use) - 1)
#else
#define NAME(use) (use)
#endif

byte ended;    /* ghost: the epoch whose end is in the record, as long as it is not rewritten */
bit is_killed; /* once */

inline may_die()
{
    if
    :: skip
    :: !is_killed -> DRAINED(0); is_killed = 1; goto again
    fi
}

proctype driver()
{
    byte number = 2;
    do
    :: number <= EPOCHS ->
again:
        ended = 0;
#if !defined(NO_MARK) && !defined(HAND_MADE)
#ifdef MARK_BY_RELEASE_STORE
        STORE_RELEASE(0, WORD, 0);
#else
        STORE(0, WORD, 0);
#ifndef NO_RELEASE_FENCE
        FENCE_RELEASE(0);
#endif
#endif
#endif
        may_die();
        STORE(0, REASON, 0);
        STORE(0, NUMBER, NAME(number));
        may_die();
        STORE(0, SEALED, 0);
#ifdef PUBLISH_RELAXED
        STORE(0, WORD, NAME(number) * 2);
#else
        STORE_RELEASE(0, WORD, NAME(number) * 2);
#endif
        STORE(0, REASON, number);
        STORE(0, SEALED, number);
#ifdef END_RELAXED
        STORE(0, WORD, NAME(number) * 2 + 1);
#else
        STORE_RELEASE(0, WORD, NAME(number) * 2 + 1);
#endif
        DRAINED(0);
        ended = number;
        number++
    :: else -> break
    od
}

#if defined(NO_ACQUIRE) && !defined(TSO)
#define FIELDS_MAY_LOAD 1
#else
#define FIELDS_MAY_LOAD (done & 1)
#endif
#if defined(NO_ACQUIRE_FENCE) && !defined(TSO)
#define SECOND_LOOK_MAY_LOAD (done & 1)
#else
#define SECOND_LOOK_MAY_LOAD ((done & 15) == 15)
#endif

proctype reader()
{
    byte mine, done, first, reason, sealed, number, again, before;
    if
    :: mine = 1
    :: mine = 2
    fi;
    do
    :: !(done & 1) -> atomic { before = ended; first = memory[WORD]; done = done | 1 }
    :: !(done & 2) && FIELDS_MAY_LOAD -> atomic { reason = memory[REASON]; done = done | 2 }
    :: !(done & 4) && FIELDS_MAY_LOAD -> atomic { sealed = memory[SEALED]; done = done | 4 }
    :: !(done & 8) && FIELDS_MAY_LOAD -> atomic { number = memory[NUMBER]; done = done | 8 }
    :: !(done & 16) && SECOND_LOOK_MAY_LOAD ->
#ifdef HAND_MADE
        atomic { again = memory[NUMBER] * 2 + 1; done = done | 16 }
#else
        atomic { again = memory[WORD]; done = done | 16 }
#endif
    :: done == 31 -> break
    od;
#ifdef NO_SECOND_LOOK
    again = first;
#endif
    if
    :: first >> 1 == NAME(mine) && again >> 1 == NAME(mine) ->
        assert(number == NAME(mine));
        assert(first == NAME(mine) * 2 || (reason == mine && sealed == mine))
    :: else -> assert(before != mine || ended != mine) /* not told, although it stood there all the time */
    fi
}

proctype late_producer() /* of the first epoch; publishes when the word is the one that it knows */
{
    assert(memory[WORD] != NAME(1) * 2)
}

init
{
    atomic {
        memory[WORD] = 3; memory[REASON] = 1; memory[SEALED] = 1; memory[NUMBER] = 1; ended = 1;
        run drain(0); run driver(); run reader(); run late_producer()
    }
}
