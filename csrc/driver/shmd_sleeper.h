/* shmd_sleeper.h: where the driver sleeps: one epoll set of all that may wake it (driver/shmd_sleeper.c). Internal.
 *
 * One thread, the driver's, calls all functions but shmd_sleeper_wake. In a forked child each returns SHMD_E_FORKED and does
 * nothing, because the epoll set and the eventfd are the parent's. */
#ifndef SHMD_SLEEPER_H
#define SHMD_SLEEPER_H

#include "../shmd_abi.h"

/* What a descriptor is, and so what its readiness means. */
enum {
    SHMD_SLEEPER_WAKE = 0,      /* not a descriptor of the caller's: shmd_sleeper_wake was called */
    SHMD_SLEEPER_READ = 1,      /* a listener, a connection before its Hello: the caller reads, or it is told again */
    SHMD_SLEEPER_DOORBELL = 2,  /* a client's connection: its bytes only wake, and are read here, at most `budget` messages until ... */
    SHMD_SLEEPER_SIGNAL = 3,    /* the end of a socket pair into which signal handlers write: its bytes are read here */
    SHMD_SLEEPER_DEATH = 4      /* a pidfd: told once */
};

/* shmd_wakeup.what */
enum {
    SHMD_WOKEN_READABLE = 1,    /* of SHMD_SLEEPER_DOORBELL: it has rung */
    SHMD_WOKEN_ENDED = 2,       /* the other side is closed, or the socket failed: no longer watched. A hint to look, no proof */
    SHMD_WOKEN_DISARMED = 4     /* its budget is used up: not watched until shmd_sleeper_arm */
};

typedef struct shmd_wakeup {
    uint64_t key;               /* the caller's */
    uint32_t kind;              /* SHMD_SLEEPER_* */
    uint32_t what;              /* SHMD_WOKEN_* */
} shmd_wakeup_t;

typedef struct shmd_sleeper shmd_sleeper;

shmd_sleeper *shmd_sleeper_new(uint32_t budget); /* of doorbells for each client between two calls of shmd_sleeper_arm. NULL with a text */
void shmd_sleeper_free(shmd_sleeper *sleeper);   /* closes its own two descriptors; those that were added stay the caller's */
void shmd_sleeper_close_in_child(shmd_sleeper *sleeper);
    /* For a handler that runs in each forked child: closes the child's copies of its own two descriptors, and takes nothing out
       of the set, which is the parent's. Does nothing in the parent. */
int shmd_sleeper_add(shmd_sleeper *sleeper, int fd, uint32_t kind, uint64_t key);
    /* Also of one that is watched: its kind and key change, its budget is new. 0, SHMD_E_INVALID, SHMD_E_NO_MEMORY, SHMD_E_SYSTEM */
int shmd_sleeper_remove(shmd_sleeper *sleeper, int fd);
    /* Before the caller closes it. While a child has a copy, the kernel goes on watching a descriptor that was only closed. */
int shmd_sleeper_disarm(shmd_sleeper *sleeper, int fd); /* not watched until shmd_sleeper_arm: a listener whose accepts are used up */
int shmd_sleeper_arm(shmd_sleeper *sleeper);
    /* At each tick that time brings, not after each wake-up: watches again what was disarmed, with a new budget for all. What
       came meanwhile is told by the next wait. */
int shmd_sleeper_wait(shmd_sleeper *sleeper, shmd_rest_t *rest, uint64_t now_ns, uint64_t until_ns, shmd_wakeup_t *out, uint32_t limit);
    /* Sleeps until something is ready, and says what, at most `limit` of it (the next call says the rest). 0: until_ns has come
       (UINT64_MAX: never), or a signal, or a tick is due. With `rest`, what a lease check would look at is looked at whenever
       that is due (shmd_driver_rests), and only a look that finds something ends the sleep. As long as a descriptor is
       disarmed, the tick that arms it again comes in place of that look. SHMD_E_SYSTEM */
void shmd_sleeper_wake(const shmd_sleeper *sleeper);
    /* From any thread and any signal handler: ends the present wait, or the next one */

#endif
