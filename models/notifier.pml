/* notifier.pml: one sleeper in two threads: a consumer whose fd another thread makes readable.
 *
 * C: notifier_thread, announce, look, signal_fd, clear_fd, kick, copy_seen, shmd_consumer_watch, shmd_consumer_settle,
 *    shmd_watch_pause, shmd_watch_resume (shmd_notifier.c); shmd_consumer_announce, sleep_once (shmd_consumer_wait.c);
 *    shmd_producer_wake (shmd_producer.c).
 *
 * Property: the run ends: the consumer, which reads only when its fd is readable (or sleeps in a call of its own now and
 * then, PAUSED), reads every message of both epochs, although no sleep has a timeout: no signal is lost. Its fd is
 * cleared only when there is nothing to read. What the mutex guards is private memory of one process; the mutex itself
 * is a word like any other, given back with release. One word, COMMITTED, stands for an epoch's commit words in order.
 *
 * mutation NO_PRODUCER_FENCE  W1: the flag is looked at while the commit is still on the way
 * mutation NO_THREAD_FENCE    W3: the thread looks at the slots while its flag is still on the way
 * mutation NO_CONSUMER_FENCE  W3: the consumer looks once more while its flag is still on the way
 * mutation NO_THREAD_LOOK     W3: the thread announces itself and sleeps without a look
 * mutation NO_SECOND_LOOK     W3: the consumer clears its fd without a look after its announcement
 * mutation WORD_LATE          W3: the thread loads the word to sleep on after it has looked
 * mutation ONLY_ARMED         W3: the thread sleeps on the words of armed watches only
 * mutation CLEAR_UNLOCKED     the fd is cleared after the mutex was given back
 * mutation NO_KICK            W4: a word that the thread does not sleep on is not made known to it
 * mutation KICK_FIRST         W4: the kick comes before the change
 * mutation KICK_WORD_LATE     W4: the thread loads the kick word after it has made its set
 * mutation STALE_SET          W4: the word of the next epoch is taken for the one slept on
 * mutation NOT_SETTLED        the consumer's own wait ends without arming the watch again
 *
 * fault: 41, 42 (Spin: all reorderings of a weak machine)
 */
#define EPOCHS 2
#define MESSAGES(epoch) ((epoch) == 0 -> 2 : 1)
#define COMMITTED(e) (e)
#define WAKE_WORD(e) (EPOCHS + (e))
#define SLEEPING(e) (2 * EPOCHS + (e))
#define KICK (3 * EPOCHS)
#define MUTEX (3 * EPOCHS + 1)
#define WORDS (3 * EPOCHS + 2)
#define WRITERS 3
#define PRODUCER 0
#define CONSUMER 1
#define THREAD 2
#include "weak_memory.pml"

#define FLAG(word) ((word) * 2 + 1)
#define LOCK(me) atomic { memory[MUTEX] == 0 -> memory[MUTEX] = 1 }
#define UNLOCK(me) STORE_RELEASE(me, MUTEX, 0)
#define NONE 255

mtype = { READABLE, ARMED, PAUSED };

/* The watch and the notifier, under the mutex. */
mtype state = READABLE;
bit is_watched, is_slept_on;
byte seen_epoch, seen_position;
bit is_readable; /* the fd */

/* The kernel's: on which epoch's word each sleeps (the thread on the kick word besides); NONE: it is awake. */
byte asleep_on[WRITERS] = NONE;
bit is_kickable; /* the thread is in futex_waitv */

inline signal_fd(me)
{
    if
    :: state != READABLE ->
        state = READABLE;
        is_readable = 1;
        STORE(me, SLEEPING(seen_epoch), 0)
    :: else
    fi
}

proctype producer()
{
    byte epoch, sent, wake_word;
    do
    :: epoch < EPOCHS ->
        sent++;
        STORE_RELEASE(PRODUCER, COMMITTED(epoch), sent);
#ifndef NO_PRODUCER_FENCE
        FENCE_SEQ_CST(PRODUCER);
#endif
        if
        :: memory[SLEEPING(epoch)] == FLAG(wake_word) ->
            wake_word++;
            STORE_RELEASE(PRODUCER, WAKE_WORD(epoch), wake_word);
            atomic {
                DRAINED(PRODUCER) -> /* futex_wake: everybody who sleeps on this word */
                if
                :: asleep_on[CONSUMER] == epoch -> asleep_on[CONSUMER] = NONE
                :: else
                fi;
                if
                :: is_kickable && asleep_on[THREAD] == epoch -> asleep_on[THREAD] = NONE; is_kickable = 0
                :: else
                fi
            }
        :: else
        fi;
        if
        :: sent == MESSAGES(epoch) -> atomic { epoch++; sent = 0; wake_word = 0 }
        :: else
        fi
    :: else -> break
    od
}

inline do_kick()
{
    kick_word++;
    STORE_RELEASE(CONSUMER, KICK, kick_word);
    atomic { DRAINED(CONSUMER) -> is_kickable = 0; asleep_on[THREAD] = NONE }
}

/* Nothing is left: clears the fd, or leaves it readable because there is something after all. */
inline settle()
{
    is_ready = memory[COMMITTED(epoch)] > position;
#ifdef KICK_FIRST
    if
    :: !is_slept_on || seen_epoch != epoch -> do_kick()
    :: else
    fi;
#endif
    LOCK(CONSUMER);
    atomic {
        if
        :: seen_epoch != epoch ->
            seen_epoch = epoch;
#ifndef STALE_SET
            is_slept_on = 0
#endif
        :: else
        fi;
        seen_position = position
    };
    if
    :: !is_ready ->
        seen = memory[WAKE_WORD(epoch)];
        STORE_RELEASE(CONSUMER, SLEEPING(epoch), FLAG(seen));
#ifndef NO_CONSUMER_FENCE
        FENCE_SEQ_CST(CONSUMER);
#endif
#ifndef NO_SECOND_LOOK
        is_ready = memory[COMMITTED(epoch)] > position
#endif
    :: else
    fi;
    if
    :: is_ready -> signal_fd(CONSUMER)
    :: else ->
        state = ARMED;
#ifndef CLEAR_UNLOCKED
        is_readable = 0;
#endif
#if !defined(NO_KICK) && !defined(KICK_FIRST)
        if
        :: !is_slept_on -> do_kick()
        :: else
        fi
#endif
    fi;
    UNLOCK(CONSUMER);
#ifdef CLEAR_UNLOCKED
    if
    :: !is_ready -> is_readable = 0
    :: else
    fi;
#endif
    atomic { is_ready = 0; seen = 0 }
}

/* sleep_once, in a call of the owner: its watch is paused meanwhile. */
inline wait_in_a_call()
{
    LOCK(CONSUMER);
    if
    :: state == ARMED -> state = PAUSED
    :: else
    fi;
    UNLOCK(CONSUMER);
    seen = memory[WAKE_WORD(epoch)];
    STORE_RELEASE(CONSUMER, SLEEPING(epoch), FLAG(seen));
    FENCE_SEQ_CST(CONSUMER);
    if
    :: memory[COMMITTED(epoch)] > position
    :: else ->
        atomic {
            if
            :: memory[WAKE_WORD(epoch)] == seen -> asleep_on[CONSUMER] = epoch
            :: else
            fi
        };
        asleep_on[CONSUMER] == NONE
    fi;
    STORE(CONSUMER, SLEEPING(epoch), 0);
    seen = 0;
#ifndef NOT_SETTLED
    settle()
#endif
}

proctype consumer()
{
    byte epoch, position, seen, kick_word;
    bit is_ready, has_waited;
    LOCK(CONSUMER);
    atomic { is_watched = 1; is_readable = 1 };
    UNLOCK(CONSUMER);
    do
    :: epoch < EPOCHS ->
        if
        :: memory[COMMITTED(epoch)] > position ->
            position++;
            if
            :: position == MESSAGES(epoch) -> atomic { epoch++; position = 0 }
            :: else
            fi
        :: else ->
            settle();
            if
            :: is_readable /* select returns */
            :: !has_waited -> /* once: it keeps the state space small */
                has_waited = 1;
                wait_in_a_call();
                if
                :: skip
                :: skip -> is_readable /* the call said that there is something, or timed out, and select is asked all the same */
                fi
            fi
        fi
    :: else -> break
    od
}

proctype thread()
{
    byte kick_seen, word_seen, on;
    do
    ::
#ifndef KICK_WORD_LATE
        kick_seen = memory[KICK];
#endif
        LOCK(THREAD);
        on = NONE;
        if
        :: is_watched ->
            on = seen_epoch;
#ifndef WORD_LATE
            word_seen = memory[WAKE_WORD(on)];
#endif
            is_slept_on = 1;
            if
            :: state == ARMED ->
#ifdef WORD_LATE
                STORE_RELEASE(THREAD, SLEEPING(on), FLAG(memory[WAKE_WORD(on)]));
#else
                STORE_RELEASE(THREAD, SLEEPING(on), FLAG(word_seen));
#endif
#ifndef NO_THREAD_FENCE
                FENCE_SEQ_CST(THREAD);
#endif
#ifndef NO_THREAD_LOOK
                if
                :: memory[COMMITTED(on)] > seen_position -> signal_fd(THREAD)
                :: else
                fi
#endif
            :: else ->
#ifdef ONLY_ARMED
                on = NONE
#endif
            fi
        :: else
        fi;
        UNLOCK(THREAD);
#ifdef KICK_WORD_LATE
        kick_seen = memory[KICK];
#endif
#ifdef WORD_LATE
        if
        :: on != NONE -> word_seen = memory[WAKE_WORD(on)]
        :: else
        fi;
#endif
        atomic { /* futex_waitv: sleeps when no word of the set is another than was seen */
            if
            :: memory[KICK] == kick_seen && (on == NONE || memory[WAKE_WORD(on)] == word_seen) ->
                asleep_on[THREAD] = on;
                is_kickable = 1
            :: else
            fi
        };
end:    atomic { !is_kickable -> kick_seen = 0; word_seen = 0; on = NONE }
    od
}

init
{
    atomic { run drain(PRODUCER); run drain(CONSUMER); run drain(THREAD); run producer(); run consumer(); run thread() }
}
