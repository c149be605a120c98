/* turns.pml: how a thread gets a queue's lock although the thread inside sleeps for long while it holds that lock.
 *
 * C: Call.__init__, Call.waits_until, Turns.is_slept_on, Turns.knock, Turns.word, Turns.rest_ns (client/turns.py); _put_slow,
 *    _put_inside, _get_slow, _get_inside (client/queue.py); shmd_futex_change (shmd_wait.c).
 *
 * Property: the run ends: a call that wants the lock gets it by its own wake-up. No sleep of the thread inside ends by
 * itself, but at a deadline that this thread knows, and at the end of a slice that begins earlier than a slice before
 * that deadline. A getter with a deadline is inside by then. What comes (an object, room) ends a wait, also beside a call.
 * Another call may be interrupted at each step by a signal's handler, which raises or makes a call itself. The thread inside
 * gives way only to a call that has not ended, of another thread, that wants the lock now and has not been inside: no
 * note that is left behind keeps it awake. Python's steps are made in the order of the interpreter's lock.
 *
 * also PUTTERS=1
 * also DEADLINE=1
 *
 * mutation KNOCK_FIRST      H3: a call knocks before it is noted
 * mutation WORD_LATE        H3: the thread inside loads the word after its look at who asks
 * mutation SLEPT_ON_LATE    H3: the thread inside says on which value it sleeps after that look
 * mutation NO_NEW_WORD      H3: a knock wakes without a new word
 * mutation NO_WAKE          H3: a knock changes the word and wakes nobody
 * mutation FLAG_CLEARED     H3: a knock clears a flag, and changes the word in a later step
 * mutation WAKE_APART       H3: a handler may come between the new word and the wake-up
 * mutation GARBAGE_COUNTS   rest_ns: the thread inside gives way to a call that an exception has ended
 * mutation BENEATH_COUNTS   rest_ns: a handler's call gives way to the call beneath it
 * mutation STILL_NOW        waits_until: a putter that has been inside goes on wanting the lock at once
 * mutation DEADLINE_UNSEEN  rest_ns: the thread inside sleeps past the deadline of a call that is noted
 * mutation NEAR_SILENT      Call: a call whose deadline comes within a slice does not knock
 * mutation LONG_SLICES      slice_ns: slices are longer than the time within which a call knocks
 *
 * fault: 41, 49, 52 (Spin: a call interrupted at each step, in all orders)
 */
#define HANDLER 3 /* a call that a handler makes, in thread MAIN */
#define MAIN 1
#define CALLS 4
#define NOBODY 255

/* When a call wants to be inside. */
#define NOT_NOTED 0
#define NOW 1
#define SOON 2 /* at LAST */
#define NEVER 3

/* Slices; a point in time is somewhere between two. A sleep that begins at time t, for a slice, ends within t + 1. */
#define LAST 2

byte noted[CALLS];
bit is_garbage[CALLS];  /* an exception has ended it; its note is still there */
bit was_inside[CALLS];
bit is_open[CALLS];     /* ghost: wants the lock, and has not been inside */
bit is_done[CALLS];     /* its last step is to take its note back */
bit is_over[CALLS];
byte word;
byte slept_on = NOBODY; /* the value of the word on which the thread inside sleeps */
byte owner = NOBODY;
byte depth;
bit is_asleep[CALLS];
byte ends_at[CALLS];
byte time;
byte there;             /* objects to get; room */
bit is_endless;         /* there are always more */
bit handler_waits;
bit is_suspended[CALLS]; /* its thread runs a handler */
bit is_in_c[CALLS];
bit has_raised[CALLS];

#define THREAD(call) ((call) == HANDLER -> MAIN : (call))
#define RUNS(call) (!is_suspended[call])
#define WANTS_IN(call) (noted[call] == NOW || (noted[call] == SOON && time >= LAST))
#define IS_OPEN(call) (is_open[call] && !is_suspended[call])
#define ARE_OPEN (IS_OPEN(0) || IS_OPEN(1) || IS_OPEN(2) || IS_OPEN(3))

#ifdef NEAR_SILENT
#define IS_NEAR (first == NOW)
#else
#define IS_NEAR (first == NOW || (first == SOON && LAST - time <= 1))
#endif

#define HAD_ITS_TURN(call) (noted[call] == NOW && was_inside[call] && !is_done[call] && !has_raised[call])
#if defined(GARBAGE_COUNTS)
#define COUNTS(call) (THREAD(call) != THREAD(me))
#elif defined(BENEATH_COUNTS)
#define COUNTS(call) (!is_garbage[call] && call != me)
#else
#define COUNTS(call) (!is_garbage[call] && THREAD(call) != THREAD(me))
#endif

inline wake_all()
{
    d_step { is_asleep[0] = 0; is_asleep[1] = 0; is_asleep[2] = 0; is_asleep[3] = 0 }
}

inline note(until)
{
    atomic { RUNS(me) -> noted[me] = until; is_open[me] = (until != NEVER && !was_inside[me]) }
}

/* Between its own steps a handler may come, but not between those of one C call. */
inline knock_if_slept_on()
{
    if
    :: atomic { RUNS(me) && !(word == slept_on && IS_NEAR) }
    :: atomic { RUNS(me) && word == slept_on && IS_NEAR -> skip };
#ifdef FLAG_CLEARED
        atomic { RUNS(me) -> slept_on = NOBODY };
#endif
        atomic {
            RUNS(me) -> skip;
#ifndef NO_NEW_WORD
            word++;
#endif
#ifndef WAKE_APART
            is_in_c[me] = 1
#endif
        };
        atomic {
            RUNS(me) -> is_in_c[me] = 0;
#ifndef NO_WAKE
            wake_all()
#endif
        }
    fi
}

inline take_lock()
{
    atomic {
        RUNS(me) && (owner == NOBODY || owner == THREAD(me)) -> owner = THREAD(me); depth++
    }
}

inline leave_lock()
{
    atomic {
        RUNS(me) -> depth--;
        if
        :: depth == 0 -> owner = NOBODY
        :: else
        fi
    }
}

inline been_inside()
{
    was_inside[me] = 1;
    if
    :: first == NOW || time >= LAST -> is_open[me] = 0
    :: else
    fi
}

inline load_word()
{
    atomic { RUNS(me) -> seen = word };
#ifndef SLEPT_ON_LATE
    atomic { RUNS(me) -> slept_on = seen }
#endif
}

/* Who wants to be inside, and until when this call may sleep. */
inline look()
{
    gives_way = 0;
    until = (time == 0 -> 1 : NEVER); /* the end of a slice that began later helps nobody here */
#ifdef LONG_SLICES
    until = NEVER;
#endif
    if
    :: end == SOON && until == NEVER -> until = LAST
    :: else
    fi;
    other = 0;
    do
    :: other < CALLS ->
        if
#ifndef GARBAGE_COUNTS
        :: noted[other] != NOT_NOTED && is_garbage[other] -> noted[other] = NOT_NOTED
#endif
        :: noted[other] != NOT_NOTED && COUNTS(other) ->
            if
            :: WANTS_IN(other) ->
                gives_way = 1;
                assert(!is_garbage[other] && THREAD(other) != THREAD(me) && !HAD_ITS_TURN(other))
            :: !WANTS_IN(other) && noted[other] == SOON ->
#ifndef DEADLINE_UNSEEN
                until = (until == NEVER -> LAST : until)
#endif
            :: else
            fi
        :: else
        fi;
        other++
    :: else -> break
    od;
    other = 0
}

/* In C, on the word and on what comes. A signal ends it. */
inline sleep()
{
    atomic {
        RUNS(me) ->
        if
        :: word == seen && there == 0 && !is_endless -> is_asleep[me] = 1; ends_at[me] = until
        :: else
        fi
    };
    atomic {
        !is_asleep[me] || (ends_at[me] <= time && ends_at[me] != NEVER) ->
        is_asleep[me] = 0; ends_at[me] = 0; until = 0; seen = 0
    }
}

/* `first`: when it wants the lock; `end`: until when it waits inside, NOT_NOTED: it only asks. */
proctype call(byte me, first, end)
{
    byte seen, until, other;
    bit gives_way;
    {
#ifdef KNOCK_FIRST
        knock_if_slept_on();
        note(first);
#else
        note(first);
        knock_if_slept_on();
#endif
        do
        :: is_done[me] -> break
        :: else ->
            take_lock();
            do
            :: atomic { RUNS(me) && end == NOT_NOTED -> been_inside(); is_done[me] = 1; break }
            :: atomic { RUNS(me) && end != NOT_NOTED -> skip };
                if
                :: first != NOW -> /* a getter loads the word before it looks for an object, a putter behind it */
#ifndef WORD_LATE
                    load_word()
#endif
                :: else
                fi;
                atomic {
                    RUNS(me) -> been_inside();
                    if
                    :: there > 0 || is_endless -> there = (there > 0 -> there - 1 : 0); is_done[me] = 1; break
                    :: else
                    fi
                };
                if
                :: first == NOW ->
#ifndef STILL_NOW
                    note(end);
#endif
#ifndef WORD_LATE
                    load_word()
#endif
                :: else
                fi;
                atomic {
                    RUNS(me) ->
                    look();
                    if
                    :: end == SOON && time >= LAST -> is_done[me] = 1; break
                    :: !(end == SOON && time >= LAST) && gives_way -> gives_way = 0; break
                    :: else
                    fi
                };
#ifdef WORD_LATE
                load_word();
#endif
#ifdef SLEPT_ON_LATE
                atomic { RUNS(me) -> slept_on = seen };
#endif
                sleep()
            od;
            leave_lock()
        od;
        atomic { RUNS(me) -> noted[me] = NOT_NOTED; is_open[me] = 0 }
    } unless {
        atomic {
            has_raised[me] ->
            if
            :: owner == THREAD(me) -> owner = NOBODY; depth = 0
            :: else
            fi;
            if
            :: noted[me] = NOT_NOTED
            :: is_garbage[me] = 1
            fi;
            is_open[me] = 0
        }
    };
    atomic { seen = 0; until = 0; gives_way = 0; was_inside[me] = 0; is_done[me] = 0; has_raised[me] = 0; is_over[me] = 1 }
}

proctype handler()
{
    if
    :: skip
    :: atomic {
        !is_over[MAIN] && !is_in_c[MAIN] -> is_suspended[MAIN] = 1; is_asleep[MAIN] = 0 };
        if
        :: has_raised[MAIN] = 1
        :: run call(HANDLER, NOW, NOT_NOTED); is_over[HANDLER]
#ifdef PUTTERS
        :: handler_waits = 1; run call(HANDLER, NEVER, NEVER); is_over[HANDLER]
#endif
        fi;
        atomic {
            handler_waits = 0;
            is_suspended[MAIN] = 0
        }
    fi
}

/* Something comes once at any time, and for all when no call is open: then nothing else ends their waits. */
proctype other_process()
{
#if defined(PUTTERS) || defined(DEADLINE)
    if
    :: skip
    :: atomic { there = 1; wake_all() }
    fi;
#endif
    atomic { time >= LAST - 1 && (!ARE_OPEN || handler_waits) -> is_endless = 1; wake_all() }
}

#define SLEEPS_A_SLICE(call) (is_asleep[call] && ends_at[call] == 1)
proctype clock()
{
    do
    :: atomic { time == 0 -> time = 1 }
    :: atomic {
        time == 1 && !SLEEPS_A_SLICE(0) && !SLEEPS_A_SLICE(1) && !SLEEPS_A_SLICE(2) && !SLEEPS_A_SLICE(3) -> time = 2 }
    :: time == LAST -> break
    od
}

init
{
    atomic {
        time = 1;
#if defined(DEADLINE)
        time = 0;
        run clock(); run call(0, NEVER, NEVER); run call(1, SOON, SOON);
#elif defined(PUTTERS)
        run call(0, NOW, NEVER); run call(1, NOW, NEVER);
#else
        run call(0, NEVER, NEVER); run call(1, NOW, NOT_NOTED); run call(2, NOW, NOT_NOTED);
#endif
#ifndef DEADLINE
        run handler();
#endif
        run other_process()
    }
}
