/* closing.pml: two threads close one handle. A third thread only looks at what the handle is mapped to, and a fourth is inside
 * a call.
 *
 * C: shmd_guard_take_over (shmd_guarded.c); shmd_guard_closed, shmd_guard_enter, shmd_look_begin, shmd_look_end,
 *    shmd_await_lookers (shmd_internal.h).
 *
 * Property: the handle is unmapped at most once, and nobody is inside or looks at it then or later. A closer that loses its
 * patience changes nothing for the other closer: no new look begins as long as one of them closes. When both gave up, the
 * handle is open as before. Each thread ends. `closing` is one word with a bit and a count; here the bit and each closer's share
 * of the count are words of their own, which are loaded in one step.
 *
 * mutation REOPENS          a closer that gives up takes the other closer's mark away, too
 * mutation NO_MARK          the second closer relies on the mark of the first
 * mutation KEEPS_MARK       a closer that gives up leaves its mark
 * mutation MARK_LATE        a closer marks the handle after it has waited for the lookers
 * mutation NO_LOOK_FENCE    H1: a looker loads `closing` while its own count is still on the way
 * mutation NO_CLOSE_FENCE   H1: a closer loads the count while its mark is still on the way
 * mutation LOOK_RELAXED     H1: the end of a look may pass the look
 * mutation NO_AWAIT         a closer does not wait for the lookers
 * mutation NO_CLOSED_LOOK   a closer that gets the handle does not ask whether it is closed already
 *
 * fault: 46 (Spin: two closers, one looker, one that stays; a weak machine)
 */
#define MARK(n) (n)
#define CLOSED 2
#define LOOKERS 3
#define BUSY 4
#define WORDS 5
#define WRITERS 4
#define LOOKER 2
#define CALLER 3
#ifndef LOOKS
#define LOOKS 2
#endif
#include "weak_memory.pml"

bit is_mapped = 1;
byte done;

#ifdef NO_CLOSE_FENCE
#define CLOSE_FENCE(me) skip
#else
#define CLOSE_FENCE(me) FENCE_SEQ_CST(me)
#endif

inline give_up(me)
{
#ifdef REOPENS
    STORE(me, MARK(1 - me), 0);
#endif
#ifndef KEEPS_MARK
    STORE_RELEASE(me, MARK(me), 0)
#else
    skip
#endif
}

inline mark(me)
{
#ifdef NO_MARK
    if
    :: memory[MARK(1 - me)] == 0 -> STORE(me, MARK(me), 1)
    :: else
    fi
#else
    STORE(me, MARK(me), 1)
#endif
}

proctype closer(byte me)
{
    bit has_it;
#ifndef MARK_LATE
    mark(me);
#endif
    do
    :: atomic { memory[BUSY] == 0 -> memory[BUSY] = 1; has_it = 1 }; break
    :: memory[BUSY] == 1 -> break /* its patience is over */
    :: memory[CLOSED] == 1 -> break
    od;
    if
    :: has_it ->
        if
#ifndef NO_CLOSED_LOOK
        :: memory[CLOSED] == 1 -> STORE_RELEASE(me, BUSY, 0); give_up(me)
#endif
        :: else ->
#ifndef NO_AWAIT
            CLOSE_FENCE(me);
            memory[LOOKERS] == 0;
#endif
#ifdef MARK_LATE
            mark(me);
#endif
            atomic { assert(is_mapped); is_mapped = 0 };
            STORE_RELEASE(me, CLOSED, 1);
            STORE_RELEASE(me, MARK(me), 0); /* in one step with the line above: one word */
            STORE_RELEASE(me, BUSY, 0)
        fi
    :: else -> give_up(me)
    fi;
    done++
}

proctype looker()
{
    byte looks;
    bit may;
    do
    :: looks < LOOKS ->
        STORE(LOOKER, LOOKERS, 1);
#ifndef NO_LOOK_FENCE
        FENCE_SEQ_CST(LOOKER);
#endif
        may = (memory[MARK(0)] == 0 && memory[MARK(1)] == 0 && memory[CLOSED] == 0);
#ifdef LOOK_RELAXED
        if
        :: STORE(LOOKER, LOOKERS, 0); assert(!may || is_mapped)
        :: assert(!may || is_mapped); STORE(LOOKER, LOOKERS, 0)
        fi;
#else
        assert(!may || is_mapped);
        STORE_RELEASE(LOOKER, LOOKERS, 0);
#endif
        may = 0;
        looks++
    :: else -> break
    od;
    done++
}

proctype caller()
{
    if
    :: atomic { memory[BUSY] == 0 -> memory[BUSY] = 1 };
        if
        :: memory[CLOSED] == 0 ->
            assert(is_mapped);
            if
            :: assert(is_mapped); STORE_RELEASE(CALLER, BUSY, 0)
            :: skip /* it stays */
            fi
        :: else -> STORE_RELEASE(CALLER, BUSY, 0)
        fi
    :: skip
    fi;
    done++
}

init
{
    atomic { run drain(0); run drain(1); run drain(LOOKER); run drain(CALLER); run closer(0); run closer(1); run looker(); run caller() };
    done == 4 && DRAINED(0) && DRAINED(1) && DRAINED(LOOKER) && DRAINED(CALLER);
    assert(memory[MARK(0)] == 0 && memory[MARK(1)] == 0);
    assert(memory[CLOSED] != is_mapped)
}
