/* shards.pml: several gated consumers share a stream, each message is one's.
 *
 * C: shmd_shard_next (shmd_internal.h); slowest (shmd_producer.c); shmd_poll_inline, shmd_advance_inline (shmdriver.h);
 *    pass_others, shmd_consumer_before_idle (shmd_consumer.c); release_to, took_in_place (shmd_guarded_consumer.c).
 *
 * Property: every message is handed out once, whole, by the shard that it belongs to, in order; no gate lets the producer
 * overwrite what its shard has not read, or holds in place, none stands past what is committed (the driver would revoke it); and nobody
 * waits forever, although each gate has to pass the messages of the others, also with fewer slots than shards and when a
 * shard has read its last. Batches: the head is stored with every message or with a later one.
 *
 * also SHARDS=3 MESSAGES=4
 *
 * mutation SAME_START      every shard begins at the first message
 * mutation GATE_AHEAD      the gate jumps to the shard's next message, over others' that are not committed
 * mutation NEVER_PASSES    an idle shard leaves its gate behind its own last message
 * mutation PASSES_ITS_OWN  an idle shard's gate follows the head, past its own next message
 * mutation HOLD_STALE      an idle shard's gate passes what was handed out in place since its holder last told its hold
 * mutation HEAD_RELAXED    P3: the head may be seen before the commits under it
 * mutation GATE_RELAXED    C2: the gate may pass the loads of the payload in front of it
 * mutation ONE_GATE        the producer looks at one shard's gate only
 *
 * fault: 42, 43 (Spin: all reorderings of a weak machine; a view held while its shard idles)
 */
#define SLOTS 2
#ifndef SHARDS
#define SHARDS 2
#endif
#ifndef MESSAGES
#define MESSAGES 5
#endif
#define COMMIT(s) ((s) % SLOTS)
#define PAYLOAD(s) (SLOTS + (s) % SLOTS)
#define HEAD (2 * SLOTS)
#define GATE(k) (2 * SLOTS + 1 + (k))
#define WORDS (2 * SLOTS + 1 + SHARDS)
#define WRITERS (1 + SHARDS)
#define PRODUCER SHARDS
#define LEAST(a, b) ((a) < (b) -> (a) : (b))
#define NOTHING 255
#ifdef HOLD_STALE
#define KNOWN_HOLD NOTHING
#else
#define KNOWN_HOLD hold
#endif
/* Seen by everybody: a commit as it gets to memory, and a gate that must not be past the last of them. */
#define ON_STORE(at, value) \
    if \
    :: at < SLOTS && value % 2 == 1 -> committed = value / 2 + 1 \
    :: at > HEAD -> assert(value <= committed) \
    :: else \
    fi
byte committed;
#include "weak_memory.pml"

bit is_handed_out[MESSAGES];

proctype producer()
{
    byte seq, least, k;
    do
    :: seq < MESSAGES ->
        do
        :: seq >= least + SLOTS ->
            STORE_RELEASE(PRODUCER, HEAD, seq);
            FENCE_SEQ_CST(PRODUCER);
#ifdef ONE_GATE
            least = memory[GATE(0)];
#else
            least = seq;
            k = 0;
            do
            :: k < SHARDS -> atomic { least = LEAST(least, memory[GATE(k)]); k++ }
            :: else -> break
            od;
#endif
            if
            :: seq >= least + SLOTS -> /* no room: wait until a gate that is behind has moved, look anew */
                k = 0;
                do
                :: k < SHARDS - 1 && memory[GATE(k)] > least -> k++
                :: else -> break
                od;
                memory[GATE(k)] > least
            :: else
            fi;
            k = 0
        :: else -> break
        od;
        STORE(PRODUCER, COMMIT(seq), 2 * seq);
        FENCE_RELEASE(PRODUCER);
        STORE(PRODUCER, PAYLOAD(seq), seq + 1);
        STORE_RELEASE(PRODUCER, COMMIT(seq), 2 * seq + 1);
        seq++;
        if
#ifdef HEAD_RELAXED
        :: STORE(PRODUCER, HEAD, seq)
#else
        :: STORE_RELEASE(PRODUCER, HEAD, seq)
#endif
        :: seq < MESSAGES /* a batch: head once a call */
        fi
    :: else -> break
    od
}

proctype shard(byte me)
{
    byte position, read, gate, commit, payload, hold = NOTHING; /* hold: what it handed out last is in use in place */
    bit is_stored;
#ifndef SAME_START
    position = me;
#endif
    do
    :: hold != NOTHING -> /* its user is done: the next call says so */
        payload = memory[PAYLOAD(hold)];
        d_step {
            assert(payload == hold + 1);
            hold = NOTHING;
            payload = 0;
            gate = (gate > read -> gate : read)
        };
        STORE_RELEASE(me, GATE(me), gate)
    :: gate < MESSAGES ->
        commit = memory[COMMIT(position)];
        assert(commit <= 2 * position + 1); /* larger: its slot was overwritten before it was read */
        if
        :: position < MESSAGES && commit == 2 * position + 1 ->
#ifdef GATE_RELAXED
            if
            :: is_stored = 1; STORE(me, GATE(me), position + 1)
            :: skip
            fi;
#endif
            payload = memory[PAYLOAD(position)];
            d_step {
                assert(payload == position + 1);
                assert(!is_handed_out[position]);
                is_handed_out[position] = 1;
                read = position + 1; /* its position is further: slack */
                commit = 0;
                payload = 0
            };
            if
            :: me == 0 && hold == NOTHING -> hold = position /* one shard holds: it keeps the state space small */
            :: skip
            fi;
            gate = LEAST(read, hold);
            position = position + SHARDS;
#ifdef GATE_AHEAD
            gate = position;
#endif
            if
            :: is_stored -> is_stored = 0
            :: else -> STORE_RELEASE(me, GATE(me), gate)
            fi
        :: else ->
            commit = 0;
#ifdef NEVER_PASSES
            memory[COMMIT(position)] >= 2 * position + 1
#else
            atomic { /* one load of the head, and what follows from it */
                if
#ifdef PASSES_ITS_OWN
                :: memory[HEAD] > gate -> gate = memory[HEAD]
#else
                :: LEAST(LEAST(position, KNOWN_HOLD), memory[HEAD]) > gate -> gate = LEAST(LEAST(position, KNOWN_HOLD), memory[HEAD])
#endif
                :: position < MESSAGES && memory[COMMIT(position)] >= 2 * position + 1 -> goto again
                :: hold != NOTHING -> goto again
                fi
            };
            STORE_RELEASE(me, GATE(me), gate);
again:      skip
#endif
        fi
    :: else -> break
    od
}

init
{
    byte k;
    atomic {
        run drain(PRODUCER);
        run producer();
        do
        :: k < SHARDS -> run drain(k); run shard(k); k++
        :: else -> break
        od
    }
}
