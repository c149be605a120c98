/* prepare.pml: one thread maps the next epoch of a consumer, while the consumer's own thread goes from epoch to epoch.
 *
 * C: shmd_consumer_prepare, shmd_consumer_take_prepared, shmd_consumer_discard, shmd_consumer_prepared_free
 *    (shmd_consumer_prepare.c); shmd_consumer_wire (shmd_consumer.c).
 *
 * Property: the consumer reads each epoch in a mapping of that epoch, complete and not unmapped, and so is the epoch before,
 * of which its caller may still hold a message. Each mapping is unmapped exactly once. The consumer may pass over epochs,
 * as a lossy one does.
 *
 * mutation RELAXED         N1: what was written into the mapping may come after the exchange that hands it over
 * mutation NO_EPOCH_LOOK   the consumer takes what was prepared, whatever epoch it is of
 * mutation TAKE_BY_STORE   the consumer takes by a load and a store, not by an exchange
 * mutation PUT_BY_STORE    the other thread hands over by a store, not by an exchange
 * mutation LOOKS_INSIDE    the other thread looks into what is prepared, to see of which epoch it is
 * mutation SPENT_IN_USE    the consumer gives up the epoch that it leaves, not the one before
 *
 * fault: 61 (Spin: another thread prepares while the consumer changes epochs; a weak machine)
 */
#ifndef EPOCHS
#define EPOCHS 3
#endif
#ifndef ROUNDS
#define ROUNDS 3
#endif
#define PREPARED 0
#define SPENT 1
#define LAST 2
#define OPENED 3
#define CONTENT(id) (3 + (id))
#define MAPPINGS (EPOCHS + ROUNDS)
#define WORDS (4 + MAPPINGS)
#define WRITERS 2
#define OWNER 0
#define OTHER 1
#include "weak_memory.pml"

bit is_mapped[MAPPINGS + 1];
byte epoch_of[MAPPINGS + 1];
byte made;
bit is_done;

inline map(me, epoch, id)
{
    atomic { made++; id = made; is_mapped[id] = 1; epoch_of[id] = epoch };
    STORE(me, CONTENT(id), epoch)
}

inline unmap(id)
{
    atomic {
        if
        :: id != 0 -> assert(is_mapped[id]); is_mapped[id] = 0
        :: else
        fi
    }
}

inline exchange(me, at, new, old)
{
    atomic {
#ifndef RELAXED
        DRAINED(me);
#endif
        old = memory[at];
        memory[at] = new
    }
}

inline discard(id)
{
    if
    :: id != 0 -> exchange(OWNER, SPENT, id, old); unmap(old)
    :: else
    fi
}

proctype owner()
{
    byte epoch, own, retired, old;
    do
    :: epoch < EPOCHS ->
        memory[OPENED] > epoch;
        epoch++;
        do
        :: epoch < memory[OPENED] -> epoch++
        :: break
        od;
#ifdef TAKE_BY_STORE
        own = memory[PREPARED];
        memory[PREPARED] = 0;
#else
        exchange(OWNER, PREPARED, 0, own);
#endif
        if
#ifdef NO_EPOCH_LOOK
        :: own != 0 ->
#else
        :: own != 0 && epoch_of[own] == epoch ->
#endif
            assert(memory[CONTENT(own)] == epoch_of[own])
        :: else -> discard(own); map(OWNER, epoch, own)
        fi;
        assert(is_mapped[own] && epoch_of[own] == epoch);
        STORE(OWNER, LAST, epoch);
#ifdef SPENT_IN_USE
        discard(own);
        assert(is_mapped[own]);
#else
        discard(retired);
        assert(is_mapped[own] && epoch_of[own] == epoch);
        retired = own;
#endif
        own = 0
    :: else -> break
    od;
    is_done; /* each call of shmd_consumer_prepare has returned before the close */
    unmap(retired);
    exchange(OWNER, PREPARED, 0, old);
    unmap(old);
    exchange(OWNER, SPENT, 0, old);
    unmap(old);
    own = 1;
    do
    :: own <= made -> assert(!is_mapped[own]); own++
    :: else -> break
    od
}

proctype other()
{
    byte round, next, prepared, id, old;
    do
    :: round < ROUNDS ->
        round++;
        exchange(OTHER, SPENT, 0, old);
        unmap(old);
        next = memory[LAST] + 1;
#ifdef LOOKS_INSIDE
        id = memory[PREPARED];
        if
        :: id != 0 -> assert(is_mapped[id]); prepared = epoch_of[id]
        :: else -> prepared = 0
        fi;
#endif
        if
        :: memory[OPENED] >= next && prepared != next ->
            map(OTHER, next, id);
            prepared = next;
#ifdef PUT_BY_STORE
            STORE_RELEASE(OTHER, PREPARED, id);
            DRAINED(OTHER)
#else
            exchange(OTHER, PREPARED, id, old);
            unmap(old)
#endif
        :: else
        fi
    :: else -> break
    od;
    DRAINED(OTHER);
    is_done = 1
}

/* The driver: opens one epoch after the other. */
proctype driver()
{
    do
    :: memory[OPENED] < EPOCHS -> memory[OPENED] = memory[OPENED] + 1
    :: else -> break
    od
}

init
{
    atomic { run drain(OWNER); run drain(OTHER); run driver(); run owner(); run other() }
}
