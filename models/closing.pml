/* closing.pml: two threads close one handle while a third only looks at what it is mapped to, and a fourth is inside a call.
 *
 * C: shmd_guard_take_over, shmd_guard_closed, shmd_guard_enter, shmd_look_begin, shmd_await_lookers (shmd_internal.h).
 *
 * Property: nothing is unmapped while somebody looks at it or is inside, and nobody looks at it afterwards; it is unmapped at
 * most once. A closer that loses its patience changes nothing for the others: as long as one of them closes, nobody new
 * begins to look. When all of them gave up, the handle is open as before. No closer, looker or caller waits forever
 * for another that has left.
 *
 * mutation REOPENS          a closer that gives up opens the handle again, also for the closer that still waits
 * mutation NO_LOOK_FENCE    H1: who looks loads `closing` while its count is still on the way
 * mutation NO_CLOSE_FENCE   H1: the closer loads the count while its mark is still on the way
 * mutation MARK_LATE        the closer marks the handle after it has waited for those that look
 * mutation LOOK_RELAXED     H1: the end of a look may pass the look
 * mutation NO_CLOSED_LOOK   the second closer does not look whether the handle is closed already
 * mutation KEEPS_MARK       a closer that gives up leaves its mark
 *
 * fault: 46 (Spin: two closers, one looker, one that stays; a weak machine)
 */
#define CLOSING 0
#define LOOKERS 1
#define BUSY 2
#define MAPPED 3
#define WORDS 4
#define WRITERS 4
#define CLOSED 8
#define LOOKER 2
#define CALLER 3
#include "weak_memory.pml"
