/* shmd_held.c: descriptors whose locks say that this process drives. A lock belongs to the open file description, which a fork
 * shares: a child that kept one would hold the instance, or show life, after its driver has died. So the fork handler closes them,
 * also when a library forks that knows nothing of this one.
 *
 * The list is whole at each moment, for a child that was forked while a thread changes it. Its blocks are never freed. */
#include "../shmd_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

enum { PER_BLOCK = 32 };

typedef struct block { struct block *next; uint32_t fds[PER_BLOCK]; } block_t; /* + 1 each; 0: free */

static block_t first;
static block_t *const blocks = &first;
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER; /* between threads; no fork waits for it */

static int add(uint32_t value)
{
    block_t *last = blocks;
    for (block_t *each = blocks; each != NULL; last = each, each = each->next)
        for (int i = 0; i < PER_BLOCK; i++)
            if (shmd_cas32(&each->fds[i], 0, value))
                return SHMD_OK;
    block_t *more = calloc(1, sizeof *more);
    if (more == NULL)
        return shmd_fail(SHMD_E_NO_MEMORY, "no memory to note a descriptor that forked children have to close");
    more->fds[0] = value;
    shmd_fence_release();
    last->next = more;
    return SHMD_OK;
}

int shmd_held_add(int fd)
{
    (void)pthread_mutex_lock(&list_lock);
    int rc = add((uint32_t)fd + 1);
    (void)pthread_mutex_unlock(&list_lock);
    return rc;
}

static void drop(int fd)
{
    for (block_t *each = blocks; each != NULL; each = each->next)
        for (int i = 0; i < PER_BLOCK; i++)
            if (shmd_cas32(&each->fds[i], (uint32_t)fd + 1, 0))
                return;
}

void shmd_held_drop(int fd)
{
    (void)pthread_mutex_lock(&list_lock);
    drop(fd);
    (void)pthread_mutex_unlock(&list_lock);
}

/* Called in the child, which has one thread: another one of the parent may have had the mutex. */
void shmd_held_close(void)
{
    (void)pthread_mutex_init(&list_lock, NULL);
    for (block_t *each = blocks; each != NULL; each = each->next)
        for (int i = 0; i < PER_BLOCK; i++)
            if (each->fds[i] != 0) {
                (void)close((int)each->fds[i] - 1);
                each->fds[i] = 0;
            }
}
