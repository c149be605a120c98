/* wake.pml: both sides sleep, and no sleep has a timeout.
 *
 * C: shmd_producer_wake, wait_room, sleep_for_room (shmd_producer.c); sleep_once (shmd_consumer_wait.c);
 *    shmd_advance_inline (shmdriver.h); shmd_consumer_before_idle (shmd_consumer.c); shmd_wait.c.
 *
 * Property: the run ends: every message is published and read, so that no wake-up is ever lost, although the timeouts
 * of the C core (20 ms, 2 ms) are left out. An advance may go without a fence (C3): the look before idling makes up for it.
 * One word, COMMITTED, stands for the commit words in order; both sides may skip spinning and sleep at once.
 * A sleeper's flag names the word that it sleeps on, so that it costs one wake-up; a wait for room has a ticket, so that it
 * costs one too.
 *
 * mutation NO_W1_PRODUCER_FENCE   W1: flags are looked at while the commit is still on the way
 * mutation NO_W1_CONSUMER_FENCE   W1: the slot is looked at while the flag is still on the way
 * mutation NO_W2_PRODUCER_FENCE   W2: gates are looked at while room_waiting is still on the way
 * mutation NO_W2_CONSUMER_FENCE   W2: room_waiting is looked at while the gate is still on the way
 * mutation WAKE_WORD_LATE         W1: the word to sleep on is loaded after the second look
 * mutation ROOM_WORD_LATE         W2: the same for the producer
 * mutation NO_LOOK_BEFORE_IDLE    W2: the consumer idles without looking for a waiting producer
 * mutation NO_BUMP                W1: the sleepers are woken without a new word
 * mutation NO_SECOND_LOOK         W1: the consumer sleeps without looking at the slot again
 * mutation FLAG_OF_NEXT_WORD      W1: the flag names another word than the one slept on, so the producer takes it for an old one
 * mutation SAME_TICKET            W2: every wait for room has the same ticket, so a consumer that woke once never wakes again
 *
 * limit LATE_SLEEP_MASK           the driver lets the consumer sleep while the producer is in the middle of a publish: the
 *                                 load of sleep_mask has no fence (by design). Ended by the consumer's timeout, once an attach.
 *
 * fault: 41, 42 (Spin: all reorderings of a weak machine)
 */
#ifndef SLOTS
#define SLOTS 1
#endif
#ifndef MESSAGES
#define MESSAGES 4
#endif
#define COMMITTED 0
#define WAKE_WORD 1
#define ROOM_WAITING 2
#define GATE 3
#define SLEEPING 4
#define ROOM_WORD 5
#define SLEEP_MASK 6
#define WORDS 7
#define WRITERS 3
#define PRODUCER 0
#define CONSUMER 1
#define DRIVER 2
#include "weak_memory.pml"

#define FLAG(word) ((word) * 2 + 1)
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

proctype producer()
{
    byte seq, wake_word, seen, gate, ticket;
    do
    :: seq < MESSAGES ->
        gate = memory[GATE];
        do
        :: seq - gate >= SLOTS ->
            wake_consumers();
#ifndef ROOM_WORD_LATE
            seen = memory[ROOM_WORD];
#endif
#ifdef SAME_TICKET
            ticket = 1;
#else
            ticket++;
#endif
            STORE_RELEASE(PRODUCER, ROOM_WAITING, ticket);
#ifndef NO_W2_PRODUCER_FENCE
            FENCE_SEQ_CST(PRODUCER); /* in C this one and J1's, in shmd_producer_room: either is enough */
#endif
            gate = memory[GATE];
            if
            :: seq - gate >= SLOTS ->
#ifdef ROOM_WORD_LATE
                seen = memory[ROOM_WORD];
#endif
                futex_wait(PRODUCER, ROOM_WORD, seen)
            :: else
            fi;
            STORE(PRODUCER, ROOM_WAITING, 0);
            gate = memory[GATE]
        :: else -> break
        od;
        atomic { gate = 0; seen = 0; seq++ }
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

proctype consumer()
{
    byte position, room_word, seen, waiting, woken;
    byte fenced_at = 255;
#ifdef LATE_SLEEP_MASK
    memory[SLEEP_MASK]; /* the attach is answered after the bit was set */
#endif
    do
    :: position < MESSAGES ->
        if
        :: memory[COMMITTED] > position ->
            position++;
            STORE_RELEASE(CONSUMER, GATE, position);
            if
            :: FENCE_SEQ_CST(CONSUMER) /* C3: every quarter ring */
            :: skip
            fi;
            wake_producer()
        :: else ->
#ifndef NO_LOOK_BEFORE_IDLE
            if
            :: fenced_at != position ->
                fenced_at = position;
#ifndef NO_W2_CONSUMER_FENCE
                FENCE_SEQ_CST(CONSUMER);
#endif
                wake_producer()
            :: else
            fi;
#endif
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
#endif
            :: else ->
#ifdef WAKE_WORD_LATE
                seen = memory[WAKE_WORD];
#endif
                futex_wait(CONSUMER, WAKE_WORD, seen)
            fi;
            STORE(CONSUMER, SLEEPING, 0);
            seen = 0
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
