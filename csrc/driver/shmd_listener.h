/* shmd_listener.h: what the driver's socket remembers of a connection that has not said Hello yet. The calls are declared in shmd_abi.h. */
#ifndef SHMD_LISTENER_H
#define SHMD_LISTENER_H

#include "../core/shmd_hello.h"
#include "../shmd_internal.h"

#define SHMD_HELLO_PATIENCE_NS 2000000000u /* from accept to Hello */
enum {
    SHMD_LISTEN_BACKLOG = 4096,
    SHMD_USER_SHARE = 8,        /* connections before Hello of one user, other than the driver's own and root */
    SHMD_OTHERS_SHARE = 32      /* of all of those: they never fill the table alone */
};

int shmd_peer_identify(int fd, uint64_t now_ns, shmd_peer_t *out); /* 0, SHMD_E_SYSTEM; out->fd is fd in either case */
int shmd_peer_check(const shmd_peer_t *peer, const shmd_hello_t *hello); /* 0; SHMD_E_INVALID: another process than the one that connected */

#endif
