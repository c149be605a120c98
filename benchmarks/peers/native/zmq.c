/* zmq.c: libzmq, PUSH and PULL over its ipc transport, in the abstract socket namespace. */
#include <zmq.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "peer.h"

size_t peer_shared_bytes(void) { return sizeof(int); }
void peer_make(void *shared) { *(int *)shared = (int)getpid(); }

static int must(int rc, const char *what)
{
    if (rc < 0) {
        fprintf(stderr, "%s: %s\n", what, zmq_strerror(zmq_errno()));
        exit(2);
    }
    return rc;
}

void *peer_open(void *shared, int which, int is_producer)
{
    char address[64];
    (void)snprintf(address, sizeof address, "ipc://@shmdriver-bench-%d-%d", *(int *)shared, which);
    void *socket = zmq_socket(zmq_ctx_new(), is_producer ? ZMQ_PUSH : ZMQ_PULL);
    must(is_producer ? zmq_bind(socket, address) : zmq_connect(socket, address), address);
    return socket;
}

static uint64_t done(int rc, const char *what)
{
    if (rc < 0 && zmq_errno() == EAGAIN)
        return 0;
    must(rc, what);
    return 1;
}

uint64_t peer_push(void *queue, const peer_message_t *from, uint64_t n)
{
    uint64_t sent = 0;
    while (sent < n && done(zmq_send(queue, from + sent, sizeof *from, ZMQ_DONTWAIT), "zmq_send"))
        sent++;
    return sent;
}

uint64_t peer_pop(void *queue, peer_message_t *to, uint64_t n)
{
    uint64_t got = 0;
    while (got < n && done(zmq_recv(queue, to + got, sizeof *to, ZMQ_DONTWAIT), "zmq_recv"))
        got++;
    return got;
}

void peer_close(void *queue) { (void)queue; } /* the system closes its sockets */
