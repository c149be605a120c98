/* weak_memory.pml: the machine that every model here runs on.
 *
 * Spin executes one statement at a time, in order. Processors with weak ordering (ARM64) do not, so:
 *
 * Stores go into the process's buffer and reach memory[] later, in any order that these rules leave:
 *   - stores to one word keep their order;
 *   - a release store (stlr, CAS) goes out when everything before it is out; what stands behind it may pass it;
 *   - nothing behind a release fence goes out before everything in front of it is out;
 *   - FENCE_SEQ_CST waits until the buffer is empty.
 * With -DTSO the buffer is first in, first out and loads keep their order (x86-64).
 *
 * Loads take effect when they are executed. Where a process may execute two loads in either order, its model
 * writes them as two options of one loop, each guarded by what it has to wait for: an acquire load is done before
 * what follows it, an acquire fence after what precedes it. Loads pass the process's own buffered stores, which is
 * how store-buffering shows. No process loads a word of which it has a store under way (the C core keeps private
 * copies of what it publishes), so nothing is forwarded.
 *
 * Memory itself is one (multi-copy atomic): true of x86-64, ARMv8 and RISC-V, not asked for by C11.
 *
 * A model defines WORDS and WRITERS, and DEPTH when 6 pending stores are not enough. It may define ON_STORE(at, value).
 */
#ifndef DEPTH
#define DEPTH 6
#endif
#ifndef ON_STORE
#define ON_STORE(a, v)
#endif

#define FENCE 255

typedef pending_t {
    byte count;
    byte at[DEPTH];
    byte value[DEPTH];
    bit is_release[DEPTH]
};

byte memory[WORDS];
pending_t pending[WRITERS];

inline append(w, a, v, r)
{
    atomic {
        pending[w].count < DEPTH;
        d_step {
            if
            :: a == FENCE && pending[w].count == 0
            :: else ->
                pending[w].at[pending[w].count] = a;
                pending[w].value[pending[w].count] = v;
                pending[w].is_release[pending[w].count] = r;
                pending[w].count++
            fi
        }
    }
}

#define STORE(w, a, v) append(w, a, v, 0)
#define STORE_RELEASE(w, a, v) append(w, a, v, 1)

#define FENCE_RELEASE(w) append(w, FENCE, 0, 0)
#define DRAINED(w) (pending[w].count == 0)
#define FENCE_SEQ_CST(w) DRAINED(w)

/* Takes entry i out of the buffer, and fences that have nothing in front of them any more. */
inline take_out(w, i)
{
    do
    :: i + 1 < pending[w].count ->
        pending[w].at[i] = pending[w].at[i + 1];
        pending[w].value[i] = pending[w].value[i + 1];
        pending[w].is_release[i] = pending[w].is_release[i + 1];
        i++
    :: else -> break
    od;
    pending[w].count--;
    pending[w].at[pending[w].count] = 0;
    pending[w].value[pending[w].count] = 0;
    pending[w].is_release[pending[w].count] = 0
}

/* One of these runs for each buffer, forever. */
proctype drain(byte w)
{
    byte i, j, ready;
end:
    do
    :: atomic {
        pending[w].count > 0 ->
        d_step { /* ready: bit i is set when entry i may go out now */
            ready = 1;
#ifndef TSO
            i = 1;
            do
            :: i < pending[w].count && pending[w].at[i] != FENCE ->
                if
                :: pending[w].is_release[i]
                :: else ->
                    j = 0;
                    do
                    :: j < i && pending[w].at[j] != pending[w].at[i] -> j++
                    :: else -> break
                    od;
                    if
                    :: j == i -> ready = ready | (1 << i)
                    :: else
                    fi
                fi;
                i++
            :: else -> break
            od
#endif
        }
        i = 0;
        do
        :: (ready >> i) & 1 -> break
        :: ready >> (i + 1) -> i++
        od;
        d_step {
            memory[pending[w].at[i]] = pending[w].value[i];
            ON_STORE(pending[w].at[i], pending[w].value[i]);
            take_out(w, i);
            do
            :: pending[w].count > 0 && pending[w].at[0] == FENCE -> i = 0; take_out(w, i)
            :: else -> break
            od;
            i = 0; j = 0; ready = 0
        }
    }
    od
}
