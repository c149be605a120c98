/* control.pml: each client has a control ring of its own, which the driver reads; the driver may be killed at any step.
 *
 * C: shmd_client_ring_send, shmd_client_ring_poll, shmd_client_ring_advance (shmd_client_ring.c).
 *
 * Property: a driver that lives reads each request exactly once, whole, in the order in which it was sent. The successor
 * of a killed driver reads at most one request again, the one that was in work. No request is lost, and the client
 * overwrites none that is still to be read. Two threads of the client send, one at a time, under a mutex in private
 * memory, which is given back with release. A second client writes any tail and any request at any time. It is expelled,
 * every poll of the driver ends, and what the driver uses is what it has checked. The driver stores a client's cursor in
 * that client's record, where only the driver writes.
 *
 * also HOSTILE_CHANGES=2 EACH_SENDS=1
 *
 * mutation TAIL_RELAXED      K2: the tail may pass the request
 * mutation NO_TAIL_ACQUIRE   K2: the driver may copy the request before it loads the tail
 * mutation NO_ROOM_LOOK      K1: the client does not look at the cursor before it writes a slot
 * mutation CURSOR_RELAXED    K1: the cursor may pass the copy of the request
 * mutation CURSOR_EARLY      the cursor passes a request before it is served
 * mutation CURSOR_LATE       the driver stores the cursor once a poll: its successor serves several requests again
 * mutation STARTS_AT_TAIL    a new driver takes what waits in the ring for served
 * mutation NO_MUTEX          two threads of a client send at once
 * mutation TAIL_UNLOCKED     a thread stores the tail after it has given the mutex back
 * mutation TAIL_BELIEVED     the driver reads as far as the tail says
 * mutation TAIL_READ_ANEW    the driver loads the tail for each request, and polls until it has reached that
 * mutation WAITS_FOR_TAIL    the driver waits until a hostile tail is right again
 * mutation COPIES_TWICE      the driver uses another copy of the request than the one that it has checked
 *
 * fault: 23, 24, 42 (Spin: all reorderings of a weak machine)
 */
#define SLOTS 4
/* Of each of two threads. */
#ifndef EACH_SENDS
#define EACH_SENDS 3
#endif
#ifndef HOSTILE_CHANGES
#define HOSTILE_CHANGES 0
#endif
#define DRIVER 0
#define WRITERS 3 /* the driver is 0, the threads 1 and 2; the hostile client writes at once */
#define DEPTH 3
#define CURSOR(c) (c)
#define TAIL(c) (2 + (c))
#define REQUEST(c, p) ((c) -> 8 : 4 + (p) % SLOTS)
#define WORDS 9
#define HONEST 0
#define HOSTILE 1
#include "weak_memory.pml"

#define TAG(me, number) ((me) * 4 + (number))
#define WAITING(cursor, tail) (((tail) - (cursor)) & 255)

byte tail; /* of the honest client, in its process's memory */
bit is_locked, is_expelled, is_killed;
bit was_read[12]; /* ghost, by tag */

proctype sender(byte me)
{
    byte number, mine;
    do
    :: number < EACH_SENDS ->
#ifndef NO_MUTEX
        atomic { !is_locked -> is_locked = 1 };
#endif
        mine = tail;
#ifndef NO_ROOM_LOOK
        WAITING(memory[CURSOR(HONEST)], mine) < SLOTS;
#endif
        STORE(me, REQUEST(HONEST, mine), TAG(me, number));
        tail = mine + 1;
#ifdef TAIL_UNLOCKED
        atomic { DRAINED(me) -> is_locked = 0 };
#endif
#ifdef TAIL_RELAXED
        STORE(me, TAIL(HONEST), mine + 1);
#else
        STORE_RELEASE(me, TAIL(HONEST), mine + 1);
#endif
#ifndef TAIL_UNLOCKED
        atomic { DRAINED(me) -> is_locked = 0 };
#endif
        atomic { number++; mine = 0 }
    :: else -> break
    od
}

/* Tails that are right, too far, and behind. */
proctype hostile()
{
    byte changes;
    do
    :: changes < HOSTILE_CHANGES ->
        atomic {
            changes++;
            if
            :: memory[TAIL(HOSTILE)] = 1
            :: memory[TAIL(HOSTILE)] = 4
            :: memory[TAIL(HOSTILE)] = 8
            :: memory[TAIL(HOSTILE)] = 255
            :: memory[REQUEST(HOSTILE, 0)] = 1 - memory[REQUEST(HOSTILE, 0)]
            fi
        }
    :: else -> break
    od
}

#define HAS_WORK(c) (memory[TAIL(c)] != cursor[c] && !(c == HOSTILE && is_expelled))

inline step(c)
{
    cursor[c] = cursor[c] + 1;
#ifndef CURSOR_LATE
    STORE_RELEASE(DRIVER, CURSOR(c), cursor[c])
#endif
}

inline serve(c)
{
    atomic {
        if
        :: c == HONEST ->
            assert(request / 4 != 0 && (!was_read[request] || is_first));
            was_read[request] = 1
        :: else
        fi;
        is_first = is_first && c == HOSTILE
    }
}

inline poll(c)
{
    seen = memory[TAIL(c)];
    do
    :: seen == cursor[c] -> break
#ifndef TAIL_BELIEVED
    :: WAITING(cursor[c], seen) > SLOTS ->
        assert(c == HOSTILE);
#ifdef WAITS_FOR_TAIL
        WAITING(cursor[c], memory[TAIL(c)]) <= SLOTS;
#else
        is_expelled = 1;
#endif
        break
    :: seen != cursor[c] && WAITING(cursor[c], seen) <= SLOTS ->
#else
    :: seen != cursor[c] ->
#endif
        atomic { count++; assert(count <= SLOTS) }; /* so that the poll ends */
#if defined(CURSOR_RELAXED) && !defined(TSO)
        if
        :: STORE(DRIVER, CURSOR(c), cursor[c] + 1)
        :: skip
        fi;
#endif
        if
        :: c == HONEST && is_copied -> request = early; is_copied = 0
        :: else -> request = memory[REQUEST(c, cursor[c])]
        fi;
#ifdef COPIES_TWICE
        checked = request;
        request = memory[REQUEST(c, cursor[c])];
        assert(checked == request);
#endif
#ifdef CURSOR_EARLY
        STORE_RELEASE(DRIVER, CURSOR(c), cursor[c] + 1);
#endif
        serve(c);
        step(c);
        request = 0;
#ifdef TAIL_READ_ANEW
        seen = memory[TAIL(c)]
#endif
    od;
#ifdef CURSOR_LATE
    STORE_RELEASE(DRIVER, CURSOR(c), cursor[c]);
#endif
    atomic { count = 0; seen = 0; request = 0 }
}

proctype driver()
{
    byte cursor[2], seen, count, request, early;
    bit is_first, is_copied;
#ifdef COPIES_TWICE
    byte checked;
#endif
start:
    atomic {
        DRAINED(DRIVER);
        cursor[HONEST] = memory[CURSOR(HONEST)];
        cursor[HOSTILE] = memory[CURSOR(HOSTILE)]
    }
    {
end:
        do
        :: HAS_WORK(HONEST) -> poll(HONEST)
#if defined(NO_TAIL_ACQUIRE) && !defined(TSO)
        :: !is_copied -> early = memory[REQUEST(HONEST, cursor[HONEST])]; is_copied = 1
#endif
        :: HAS_WORK(HOSTILE) -> poll(HOSTILE)
        od
    } unless { is_killed };
    atomic {
        is_killed = 0;
        seen = 0; count = 0; request = 0; early = 0; is_copied = 0;
        is_first = 1 /* it may read again what was in work */
    }
#ifdef STARTS_AT_TAIL
    atomic { DRAINED(DRIVER); memory[CURSOR(HONEST)] = memory[TAIL(HONEST)] }
#endif
    goto start
}

init
{
    byte who, number;
    atomic {
        run drain(DRIVER); run drain(1); run drain(2);
        run driver(); run sender(1); run sender(2); run hostile()
    }
    if
    :: is_killed = 1
    :: skip
    fi;
    timeout;
    d_step {
        who = 1;
        do
        :: who <= 2 ->
            number = 0;
            do
            :: number < EACH_SENDS -> assert(was_read[TAG(who, number)]); number++
            :: else -> break
            od;
            who++
        :: else -> break
        od;
#ifndef WAITS_FOR_TAIL
        assert(is_expelled || memory[TAIL(HOSTILE)] == memory[CURSOR(HOSTILE)]);
#endif
        who = 0; number = 0
    }
}
