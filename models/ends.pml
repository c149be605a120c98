/* ends.pml: what ends a wait beside a message or room: a change that the driver makes, and a close by another thread.
 *
 * C: shmd_authority_changed (shmd_event_ring.c); sleep_once, shmd_consumer_ready (shmd_consumer_wait.c); sleep_for_room
 *    (shmd_producer.c); notifier_thread (shmd_notifier.c); shmd_guard_take_over, shmd_guard_try_over (shmd_guarded.c).
 *
 * Property: the run ends: whoever sleeps on the driver's change_word and on its handle's `closing`, without a timeout, gets
 * to know of the driver's last change, and that it is being closed. CHANGES stands for what the driver changes, in order:
 * leases, states of epochs, masks. The driver may be killed between a change and its wake-up; its successor wakes all.
 *
 * mutation NO_NEW_WORD     E2: the driver wakes without a new word
 * mutation WORD_FIRST      E2: the new word may be seen before the change
 * mutation WORD_LATE       E2: the sleeper loads the driver's word after its look
 * mutation NO_LOOK         E2: the sleeper does not look between loading the word and sleeping
 * mutation SILENT_START    a driver that adopts wakes nobody
 * mutation CLOSE_SILENTLY  H2: a closer marks the handle and wakes nobody
 * mutation WAKE_FIRST      H2: a closer wakes before its mark
 * mutation CLOSING_UNSEEN  H2: the sleeper does not sleep on `closing`
 *
 * fault: 41, 42 (Spin: all reorderings of a weak machine)
 */
#define CHANGE_WORD 0
#define CHANGES 1
#define CLOSING 2
#define WORDS 3
#define WRITERS 2
#define DRIVER 0
#define CLOSER 1
#include "weak_memory.pml"

#define LAST 2
bit is_asleep;

inline wake_all(me)
{
    atomic { DRAINED(me) -> is_asleep = 0 }
}

inline changed()
{
#ifdef NO_NEW_WORD
    skip;
#else
    word = memory[CHANGE_WORD] + 1; /* one writer at a time, and its stores are out by then */
    STORE(DRIVER, CHANGE_WORD, word);
#endif
    wake_all(DRIVER)
}

proctype driver()
{
    byte change, word;
    do
    :: change < LAST ->
        change++;
#ifdef WORD_FIRST
        changed();
        STORE(DRIVER, CHANGES, change)
#else
        STORE(DRIVER, CHANGES, change);
        FENCE_RELEASE(DRIVER);
        if
        :: changed()
        :: DRAINED(DRIVER) -> /* killed here; the next one adopts */
#ifndef SILENT_START
            changed()
#endif
        fi
#endif
    :: else -> break
    od
}

proctype closer()
{
#ifdef WAKE_FIRST
    wake_all(CLOSER);
    STORE(CLOSER, CLOSING, 1)
#else
    STORE(CLOSER, CLOSING, 1);
#ifdef CLOSE_SILENTLY
    skip
#else
    wake_all(CLOSER)
#endif
#endif
}

/* Goes on waiting until it has seen both. */
proctype sleeper()
{
    byte seen, found;
    bit closing_seen;
    do
    :: found == LAST && closing_seen -> break
    :: else ->
#ifndef WORD_LATE
        seen = memory[CHANGE_WORD];
#endif
#ifndef NO_LOOK
        found = memory[CHANGES];
#endif
        if
        :: found < LAST || !memory[CLOSING] ->
#ifdef WORD_LATE
            seen = memory[CHANGE_WORD];
#endif
            atomic { /* futex_waitv: sleeps when no word is another than was seen */
                if
#ifdef CLOSING_UNSEEN
                :: memory[CHANGE_WORD] == seen -> is_asleep = 1
#else
                :: memory[CHANGE_WORD] == seen && memory[CLOSING] == closing_seen -> is_asleep = 1
#endif
                :: else
                fi
            };
            !is_asleep
        :: else
        fi;
        closing_seen = memory[CLOSING];
#ifdef NO_LOOK
        found = memory[CHANGES];
#endif
        seen = 0
    od
}

init
{
    atomic { run drain(DRIVER); run drain(CLOSER); run driver(); run closer(); run sleeper() }
}
