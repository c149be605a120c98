/* shmd_session.h: a client's connection to its driver: Hello, the answer, and again after the connection has ended. No call waits. */
#ifndef SHMD_SESSION_H
#define SHMD_SESSION_H

#include "../shmd_abi.h"

enum {
    SHMD_SESSION_IDLE = 0,          /* it does nothing until the next begin */
    SHMD_SESSION_CONNECTING = 1,    /* it tries, the next time when that is due */
    SHMD_SESSION_SENT = 2,          /* its Hello is sent */
    SHMD_SESSION_OPEN = 3           /* it was welcomed, and the connection has not ended as far as was looked */
};
enum { SHMD_SESSION_WAIT = 0, SHMD_SESSION_DONE = 1 }; /* what a step returns, unless negative */

typedef struct shmd_session {
    uint32_t state;
    int fd;                         /* from SENT on */
    uint64_t device;                /* of that socket: a program that closes all fds gives the number to another file */
    uint64_t inode;
    uint64_t due_ns;                /* CONNECTING: when it tries next */
    uint64_t drawn;                 /* for jitter */
    uint32_t tries;                 /* since the last answer */
    uint32_t folders;               /* how many folders of the instance the last try found */
    uint32_t named;                 /* whose driver it has to be; UINT32_MAX: of anybody whom this process trusts */
    uint32_t peer;                  /* uid of whoever listens there */
    int authority_fd;               /* with a welcome, until somebody takes them; -1: none */
    int control_fd;
    uint32_t fork_generation;
    const char *instance;
    struct shmd_session *next;      /* of those that a forked child closes */
    shmd_hello_t hello;             /* what it says; the serial grows */
    shmd_welcome_t welcome;         /* the last answer */
    int error;                      /* errno of what kept the last try from an answer */
    char trouble[256];              /* and in words; "": nothing */
    char refusal[256];              /* a folder in which this process will not connect: why */
} shmd_session_t;

/* instance, and what is in session->hello, are the caller's to fill; instance lives as long as the session. */
void shmd_session_init(shmd_session_t *session, const char *instance, uint32_t named, uint64_t nonce);
void shmd_session_begin(shmd_session_t *session, uint64_t due_ns); /* says Hello (again); what was open is closed */
/* Goes on as far as that is possible now. DONE: welcomed, with two descriptors, whose owner, kind and access were checked, not what
 * they contain. WAIT: not yet, or nothing to do. Negative: the driver has said no (SHMD_E_REJECTED, its code and reason
 * noted), or what answered is no driver to be trusted (SHMD_E_LAYOUT, SHMD_E_CORRUPT, SHMD_E_SYSTEM); it is IDLE then. */
int shmd_session_step(shmd_session_t *session, uint64_t now_ns);
void shmd_session_ring(shmd_session_t *session); /* wakes the driver, when it is OPEN; leaves no text */
void shmd_session_drop_descriptors(shmd_session_t *session);
void shmd_session_end(shmd_session_t *session); /* closes everything; twice is once, and of a session of zeros nothing */
void shmd_session_forked(void);                 /* in a forked child: closes what its parent has open */

#endif
