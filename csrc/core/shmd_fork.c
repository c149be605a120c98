/* shmd_fork.c: the generation of this process, and handles that a forked child finds wiped (shmd_fork.h). */
#include "shmd_internal.h"
#include "shmd_session.h"

#include <sys/mman.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

/* Behind a handle, on pages that are not wiped: what the fork handler wipes, whatever the kernel does (qemu says that it does, and
 * does not). */
typedef struct shmd_handle {
    struct shmd_handle *next;
    void *handle;
    size_t wiped;
} shmd_handle_t;

uint32_t shmd_wipe_missing;
static uint32_t generation = 1; /* copied by a fork, so in a child without handlers it is still the parent's */
static uint32_t plain_word = 1;
const uint32_t *shmd_fork_word = &plain_word;
static shmd_handle_t *handles; /* the list is whole at each moment, also for a child that was forked while a thread changes it */
static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER; /* between threads; the child of a fork has one */

static uint32_t *word(void) { return (uint32_t *)(uintptr_t)shmd_fork_word; }

static int wipes_on_fork(void *pages, size_t bytes)
{
    return shmd_load32_relaxed(&shmd_wipe_missing) == 0 && madvise(pages, bytes, MADV_WIPEONFORK) == 0;
}

static void *pages_of(size_t bytes)
{
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

static void in_child(void)
{
    generation++;
    shmd_store32_relaxed(word(), generation);
    (void)pthread_mutex_init(&handles_lock, NULL);
    shmd_session_forked();
    shmd_held_close();
    for (shmd_handle_t *each = handles; each != NULL; each = each->next)
        memset(each->handle, 0, each->wiped);
}

__attribute__((constructor)) static void watch_forks(void)
{
    uint32_t *page = pages_of((size_t)shmd_page_bytes());
    if (page != NULL && wipes_on_fork(page, (size_t)shmd_page_bytes())) {
        *page = generation;
        shmd_fork_word = page;
    }
    (void)pthread_atfork(NULL, NULL, in_child);
}

uint32_t shmd_fork_generation(void)
{
    if (shmd_load32_relaxed(word()) == 0) { /* a child without fork handlers: its first call. Two of its threads agree by the CAS */
        (void)pthread_mutex_init(&handles_lock, NULL);
        (void)shmd_cas32(word(), 0, shmd_load32_relaxed(&generation) + 1);
        shmd_store32_relaxed(&generation, shmd_load32_relaxed(word()));
    }
    return shmd_load32_relaxed(word());
}

static size_t whole_pages(size_t bytes) { return (size_t)shmd_round_up(bytes, shmd_page_bytes()); }

void *shmd_handle_new(size_t bytes, size_t wiped)
{
    (void)shmd_fork_generation(); /* before the lock: a thread of the parent may have held it */
    size_t front = whole_pages(wiped);
    unsigned char *pages = pages_of(front + whole_pages(bytes - wiped + sizeof(shmd_handle_t)));
    if (pages == NULL)
        return NULL;
    (void)wipes_on_fork(pages, front);
    unsigned char *handle = pages + front - wiped;
    shmd_handle_t *entry = (shmd_handle_t *)(void *)(handle + bytes);
    *entry = (shmd_handle_t){.handle = handle, .wiped = wiped};
    (void)pthread_mutex_lock(&handles_lock);
    entry->next = handles;
    shmd_fence_release();
    handles = entry;
    (void)pthread_mutex_unlock(&handles_lock);
    return handle;
}

void shmd_handle_free(void *handle, size_t bytes, size_t wiped)
{
    if (handle == NULL)
        return;
    (void)shmd_fork_generation();
    (void)pthread_mutex_lock(&handles_lock);
    shmd_handle_t **at = &handles;
    while (*at != NULL && (*at)->handle != handle)
        at = &(*at)->next;
    if (*at != NULL)
        *at = (*at)->next;
    (void)pthread_mutex_unlock(&handles_lock);
    size_t front = whole_pages(wiped);
    (void)munmap((unsigned char *)handle + wiped - front, front + whole_pages(bytes - wiped + sizeof(shmd_handle_t)));
}
