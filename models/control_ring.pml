/* control_ring.pml: two clients send requests to the driver; claimers stall, die, and write late.
 *
 * C: claim, shmd_control_send, shmd_control_poll, take, shmd_control_advance, shmd_control_skip, shmd_control_release,
 *    shmd_control_sweep, shmd_control_reader_new (shmd_control_ring.c); ControlRing.sweep (driver/control.py).
 *
 * Property: each request of a client that lives is read exactly once, whole, or its claimer is told that it was passed
 * over (and sends it again); one of a client that died at most once. Nobody claims a slot while its former claimer
 * may still write into it, and no late write reaches a slot that somebody else has claimed. Everybody gets done: no
 * slot is lost. Every poll of the driver ends. The driver may die once between freeing a slot and publishing its cursor.
 *
 * also SKIPS=2 FIRST_SENDS=1
 *
 * mutation COMMIT_RELAXED     K2: the commit may pass the request's own bytes
 * mutation NO_COMMIT_ACQUIRE  K2: the driver may copy before it sees the commit
 * mutation COMMIT_STORE       a commit that is a store, not a CAS: a client that was passed over does not learn it
 * mutation SKIP_STORE         a skip that is a store, not a CAS: it may undo a commit
 * mutation FREE_EARLY         K1: the slot is free and the cursor past it before it is copied
 * mutation REUSE_UNPROVED     a slot that is skipped without proof of death is free at once
 * mutation RELEASED_RELAXED   a late claimer says that it is done while its bytes are on the way
 * mutation NO_CURSOR_REPAIR   a new driver believes the cursor that it finds
 * mutation SWEEP_FORGETS      a list of quarantined slots that is taken after the skip misses one that was released meanwhile
 * mutation ENDLESS_POLL       a poll that passes over slots that are set aside without an end
 *
 * fault: 27, 42 (Spin: all reorderings of a weak machine)
 */
#define SLOTS 2
/* Client 1 sends two (or one) and lives, client 2 sends one and may die anywhere. */
#ifndef FIRST_SENDS
#define FIRST_SENDS 2
#endif
#define REQUESTS(me) ((me) == 1 -> FIRST_SENDS : 1)
#ifndef SKIPS
#define SKIPS 1
#endif
#define TURN(p) ((p) % SLOTS)
#define REQUEST(p) (SLOTS + (p) % SLOTS) /* one word: its tag says whose and which */
#define CURSOR (2 * SLOTS)
#define WORDS (2 * SLOTS + 1)
#define DEPTH 3
#define WRITERS 3 /* the driver is 0, the clients 1 and 2 */
#define DRIVER 0

#define FREE 0
#define CLAIMED 1
#define COMMITTED 2
#define QUARANTINED 3
#define RELEASED 4
#define WORD(p, who, phase) (((p) / SLOTS) * 32 + (who) * 8 + phase)
#define PHASE(turn) ((turn) & 7)
#define WHO(turn) (((turn) >> 3) & 3)
#define LAP(turn) ((turn) >> 5)

#define TAG(who, number) ((who) * 4 + (number))
/* Writes of a request carry its tag: they may only reach a slot that its sender claimed last. */
#define ON_STORE(a, v) assert(a < SLOTS || a >= 2 * SLOTS || owner[a % SLOTS] == (v) / 4)

byte owner[SLOTS];     /* ghost: who claimed it last */
byte scribbler[SLOTS]; /* ghost: who may still write into it, 0 nobody */
bit was_read[12];      /* ghost, by tag */
bit is_dead[3];
bit is_finished[3];
#include "weak_memory.pml"

#ifdef COMMIT_RELAXED
#define MAY_COMMIT(me) 1
#else
#define MAY_COMMIT(me) DRAINED(me)
#endif
#define DIES if :: me == 2 -> is_dead[me] = 1; goto dead :: skip fi
#define PROVED_DEAD(who) (is_dead[who] && DRAINED(who))
#define IS_FREE(p) (memory[TURN(p)] == WORD(p, 0, FREE))

proctype client(byte me)
{
    byte number, cursor, at, tag;
    bit is_claimed;
    do
    :: number < REQUESTS(me) ->
        tag = TAG(me, number);
        do
        :: !is_claimed ->
            cursor = memory[CURSOR];
            if
            :: at = cursor
            :: at = cursor + 1 /* the tail is a hint */
            fi;
            do
            :: at - cursor < SLOTS ->
                atomic {
                    if
                    :: IS_FREE(at) ->
                        memory[TURN(at)] = WORD(at, me, CLAIMED);
                        assert(scribbler[at % SLOTS] == 0 || PROVED_DEAD(scribbler[at % SLOTS]));
                        scribbler[at % SLOTS] = me;
                        owner[at % SLOTS] = me;
                        is_claimed = 1;
                        break
                    :: else -> at++
                    fi
                }
            :: else ->
                memory[CURSOR] != cursor || IS_FREE(cursor) || IS_FREE(cursor + 1); /* full: wait, look anew */
                break
            od
        :: else -> break
        od;
        DIES;
        STORE(me, REQUEST(at), tag);
        DIES;
        atomic { /* the commit's CAS: release when it succeeds, nothing when it fails */
            if
#ifdef COMMIT_STORE
            :: DRAINED(me) ->
#else
            :: MAY_COMMIT(me) && memory[TURN(at)] == WORD(at, me, CLAIMED) ->
#endif
                memory[TURN(at)] = WORD(at, me, COMMITTED);
                number++;
                scribbler[at % SLOTS] = 0;
                is_claimed = 0
#ifndef COMMIT_STORE
            :: memory[TURN(at)] != WORD(at, me, CLAIMED) -> skip /* passed over */
#endif
            fi
        }
        if
        :: is_claimed ->
#ifndef RELEASED_RELAXED
            DRAINED(me);
#endif
            atomic {
                is_claimed = 0;
                if
                :: memory[TURN(at)] == WORD(at, me, QUARANTINED) -> memory[TURN(at)] = WORD(at, me, RELEASED)
                :: else
                fi;
                if
                :: scribbler[at % SLOTS] == me -> scribbler[at % SLOTS] = 0
                :: else
                fi
            }
        :: else
        fi;
        atomic { cursor = 0; at = 0; tag = 0 }
    :: else -> break
    od;
    is_finished[me] = 1;
dead:
    skip
}

#define IS_SET_ASIDE(p) (PHASE(memory[TURN(p)]) >= QUARANTINED)
#define IS_WORK(p) (LAP(memory[TURN(p)]) == (p) / SLOTS && (PHASE(memory[TURN(p)]) == CLAIMED || PHASE(memory[TURN(p)]) == COMMITTED))
#define MAY_FREE(s) (PHASE(memory[s]) == RELEASED || (PHASE(memory[s]) == QUARANTINED && PROVED_DEAD(WHO(memory[s]))))
#define NEXT_USE(s) (cursor + (s + SLOTS - cursor % SLOTS) % SLOTS)
#ifdef SWEEP_FORGETS
#define IS_LISTED(s) (listed[s] || (PHASE(memory[s]) == RELEASED && listed[1 - (s)]))
#else
#define IS_LISTED(s) 1
#endif
#define MAY_SWEEP(s) (MAY_FREE(s) && IS_LISTED(s))
#define ANY_TO_SWEEP (MAY_SWEEP(0) || MAY_SWEEP(1))

inline step()
{
    cursor++;
    STORE_RELEASE(DRIVER, CURSOR, cursor)
}

/* Freed, cursor not yet published: a driver that dies here leaves the slot with the next lap. */
inline freed()
{
    if
    :: step()
    :: !has_died ->
        has_died = 1;
        DRAINED(DRIVER);
        atomic {
            cursor = memory[CURSOR];
#ifndef NO_CURSOR_REPAIR
            do
            :: memory[TURN(cursor)] == WORD(cursor + SLOTS, 0, FREE) -> cursor++
            :: else -> break
            od
#endif
        }
        STORE_RELEASE(DRIVER, CURSOR, cursor)
    fi
}

inline accept()
{
    atomic {
        assert(request / 4 == WHO(turn)); /* of the one that committed it */
        assert(!was_read[request]);
        was_read[request] = 1
    }
}

inline skip_claim(phase_or_free)
{
    atomic {
        skips = skips + 1;
        if
#ifdef SKIP_STORE
        :: memory[TURN(cursor)] = phase_or_free; turn = 255
#else
        :: memory[TURN(cursor)] == turn -> memory[TURN(cursor)] = phase_or_free; turn = 255
        :: else /* committed at this very moment: then it is read */
#endif
        fi
    }
}

inline list_quarantined()
{
#ifdef SWEEP_FORGETS
    atomic {
        listed[0] = PHASE(memory[0]) == QUARANTINED;
        listed[1] = PHASE(memory[1]) == QUARANTINED
    }
#else
    skip
#endif
}

proctype driver()
{
    byte cursor, turn, request, skips, passed, slot;
    bit has_died, is_copied;
#ifdef SWEEP_FORGETS
    bit listed[SLOTS];
#endif
end:
    do
    :: DRAINED(DRIVER) ->
#if defined(NO_COMMIT_ACQUIRE) && !defined(TSO)
        if
        :: request = memory[REQUEST(cursor)]; is_copied = 1
        :: skip
        fi;
#endif
        turn = memory[TURN(cursor)];
        if
        :: PHASE(turn) >= QUARANTINED ->
            passed++;
#ifdef ENDLESS_POLL
            assert(passed <= SLOTS);
            step();
#else
            if
            :: passed < SLOTS -> step()
            :: else -> passed = 0; /* all are set aside: this poll ends here; the next one comes when one is freed */
endaside:       !IS_SET_ASIDE(0) || !IS_SET_ASIDE(1) || ANY_TO_SWEEP
            fi
#endif
        :: turn == WORD(cursor, 0, FREE) ->
            passed = 0;
            if
            :: IS_WORK(cursor + 1) ->
                atomic {
                    if
                    :: memory[TURN(cursor)] == turn -> memory[TURN(cursor)] = WORD(cursor + SLOTS, 0, FREE); turn = 255
                    :: else
                    fi
                }
                if
                :: turn == 255 -> freed()
                :: else
                fi
            :: else ->
endidle:        memory[TURN(cursor)] != turn || IS_WORK(cursor + 1) || ANY_TO_SWEEP
            fi
        :: LAP(turn) == cursor / SLOTS && PHASE(turn) == COMMITTED ->
            passed = 0;
#ifdef FREE_EARLY
            STORE_RELEASE(DRIVER, TURN(cursor), WORD(cursor + SLOTS, 0, FREE));
            STORE_RELEASE(DRIVER, CURSOR, cursor + 1);
#endif
            if
            :: !is_copied -> request = memory[REQUEST(cursor)]
            :: else
            fi;
            accept();
#ifndef FREE_EARLY
            STORE_RELEASE(DRIVER, TURN(cursor), WORD(cursor + SLOTS, 0, FREE));
#endif
            freed()
        :: LAP(turn) == cursor / SLOTS && PHASE(turn) == CLAIMED ->
            passed = 0;
            if
            :: memory[TURN(cursor)] != turn || ANY_TO_SWEEP
            :: PROVED_DEAD(WHO(turn)) -> skip_claim(WORD(cursor + SLOTS, 0, FREE)); skips--
            :: skips < SKIPS -> /* silent for too long */
#ifdef REUSE_UNPROVED
                skip_claim(WORD(cursor + SLOTS, 0, FREE))
#else
                skip_claim(WORD(cursor, WHO(turn), QUARANTINED))
#endif
            fi;
            if
            :: turn == 255 -> step(); list_quarantined()
            :: else
            fi
        :: else -> assert(false) /* no turn of this lap */
        fi;
        atomic { turn = 0; request = 0; is_copied = 0 }
        /* A tick's sweep, or none this time. */
        slot = 0;
        do
        :: slot < SLOTS && DRAINED(DRIVER) && MAY_SWEEP(slot) ->
            STORE_RELEASE(DRIVER, TURN(slot), WORD(NEXT_USE(slot), 0, FREE));
            slot++
        :: slot < SLOTS && !MAY_SWEEP(slot) -> slot++
        :: slot == SLOTS -> slot = 0; break
        od;
#ifdef SWEEP_FORGETS
        listed[0] = listed[0] && PHASE(memory[0]) == QUARANTINED;
        listed[1] = listed[1] && PHASE(memory[1]) == QUARANTINED
#endif
    od
}

init
{
    atomic { run drain(DRIVER); run drain(1); run drain(2); run driver(); run client(1); run client(2) }
    timeout;
    assert(is_finished[1] && was_read[TAG(1, 0)] && (FIRST_SENDS == 1 || was_read[TAG(1, 1)]));
    assert(is_dead[2] || (is_finished[2] && was_read[TAG(2, 0)]))
}
