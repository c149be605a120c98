/* wake.pml: both sides sleep, and no sleep has a timeout; or only the first one of a wait has.
 *
 * C: shmd_producer_wake, wait_room, sleep_for_room, announce_wait, blocked_begin (shmd_producer.c); sleep_once,
 *    shmd_consumer_blocks_itself (shmd_consumer_wait.c); shmd_advance_inline (shmdriver.h);
 *    shmd_consumer_before_idle (shmd_consumer.c); release_to, await (shmd_guarded_consumer.c); shmd_wait.c.
 *
 * Property: the run ends: every message is published and read, so that no wake-up is ever lost, although the timeouts
 * of the C core are left out. An advance may go without a fence (C3): the look before idling makes up for it, also when
 * views held the gate and it moves later, without the position (release_to). A reader may sleep while its views hold its
 * gate: a producer that comes to wait there wakes it. One word, COMMITTED, stands for the commit words in order; both
 * sides may skip spinning and sleep at once. A sleeper's flag names the word that it sleeps on, so that it costs one
 * wake-up; a wait for room has a ticket, so that it costs one too, and what it announces stands until it is answered.
 * FIRST_SLEEPS: slices that grow. The consumer may be elsewhere after an advance that has no fence, and comes back only
 * when there is more; the driver lets it sleep in the middle of a publish. Then the first sleep of each wait ends by
 * itself, once all that was stored before is out, and no later one does.
 *
 * also FIRST_SLEEPS=1
 *
 * mutation NO_W1_PRODUCER_FENCE   W1: flags are looked at while the commit is still on the way
 * mutation NO_W1_CONSUMER_FENCE   W1: the slot is looked at while the flag is still on the way
 * mutation NO_W2_PRODUCER_FENCE   W2: gates are looked at while room_waiting is still on the way
 * mutation NO_W2_CONSUMER_FENCE   W2: room_waiting is looked at while the gate is still on the way
 * mutation WAKE_WORD_LATE         W1: the word to sleep on is loaded after the second look
 * mutation ROOM_WORD_LATE         W2: the same for the producer
 * mutation NO_LOOK_BEFORE_IDLE    W2: the consumer idles without looking for a waiting producer
 * mutation RELEASE_UNFENCED       W2: a gate that moves without the position counts as looked after already
 * mutation NO_BUMP                W1: the sleepers are woken without a new word
 * mutation NO_SECOND_LOOK         W1: the consumer sleeps without looking at the slot again
 * mutation FLAG_OF_NEXT_WORD      W1: the flag names another word than the one slept on, so the producer takes it for an old one
 * mutation SAME_TICKET            W2: every wait for room has the same ticket, so a consumer that woke once never wakes again
 * mutation BLOCKED_SILENTLY       B1: a producer that comes to wait for views that may be gone wakes nobody
 * mutation BLOCKED_UNSEEN         B1: a reader whose views hold its gate sleeps without looking whether its producer waits there
 * mutation LONG_AT_ONCE           the producer's first sleep is as long as the later ones
 * mutation READER_LONG_AT_ONCE    the same for the consumer
 * mutation ANNOUNCED_ANEW         what the producer has announced is taken back between two sleeps
 *
 * limit LATE_SLEEP_MASK           the driver lets the consumer sleep while the producer is in the middle of a publish: the
 *                                 load of sleep_mask has no fence (by design). Costs the consumer's first sleep, once an attach.
 *
 * fault: 41, 42 (Spin: all reorderings of a weak machine)
 */
#ifndef SLOTS
#define SLOTS 1
#endif
#ifndef MESSAGES
#define MESSAGES 3
#endif
#ifdef FIRST_SLEEPS
#define LATE_SLEEP_MASK
#endif
#define COMMITTED 0
#define WAKE_WORD 1
#define ROOM_WAITING 2
#define GATE 3
#define SLEEPING 4
#define ROOM_WORD 5
#define SLEEP_MASK 6
#define BLOCKED 7
#define WORDS 8
#define WRITERS 3
#define PRODUCER 0
#define CONSUMER 1
#define DRIVER 2
#include "weak_memory.pml"

#define FLAG(word) ((word) * 2 + 1)
#define NONE 255
bit is_asleep[2];

/* The kernel compares the word under the lock that a waker takes; a waker's stores are out before it looks for sleepers. */
inline futex_wait(me, word, seen)
{
    atomic {
        if
        :: memory[word] == seen -> is_asleep[me] = 1
        :: else
        fi
    }
    !is_asleep[me]
}

/* The same, of a first sleep: it may end when all that was stored before it is out. */
inline short_futex_wait(me, word, seen)
{
    atomic {
        if
        :: memory[word] == seen -> is_asleep[me] = 1
        :: else
        fi
    }
    if
    :: !is_asleep[me]
    :: atomic { DRAINED(PRODUCER) && DRAINED(CONSUMER) && DRAINED(DRIVER) -> is_asleep[me] = 0 }
    fi
}

inline futex_wake(me, whom)
{
    atomic { DRAINED(me) -> is_asleep[whom] = 0 }
}

inline wake_consumers()
{
    if
    :: memory[SLEEP_MASK] ->
#ifndef NO_W1_PRODUCER_FENCE
        FENCE_SEQ_CST(PRODUCER);
#endif
        if
        :: memory[SLEEPING] == FLAG(wake_word) -> /* an older flag: that sleeper was woken, or will not fall asleep */
#ifndef NO_BUMP
            wake_word++;
            STORE_RELEASE(PRODUCER, WAKE_WORD, wake_word);
#endif
            futex_wake(PRODUCER, CONSUMER)
        :: else
        fi
    :: else
    fi
}

/* BLOCKED: the place that the producer waits for, + 1; 0: none. The wake-up comes once a place. */
inline blocked_begin()
{
    if
    :: blocked != gate + 1 ->
        blocked = gate + 1;
        STORE_RELEASE(PRODUCER, BLOCKED, blocked);
#ifdef BLOCKED_SILENTLY
        skip
#else
        wake_consumers()
#endif
    :: else
    fi
}

inline sleep_for_room()
{
#ifndef ROOM_WORD_LATE
    seen = memory[ROOM_WORD];
#endif
#ifdef ANNOUNCED_ANEW
    STORE(PRODUCER, ROOM_WAITING, 0);
#endif
    if
    :: announced != seen ->
        announced = seen;
        has_slept = 0;
#ifdef SAME_TICKET
        ticket = 1;
#else
        ticket++;
#endif
        STORE_RELEASE(PRODUCER, ROOM_WAITING, ticket)
    :: else ->
#ifdef ANNOUNCED_ANEW
        STORE_RELEASE(PRODUCER, ROOM_WAITING, ticket)
#endif
    fi;
#ifndef NO_W2_PRODUCER_FENCE
    FENCE_SEQ_CST(PRODUCER); /* in C this one and J1's, in shmd_producer_room: either is enough */
#endif
    gate = memory[GATE];
    if
    :: seq - gate >= SLOTS ->
        blocked_begin();
#ifdef ROOM_WORD_LATE
        seen = memory[ROOM_WORD];
#endif
#if defined(FIRST_SLEEPS) && !defined(LONG_AT_ONCE)
        if
        :: !has_slept -> has_slept = 1; short_futex_wait(PRODUCER, ROOM_WORD, seen)
        :: else -> futex_wait(PRODUCER, ROOM_WORD, seen)
        fi
#else
        futex_wait(PRODUCER, ROOM_WORD, seen)
#endif
    :: else
    fi
}

proctype producer()
{
    byte seq, wake_word, seen, gate, ticket, blocked, announced;
    bit has_slept;
    do
    :: seq < MESSAGES ->
        gate = memory[GATE];
        announced = NONE;
        do
        :: seq - gate >= SLOTS ->
            blocked_begin();
            sleep_for_room();
            gate = memory[GATE]
        :: else -> break
        od;
        if
        :: announced != NONE -> STORE(PRODUCER, ROOM_WAITING, 0)
        :: else
        fi;
        if
        :: blocked != 0 -> blocked = 0; STORE(PRODUCER, BLOCKED, 0)
        :: else
        fi;
        atomic { gate = 0; seen = 0; announced = 0; has_slept = 0; seq++ }
        STORE_RELEASE(PRODUCER, COMMITTED, seq);
        wake_consumers()
    :: else -> break
    od
}

inline wake_producer()
{
    waiting = memory[ROOM_WAITING];
    if
    :: waiting != 0 && waiting != woken ->
        woken = waiting;
        room_word++;
        STORE_RELEASE(CONSUMER, ROOM_WORD, room_word);
        futex_wake(CONSUMER, PRODUCER)
    :: else
    fi;
    waiting = 0
}

inline move_gate()
{
    gate = position;
    STORE_RELEASE(CONSUMER, GATE, gate);
    if
    :: FENCE_SEQ_CST(CONSUMER) /* C3: every quarter ring */
    :: skip
    fi;
    wake_producer()
}

inline before_idle()
{
#ifdef NO_LOOK_BEFORE_IDLE
    skip
#else
    if
    :: fenced_at != position ->
        fenced_at = position;
#ifndef NO_W2_CONSUMER_FENCE
        FENCE_SEQ_CST(CONSUMER);
#endif
        wake_producer()
    :: else
    fi
#endif
}

/* Its views hold the gate at the place that the producer waits for. */
#ifdef BLOCKED_UNSEEN
#define BLOCKS_ITSELF 0
#else
#define BLOCKS_ITSELF (gate < position && memory[BLOCKED] == gate + 1)
#endif

inline sleep()
{
#ifndef WAKE_WORD_LATE
    seen = memory[WAKE_WORD];
#endif
#ifdef FLAG_OF_NEXT_WORD
    STORE_RELEASE(CONSUMER, SLEEPING, FLAG(seen + 1));
#else
    STORE_RELEASE(CONSUMER, SLEEPING, FLAG(seen));
#endif
#ifndef NO_W1_CONSUMER_FENCE
    FENCE_SEQ_CST(CONSUMER);
#endif
    if
#ifndef NO_SECOND_LOOK
    :: memory[COMMITTED] > position
    :: memory[COMMITTED] <= position && BLOCKS_ITSELF
    :: memory[COMMITTED] <= position && !BLOCKS_ITSELF ->
#else
    :: true ->
#endif
#ifdef WAKE_WORD_LATE
        seen = memory[WAKE_WORD];
#endif
#if defined(FIRST_SLEEPS) && !defined(READER_LONG_AT_ONCE)
        if
        :: slept_at != position -> slept_at = position; short_futex_wait(CONSUMER, WAKE_WORD, seen)
        :: else -> futex_wait(CONSUMER, WAKE_WORD, seen)
        fi
#else
        futex_wait(CONSUMER, WAKE_WORD, seen)
#endif
    fi;
    STORE(CONSUMER, SLEEPING, 0);
    seen = 0
}

proctype consumer()
{
    byte position, gate, room_word, seen, waiting, woken;
    byte fenced_at = NONE, slept_at = NONE;
#ifdef LATE_SLEEP_MASK
    memory[SLEEP_MASK]; /* the attach is answered after the bit was set */
#endif
    do
    :: position < MESSAGES ->
        if
        :: memory[COMMITTED] > position ->
            position++;
            if
            :: move_gate()
            :: skip /* views hold what was read */
            fi;
#ifdef FIRST_SLEEPS
            if
            :: gate == position && position < MESSAGES -> memory[COMMITTED] > position /* elsewhere meanwhile */
            :: skip
            fi
#endif
        :: memory[COMMITTED] <= position ->
            before_idle();
            if
            :: gate < position -> /* the views have gone: a fetch tells so, which ends its sleep to do it if it is woken */
                if
                :: sleep()
                :: skip
                fi;
                if
                :: memory[COMMITTED] <= position ->
                    move_gate();
#ifdef RELEASE_UNFENCED
                    skip
#else
                    fenced_at = NONE
#endif
                :: else
                fi
            :: else -> sleep()
            fi
        fi
    :: else -> break
    od
}

proctype driver()
{
    STORE_RELEASE(DRIVER, SLEEP_MASK, 1)
}

init
{
    atomic {
        run drain(PRODUCER); run drain(CONSUMER);
#ifdef LATE_SLEEP_MASK
        run drain(DRIVER); run driver();
#else
        memory[SLEEP_MASK] = 1;
#endif
        run producer(); run consumer()
    }
}
