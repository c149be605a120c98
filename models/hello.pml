/* hello.pml: clients say Hello, again and again, to drivers that may be killed at any step and adopt.
 *
 * C: shmd_listener_accept, shmd_listener_hello (shmd_listener.c); shmd_session_step (shmd_session.c).
 *
 * Property: the driver heeds at most one connection per client. It never closes the newest connection of a client that
 * it knows for an older one. In the end each client that lives and goes on trying is registered, connected and answered.
 * A line is never given to another client while its owner lives or may still write it. It is given again once the end of
 * its owner is proved. An expired client is told so at its next Hello, and none of its requests is served. One secret is
 * registered once. The driver may be killed once, at any step. The first client may be stopped for a time, give one
 * attempt up, and end, each at any step. It registers anew after it was told that it has expired. Both clients want the
 * same line. RELATION says what the second client is: another process (0), another copy of the library in the process
 * of the first one (1), or the image that this process has become by exec (2). The driver reads Hellos in any order,
 * also those whose connection the client has closed.
 *
 * also RELATION=1
 * also RELATION=2
 *
 * mutation NO_SERIAL          no serial: the driver heeds a client's older Hello after its newer one
 * mutation SERIAL_OF_CLIENT   serials are not comparable within a process: a late Hello of the former image ends the
 *                             present one
 * mutation OPEN_AFTER_EXPIRY  expiry leaves the client's connection open
 * mutation NO_RECORD_LOOK     the driver serves a request without a look at its client's record
 * mutation REVIVES            a new Hello brings an expired client back
 * mutation REUSE_EXPIRED      the line of an expired client is free without a proof of its end
 * mutation EOF_PROVES         the end of a connection is taken for the end of its client
 * mutation SAME_PROCESS_ENDS  another client of the same process ends the former one, also if the image is the same
 * mutation IMAGE_IGNORED      another image of the same process does not end the former one
 * mutation REGISTERS_FIRST    the new image is registered first, then the former one is ended, once
 * mutation RECORD_FIRST       of a client whose end is proved, the record is freed before the line
 * mutation NO_SECRET          the driver believes the id that a Hello names
 * mutation KEEPS_FORMER       a new Hello leaves the client's former connection open
 * mutation NEW_EACH_TIME      a first Hello that is sent again is taken for another client
 * mutation CURSOR_FIRST       a request counts as read before its answer is there
 * mutation NOT_REPEATABLE     a request that is served again is refused, because its line has an owner by then
 *
 * fault: 12, 25 (Spin: a driver and a client that end at each step, in all orders)
 */
#ifndef RELATION
#define RELATION 0
#endif
#define OTHER 0
#define COPY 1
#define EXEC 2
#define PROCESS(me) (RELATION == OTHER -> (me) : 0)

/* Registrations: two of client 0 (the second one after it has expired), one of client 1. The number is the secret. */
#define IDS 3
#define CLIENT_OF(id) ((id) / 2)
#define NEVER 0
#define ALIVE 1
#define GONE 2 /* expired, its end is not proved */
#define ENDED 3

/* The authority: outlives each driver. */
byte state[IDS], reply[IDS];
byte line_owner; /* id + 1 */
#define YES 1
#define NO 2
bit has_request[IDS]; /* in the client's own ring */

/* The kernel. */
#define CONNECTIONS 3
#define NONE 255
#define OPENED 1 /* in the backlog, or accepted: in which order their Hellos are read, nobody says */
#define CLOSED 2 /* by the driver or its death; the client's end is open */
#define BACKLOG 2 /* of those before their Hello */
#define WELCOME 1
#define TOLD 2
#define REFUSED 3
typedef connection_t {
    byte stage, id, claim, serial, answer;
    bit has_hello, is_older, is_heeded, has_byte, is_left
};
connection_t link[CONNECTIONS];
bit is_killed, is_stopped, is_over[2]; /* is_over: the client's image is gone */

/* The driver's private memory. */
byte present[IDS] = NONE; /* connection of each client */
bit is_heard[IDS];        /* epoll has told of a byte */

/* Ghost, and what the clients know. */
byte mine[2] = NONE, id_of[2];
bit is_mapped[IDS], was_expired[IDS], is_served[2];

inline forget(c)
{
    link[c].stage = 0; link[c].id = 0; link[c].claim = 0; link[c].serial = 0; link[c].answer = 0;
    link[c].has_hello = 0; link[c].is_older = 0; link[c].is_heeded = 0; link[c].has_byte = 0; link[c].is_left = 0
}

/* The client's end. */
inline leave(me)
{
    link[mine[me]].is_left = 1;
    if
    :: link[mine[me]].stage == CLOSED -> forget(mine[me])
    :: else
    fi;
    mine[me] = NONE
}

/* The driver's end. */
inline shut(c)
{
    link[c].stage = CLOSED;
    link[c].serial = 0; link[c].has_hello = 0; link[c].is_older = 0; link[c].is_heeded = 0; link[c].has_byte = 0;
    if
    :: link[c].is_left -> forget(c)
    :: else
    fi
}

#define IDLE 0
#define CONNECTED 1
#define SENT 2
#define OPEN 3
/* A request that was refused may be granted when it is served again, by a later driver. */
#ifdef NOT_REPEATABLE
#define IS_WORTH_ASKING(me) (line_owner == 0)
#else
#define IS_WORTH_ASKING(me) (line_owner == 0 || line_owner == id_of[me] + 1)
#endif
#define IS_BEFORE_HELLO(c) (link[c].stage == OPENED && !link[c].is_heeded)
#define IN_BACKLOG (IS_BEFORE_HELLO(0) + IS_BEFORE_HELLO(1) + IS_BEFORE_HELLO(2))
/* A serial is the time of the Hello. Here it counts the older Hellos of this process that are not read yet. */
#define SERIAL(c, me) ((link[c].has_hello && PROCESS(CLIENT_OF(link[c].id)) == PROCESS(me)) -> link[c].serial : 0)
#define LARGER(a, b) ((a) > (b) -> (a) : (b))

inline say_hello(me)
{
    link[mine[me]].serial = SERIAL(0, me);
    link[mine[me]].serial = LARGER(link[mine[me]].serial, SERIAL(1, me));
    link[mine[me]].serial = 1 + LARGER(link[mine[me]].serial, SERIAL(2, me));
    if
    :: is_registered -> link[mine[me]].claim = id_of[me] + 1
    :: !is_registered
    :: me == 1 && RELATION == COPY && !has_lied -> has_lied = 1; link[mine[me]].claim = 1 /* another's id */
    fi;
    link[mine[me]].has_hello = 1;
    at = SENT
}

inline ask(me)
{
    reply[id_of[me]] = 0;
    has_request[id_of[me]] = 1;
    is_asked = 1;
    link[mine[me]].has_byte = link[mine[me]].stage == OPENED
}
#define MAY_RUN(me) ((me) == 0 -> !is_stopped && !is_over[0] : RELATION != EXEC || is_over[0])

proctype client(byte me)
{
    byte at;
    bit gave_up, is_registered, is_asked, was_refused, has_lied;
    d_step { id_of[me] = 2 * me }
end:
    do
    :: atomic { is_over[me] -> at = 0; is_registered = 0; is_asked = 0; was_refused = 0; gave_up = 0; break }
    :: atomic { MAY_RUN(me) && at == IDLE && IN_BACKLOG < BACKLOG -> /* else EAGAIN */
        if
        :: link[0].stage == 0 -> mine[me] = 0
        :: link[0].stage != 0 && link[1].stage == 0 -> mine[me] = 1
        :: link[0].stage != 0 && link[1].stage != 0 && link[2].stage == 0 -> mine[me] = 2
        fi;
        link[mine[me]].stage = OPENED;
        link[mine[me]].id = id_of[me];
        at = CONNECTED;
        if
        :: me == 1 -> say_hello(me)
        :: else
        fi }
    :: atomic { me == 0 && MAY_RUN(me) && at == CONNECTED && link[mine[me]].stage != CLOSED -> say_hello(me) }
    :: atomic { MAY_RUN(me) && at == SENT && link[mine[me]].answer == WELCOME ->
        at = OPEN;
        assert(link[mine[me]].claim == 0 || link[mine[me]].claim == id_of[me] + 1);
        is_registered = 1;
        if
        :: has_request[id_of[me]] -> link[mine[me]].has_byte = link[mine[me]].stage == OPENED /* bell.pml */
        :: !has_request[id_of[me]] && !is_asked && !is_served[me] -> ask(me)
        :: else
        fi }
    :: atomic { MAY_RUN(me) && at == SENT && link[mine[me]].answer == TOLD ->
        assert(me == 0 && id_of[me] == 0);
        is_mapped[0] = 0;
        id_of[me] = 1;
        is_registered = 0; is_asked = 0; was_refused = 0; is_served[me] = 0;
        leave(me);
        at = IDLE }
    :: atomic { MAY_RUN(me) && at == SENT && link[mine[me]].answer == REFUSED -> leave(me); at = IDLE }
    :: atomic { MAY_RUN(me) && at == SENT && link[mine[me]].answer == 0 && me == 0 && !gave_up && RELATION == EXEC ->
        gave_up = 1; leave(me); at = IDLE } /* no answer for too long */
    :: atomic { MAY_RUN(me) && at != IDLE && link[mine[me]].stage == CLOSED && (at != SENT || link[mine[me]].answer == 0) ->
        leave(me); at = IDLE }
    :: atomic { MAY_RUN(me) && at == OPEN && !is_asked && was_refused && !has_request[id_of[me]] &&
        !is_mapped[id_of[me]] && IS_WORTH_ASKING(me) -> ask(me) }
    :: atomic { MAY_RUN(me) && is_asked && reply[id_of[me]] != 0 ->
        is_asked = 0;
        is_served[me] = 1;
        if
        :: reply[id_of[me]] == YES ->
            assert(line_owner == id_of[me] + 1);
            is_mapped[id_of[me]] = 1
        :: else -> was_refused = 1
        fi }
    od
}

#define IS_FORMER_IMAGE(former, id) (RELATION != OTHER && CLIENT_OF(former) != CLIENT_OF(id) && IMAGE_DIFFERS)
#ifdef SAME_PROCESS_ENDS
#define IMAGE_DIFFERS 1
#elif defined(IMAGE_IGNORED)
#define IMAGE_DIFFERS 0
#else
#define IMAGE_DIFFERS (RELATION == EXEC)
#endif

/* The owner's end is proved. The line goes first: a successor that still finds the record does both again. */
inline free_line(id)
{
    atomic {
        if
        :: line_owner == id + 1 ->
            assert(!is_mapped[id]);
            line_owner = 0
        :: else
        fi
    }
}

inline free_record(id)
{
    atomic {
        state[id] = ENDED;
        is_heard[id] = 0;
        has_request[id] = 0;
        if
        :: present[id] != NONE -> shut(present[id]); present[id] = NONE
        :: else
        fi
    }
}

inline finish(id)
{
#ifdef RECORD_FIRST
    free_record(id);
    free_line(id)
#else
    free_line(id);
    free_record(id)
#endif
}

#define MUST_END(former) (IS_FORMER_IMAGE(former, id) && (state[former] == ALIVE || state[former] == GONE))

inline end_former_images()
{
#if RELATION != OTHER
    do
    :: MUST_END(0) -> finish(0)
    :: MUST_END(1) -> finish(1)
    :: MUST_END(2) -> finish(2)
    :: else -> break
    od
#else
    skip
#endif
}

#ifdef NO_SERIAL
#define IS_SAME(a, b) 0
#else
#define IS_SAME(a, b) (link[a].id == link[b].id)
#endif
#ifdef SERIAL_OF_CLIENT
#define IS_ONE_ORDER(a, b) IS_SAME(a, b)
#else
#define IS_ONE_ORDER(a, b) (IS_SAME(a, b) || IS_FORMER_IMAGE(link[a].id, link[b].id))
#endif

/* Hellos that are still to be read and have an older serial than the one that is heeded. */
inline mark_older(former, c)
{
    if
    :: former != c && link[former].has_hello && IS_ONE_ORDER(former, c) && link[former].serial < link[c].serial ->
        link[former].is_older = 1; link[former].serial = 0
    :: else
    fi
}

#define IS_HEEDED(c, i) (link[c].is_heeded && link[c].id == (i))
#define IS_DEAD(id) (RELATION == OTHER && is_over[CLIENT_OF(id)])

inline heed(c)
{
    atomic {
        id = link[c].id;
        link[c].has_hello = 0;
        if
#ifdef NO_SECRET
        :: link[c].claim != 0 && link[c].claim != id + 1 -> id = link[c].claim - 1
#else
        :: link[c].claim != 0 && link[c].claim != id + 1 -> link[c].answer = REFUSED
#endif
        :: link[c].is_older -> shut(c); id = NONE
        :: else
        fi;
        if
        :: id == NONE
        :: id != NONE && link[c].answer == REFUSED -> shut(c); id = NONE
        :: id != NONE && link[c].answer != REFUSED && IS_DEAD(id) -> shut(c); id = NONE
#ifdef REVIVES
        :: id != NONE && link[c].answer != REFUSED && !IS_DEAD(id) && state[id] == ENDED ->
#else
        :: id != NONE && link[c].answer != REFUSED && !IS_DEAD(id) && (state[id] == GONE || state[id] == ENDED) ->
#endif
            link[c].answer = TOLD; shut(c); id = NONE
        :: else
        fi
    }
    if
    :: id != NONE ->
#ifdef REGISTERS_FIRST
        is_new = state[id] == NEVER;
        state[id] = ALIVE;
        if
        :: is_new -> end_former_images()
        :: else
        fi;
#else
        end_former_images();
        atomic {
#ifdef NEW_EACH_TIME
            assert(link[c].claim != 0 || state[id] == NEVER);
#endif
            state[id] = ALIVE
        };
#endif
        atomic {
            mark_older(0, c); mark_older(1, c); mark_older(2, c);
            link[c].serial = 0;
            if
            :: present[id] != NONE ->
                assert(mine[CLIENT_OF(id)] != present[id]);
#ifndef KEEPS_FORMER
                shut(present[id])
#endif
            :: else
            fi;
            present[id] = c;
            link[c].is_heeded = 1;
            assert((IS_HEEDED(0, id) + IS_HEEDED(1, id) + IS_HEEDED(2, id)) == 1)
        }
        link[c].answer = WELCOME
    :: else
    fi;
    id = 0
}

#ifdef REUSE_EXPIRED
#define IS_FREE (line_owner == 0 || state[line_owner - 1] == GONE)
#else
#define IS_FREE (line_owner == 0)
#endif

inline reply_to(id)
{
#ifdef CURSOR_FIRST
    has_request[id] = 0;
#endif
    reply[id] = word;
#ifndef CURSOR_FIRST
    has_request[id] = 0;
#endif
    word = 0
}

inline serve(id)
{
    is_heard[id] = 0;
    if
#ifdef NO_RECORD_LOOK
    :: has_request[id] ->
#else
    :: has_request[id] && state[id] == ALIVE ->
#endif
        atomic {
            assert(!was_expired[id]);
            if
#ifndef NOT_REPEATABLE
            :: line_owner == id + 1 -> word = YES
#endif
            :: IS_FREE && line_owner != id + 1 ->
                assert((id == 0 || !is_mapped[0]) && (id == 1 || !is_mapped[1]) && (id == 2 || !is_mapped[2]));
                line_owner = id + 1;
                word = YES
            :: else -> word = NO
            fi
        }
        reply_to(id)
    :: else
    fi
}

#define IS_SILENT(id) (CLIENT_OF(id) == 0 && (is_stopped || is_over[0]))

inline expire(id)
{
    atomic { state[id] = GONE; was_expired[id] = 1 }
#ifndef OPEN_AFTER_EXPIRY
    atomic {
        if
        :: present[id] != NONE -> shut(present[id]); present[id] = NONE
        :: else
        fi
    }
#else
    skip
#endif
}

inline lose(c)
{
    atomic {
        id = NONE;
        if
        :: link[c].is_heeded ->
            id = link[c].id;
            if
            :: present[id] == c -> present[id] = NONE
            :: else
            fi
        :: else
        fi;
        shut(c)
    }
#ifdef EOF_PROVES
    if
    :: id != NONE -> finish(id)
    :: else
    fi;
#endif
    id = 0
}

#define IS_KNOWN(id) (state[id] == ALIVE || state[id] == GONE)
#define EACH_CONNECTION(c) \
        :: link[c].stage == OPENED && link[c].has_hello -> heed(c) \
        :: link[c].stage == OPENED && link[c].is_left && !link[c].has_hello -> lose(c) \
        :: atomic { IS_BEFORE_HELLO(c) && !link[c].has_hello && IS_SILENT(link[c].id) -> shut(c) } /* its patience */ \
        :: atomic { link[c].stage == OPENED && link[c].is_heeded && link[c].has_byte -> \
            link[c].has_byte = 0; is_heard[link[c].id] = 1 }
#define EACH_CLIENT(i) \
        :: is_heard[i] -> serve(i) \
        :: state[i] == ALIVE && IS_SILENT(i) -> expire(i) \
        :: RELATION == OTHER && is_over[CLIENT_OF(i)] && IS_KNOWN(i) -> finish(i)

inline reset(c)
{
    if
    :: link[c].stage == OPENED -> shut(c)
    :: else
    fi
}

proctype driver()
{
    byte id, word;
#ifdef REGISTERS_FIRST
    bit is_new;
#endif
start:
    is_killed = 0;
    {
end:
        do
        EACH_CONNECTION(0)
        EACH_CONNECTION(1)
        EACH_CONNECTION(2)
        EACH_CLIENT(0)
        EACH_CLIENT(1)
        EACH_CLIENT(2)
        od
    } unless { is_killed };
    atomic { /* the kernel resets all connections, also those in the backlog; the next driver adopts the tables */
        reset(0); reset(1); reset(2);
        present[0] = NONE; present[1] = NONE; present[2] = NONE;
        is_heard[0] = 0; is_heard[1] = 0; is_heard[2] = 0;
        id = 0; word = 0
    }
    goto start
}

#define IS_FINE(me) (is_served[me] && mine[me] != NONE && state[id_of[me]] == ALIVE && present[id_of[me]] == mine[me] && \
    link[mine[me]].stage == OPENED)

init
{
    bit was_stopped, was_killed;
    atomic { run client(0); run client(1); run driver() }
    do
    :: atomic { !was_stopped && !is_over[0] -> was_stopped = 1; is_stopped = 1 }
    :: is_stopped -> is_stopped = 0
    :: atomic { RELATION != COPY && !is_over[0] -> /* killed, or exec */
        is_over[0] = 1;
        is_stopped = 0; was_stopped = 1;
        is_mapped[0] = 0; is_mapped[1] = 0;
        is_served[0] = 0;
        if
        :: mine[0] != NONE -> leave(0)
        :: else
        fi }
    :: atomic { !was_killed -> was_killed = 1; is_killed = 1 }
    :: !is_stopped -> break
    od;
    timeout;
    assert(!MAY_RUN(0) || IS_FINE(0));
    assert(!MAY_RUN(1) || IS_FINE(1));
    assert(!is_over[0] || is_mapped[2])
}
