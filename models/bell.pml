/* bell.pml: a client wakes its driver by one byte on its own connection; no sleep has a timeout.
 *
 * C: shmd_client_ring_send, shmd_client_ring_poll, shmd_client_ring_advance (shmd_client_ring.c); shmd_session_step
 *    (shmd_session.c); shmd_listener_accept, shmd_listener_hello (shmd_listener.c); shmd_sleeper_wait, shmd_sleeper_arm
 *    (shmd_sleeper.c).
 *
 * Property: no request is left in a ring while the driver sleeps. The driver sleeps until a connection that it waits
 * for has a byte or has ended, or a Hello comes. While a client is beyond its budget, the driver does not wait for that
 * connection, and the next tick ends the sleep. The client says Hello again once for a reason of its own, and whenever
 * it finds its connection ended. The driver may be killed once, at any step; its successor looks into a ring when a byte
 * comes. A mutex in the client's memory covers each request with its byte, and each change of the connection, so the
 * client is one process here. A socket with room for one byte stands for one that is nearly full.
 *
 * mutation NO_CLIENT_FENCE   K4: the client looks whether its byte has room while the tail is still on the way
 * mutation NO_DRIVER_FENCE   K4: the driver loads the tail while the room that it made is still on the way
 * mutation TAIL_LATE         K4: the client rings before it stores the tail
 * mutation LOOK_FIRST        K4: the driver loads the tail before it takes the bytes, not after
 * mutation RING_IF_EMPTY     the client rings only when it sees that the driver has read all that was before
 * mutation NO_RING_AT_OPEN   the client does not ring when its new connection opens
 * mutation RESET_IS_RUNG     the client takes a connection that was ended for one that is full
 * mutation STOPS_AT_BUDGET   beyond the budget the driver waits for the next byte, not for the next tick
 * mutation TICK_ONLY_ARMS    the next tick waits for the connection again, and does not look at the ring
 * mutation NO_TICK           the driver sleeps without an end while a client is beyond its budget
 * mutation ARMS_FORMER       the next tick waits for the connection of then, not for the client's present one
 *
 * fault: 41, 42 (Spin: all reorderings of a weak machine)
 */
#define SLOTS 2 /* fewer than REQUESTS: the client also waits for room */
#define REQUESTS 3
#define BUDGET 1
#define CONNECTIONS 3
#define TAIL 0
#define CURSOR 1
#define BYTES(c) (2 + (c)) /* what the client's side of a connection counts as not read yet */
#define WORDS (2 + CONNECTIONS)
#define WRITERS 2
#define CLIENT 0
#define DRIVER 1
#define DEPTH 4
#include "weak_memory.pml"
#define NONE 255

/* The kernel: of each connection. Its locks order what was stored before a byte was put in or taken out. */
bit has_byte[CONNECTIONS];      /* to be received */
bit has_hello[CONNECTIONS];     /* it waits to be accepted, its Hello is sent */
bit has_welcome[CONNECTIONS];
bit is_left[CONNECTIONS];       /* the client has closed its end */
bit is_ended[CONNECTIONS];      /* the driver has, or has died */

byte served;                    /* ghost */
bit is_killed;

/* What is stored by a lock-free subtraction in the kernel, after the byte was taken out. */
inline make_room(c)
{
#ifdef TSO
    atomic { DRAINED(DRIVER) -> memory[BYTES(c)] = 0 } /* a locked instruction is a fence there */
#else
    STORE_RELEASE(DRIVER, BYTES(c), 0)
#endif
}

inline ring()
{
#ifndef NO_CLIENT_FENCE
    FENCE_SEQ_CST(CLIENT);
#endif
    if
    :: is_open ->
        atomic {
            if
            :: memory[BYTES(mine)] -> is_rung = 1 /* EAGAIN */
            :: else -> memory[BYTES(mine)] = 1
            fi
        }
        if
        :: !is_rung -> atomic { DRAINED(CLIENT) -> has_byte[mine] = !is_ended[mine] }
        :: else -> is_rung = 0
        fi
    :: else
    fi
}

#define HAS_ROOM (sent < REQUESTS && sent < memory[CURSOR] + SLOTS)

proctype client()
{
    byte sent, mine;
    bit is_open = 1, is_rung, has_left, is_needed;
end:
    do
    :: HAS_ROOM ->
#ifdef RING_IF_EMPTY
        is_needed = memory[CURSOR] == sent;
#else
        is_needed = 1;
#endif
        sent++;
#ifndef TAIL_LATE
        STORE_RELEASE(CLIENT, TAIL, sent);
#endif
        if
        :: is_needed -> ring()
        :: else
        fi;
#ifdef TAIL_LATE
        STORE_RELEASE(CLIENT, TAIL, sent);
#endif
        is_needed = 0
    :: atomic { !is_open && has_welcome[mine] && !is_ended[mine] -> is_open = 1 };
#ifndef NO_RING_AT_OPEN
        ring()
#endif
#ifdef RESET_IS_RUNG
    :: atomic { is_ended[mine] && !is_open && mine + 1 < CONNECTIONS ->
#else
    :: atomic { is_ended[mine] && mine + 1 < CONNECTIONS ->
#endif
        is_left[mine] = 1; mine++; has_hello[mine] = 1; is_open = 0 }
    :: atomic { !has_left && mine + 1 < CONNECTIONS -> /* a reason of its own */
        has_left = 1; is_left[mine] = 1; mine++; has_hello[mine] = 1; is_open = 0 }
    od
}

#define HEARD (theirs != NONE && is_armed && has_byte[theirs])
#define LOST (theirs != NONE && is_left[theirs])

inline look()
{
#ifdef LOOK_FIRST
    tail = early;
#else
    tail = memory[TAIL];
#endif
    do
    :: cursor < tail && count < BUDGET ->
        atomic { cursor++; count++; served = (served < cursor -> cursor : served) }
        STORE_RELEASE(DRIVER, CURSOR, cursor)
    :: cursor < tail && count == BUDGET ->
#ifndef STOPS_AT_BUDGET
        atomic { is_armed = 0; is_due = 1; disarmed = theirs };
#endif
        break
    :: cursor >= tail -> break
    od;
    atomic { tail = 0; count = 0 }
}

inline close_former()
{
    if
    :: theirs != NONE -> is_ended[theirs] = 1
    :: else
    fi
}

/* A client's older Hello may come after its newer one (hello.pml). */
inline heed(c)
{
    atomic {
        has_hello[c] ->
        has_hello[c] = 0;
        if
        :: c < newest -> is_ended[c] = 1
        :: else -> close_former(); newest = c; theirs = c; has_welcome[c] = 1
        fi
    }
}

proctype driver()
{
    byte theirs, newest, cursor, tail, count, disarmed = NONE;
    bit is_armed = 1, is_due;
#ifdef LOOK_FIRST
    byte early;
#endif
start:
    cursor = memory[CURSOR];
    {
end:
        do
        :: heed(1)
        :: heed(2)
        :: HEARD ->
#ifdef LOOK_FIRST
            early = memory[TAIL];
#endif
            has_byte[theirs] = 0;
            make_room(theirs);
#ifndef NO_DRIVER_FENCE
            FENCE_SEQ_CST(DRIVER);
#endif
            look()
        :: atomic { LOST -> is_ended[theirs] = 1; theirs = NONE }
#ifndef NO_TICK
        :: is_due -> /* the next tick */
#ifdef LOOK_FIRST
            early = memory[TAIL];
#endif
#ifdef ARMS_FORMER
            atomic { is_due = 0; is_armed = theirs == disarmed; disarmed = NONE };
#else
            atomic { is_due = 0; is_armed = 1; disarmed = NONE };
#endif
#ifndef TICK_ONLY_ARMS
            look() /* no byte is taken, so one that comes later still wakes */
#endif
#endif
        od
    } unless { is_killed };
    atomic { /* the kernel ends its connections, and those that wait; its successor maps the ring */
        DRAINED(DRIVER);
        is_killed = 0;
        close_former();
        is_ended[1] = is_ended[1] || has_hello[1]; has_hello[1] = 0;
        is_ended[2] = is_ended[2] || has_hello[2]; has_hello[2] = 0;
        theirs = NONE; tail = 0; count = 0; is_armed = 1; is_due = 0; disarmed = NONE
    }
    goto start
}

init
{
    atomic { run drain(CLIENT); run drain(DRIVER); run client(); run driver() }
    if
    :: is_killed = 1
    :: skip
    fi;
    timeout;
    assert(served == REQUESTS)
}
