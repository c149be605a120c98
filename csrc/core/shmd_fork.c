/* shmd_fork.c: the generation of this process, and handles that a forked child finds wiped (shmd_fork.h). */
#include "shmd_internal.h"

#include <sys/mman.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

/* Where the kernel does not wipe: at the begin of a handle's pages, what the fork handler has to wipe. */
typedef struct shmd_unwiped {
    struct shmd_unwiped *next;
    void *handle;
    size_t wiped;
} shmd_unwiped_t;

uint32_t shmd_wipe_missing;
static uint32_t generation = 1; /* copied by a fork, so in a child without handlers it is still the parent's */
static uint32_t plain_word = 1;
const uint32_t *shmd_fork_word = &plain_word;
static shmd_unwiped_t *unwiped;
static pthread_mutex_t unwiped_lock = PTHREAD_MUTEX_INITIALIZER; /* between threads; the child of a fork has one */

static uint32_t *word(void) { return (uint32_t *)(uintptr_t)shmd_fork_word; }

static int wipes_on_fork(void *pages, size_t bytes)
{
    if (shmd_load32_relaxed(&shmd_wipe_missing) != 0)
        return 0;
    if (madvise(pages, bytes, MADV_WIPEONFORK) == 0)
        return 1;
    shmd_store32_relaxed(&shmd_wipe_missing, 1);
    return 0;
}

static void *pages_of(size_t bytes)
{
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

/* The list is whole at each moment, also for a child that was forked while another thread changed it. */
static void in_child(void)
{
    generation++;
    shmd_store32_relaxed(word(), generation);
    (void)pthread_mutex_init(&unwiped_lock, NULL);
    for (shmd_unwiped_t *each = unwiped; each != NULL; each = each->next)
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
        (void)shmd_cas32(word(), 0, shmd_load32_relaxed(&generation) + 1);
        shmd_store32_relaxed(&generation, shmd_load32_relaxed(word()));
    }
    return shmd_load32_relaxed(word());
}

static size_t whole_pages(size_t bytes) { return (size_t)shmd_round_up(bytes, shmd_page_bytes()); }

void *shmd_handle_new(size_t bytes, size_t wiped)
{
    size_t front = whole_pages(sizeof(shmd_unwiped_t) + wiped);
    unsigned char *pages = pages_of(front + whole_pages(bytes - wiped));
    if (pages == NULL)
        return NULL;
    unsigned char *handle = pages + front - wiped;
    if (!wipes_on_fork(pages, front)) {
        shmd_unwiped_t *entry = (shmd_unwiped_t *)(void *)pages;
        *entry = (shmd_unwiped_t){.handle = handle, .wiped = wiped};
        (void)pthread_mutex_lock(&unwiped_lock);
        entry->next = unwiped;
        shmd_fence_release();
        unwiped = entry;
        (void)pthread_mutex_unlock(&unwiped_lock);
    }
    return handle;
}

static void strike_out(const void *pages)
{
    (void)pthread_mutex_lock(&unwiped_lock);
    shmd_unwiped_t **at = &unwiped;
    while (*at != NULL && *at != pages)
        at = &(*at)->next;
    if (*at != NULL)
        *at = (*at)->next;
    (void)pthread_mutex_unlock(&unwiped_lock);
}

void shmd_handle_free(void *handle, size_t bytes, size_t wiped)
{
    size_t front = whole_pages(sizeof(shmd_unwiped_t) + wiped);
    if (handle == NULL)
        return;
    unsigned char *pages = (unsigned char *)handle + wiped - front;
    if (shmd_load32_relaxed(&shmd_wipe_missing) != 0)
        strike_out(pages);
    (void)munmap(pages, front + whole_pages(bytes - wiped));
}
