/* shmd_bus_error.c: a segment that is truncated, or whose pages are taken away, kills nobody.
 *
 * A process that may write a segment may also shorten it. Every other process that then touches a missing page gets SIGBUS. The
 * handler here finds the mapping in a table, puts zero pages in the place of the missing ones, marks the mapping as damaged, and
 * returns; the interrupted instruction goes on and finds zeros. Handles look at the mark on their slow turns and before they hand
 * out what they copied. Any other SIGBUS goes to the handler that was installed before.
 *
 * The zero pages are private to this process and keep the mapping's protection: a store into a read-only mapping stays an error of
 * the program. They reach from the missing page to the end of the file mapping. After a truncation everything behind the page is
 * missing, too, so one fault a mapping is enough, and the mapping is split once only. After a punched hole some pages behind it may
 * have been whole; the handles on them are revoked all the same.
 *
 * Only shmd_guard_truncation installs the handler. The table is kept without it, so that it can be installed at any time.
 */
#include "shmd_internal.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CHUNK_ENTRIES = 64 };

/* One mapping. `version` is odd while its owner changes the entry. The handler takes a copy between two equal even versions (G1).
 * It need not try again: a thread that faults in a mapping keeps that mapping from being unmapped, so an entry that changes is
 * never the one that the handler looks for. */
typedef struct entry {
    uint32_t taken;
    uint32_t version;
    uint64_t base;      /* 0: no mapping */
    uint64_t bytes;
    uint64_t span;
    uint64_t writable;
    uint64_t told;      /* address of a shmd_damage_t, or 0 */
    uint64_t told_bit;
    uint32_t damaged;
} entry_t;

/* Entries are reused and never freed: the handler may look at them at any time. */
typedef struct chunk {
    entry_t entries[CHUNK_ENTRIES];
    uint64_t next;      /* address of the next chunk, or 0 */
} chunk_t;

static chunk_t first_chunk;
static uint64_t page_bytes;
static uint32_t handled_count;
static struct sigaction previous; /* written while the handler is not installed */

static chunk_t *next_chunk(const chunk_t *chunk) { return (chunk_t *)(uintptr_t)shmd_load_acquire(&chunk->next); } /* G2 */

/* ---- the table -------------------------------------------------------------------------- */

static void begin_change(entry_t *entry)
{
    /* Odd already: in a child that was forked while a thread of its parent changed the entry. */
    shmd_store32_relaxed(&entry->version, shmd_load32_relaxed(&entry->version) | 1);
    shmd_fence_release(); /* G1: before any field; pairs with the acquire fence in copy_entry */
}

static void end_change(entry_t *entry)
{
    shmd_store32_release(&entry->version, shmd_load32_relaxed(&entry->version) + 1); /* G1: after all fields */
}

/* 1: the copy is one state of the entry. */
static int copy_entry(const entry_t *entry, entry_t *copy)
{
    uint32_t version = shmd_load32_acquire(&entry->version); /* G1: pairs with end_change */
    copy->base = shmd_load_relaxed(&entry->base);
    copy->bytes = shmd_load_relaxed(&entry->bytes);
    copy->span = shmd_load_relaxed(&entry->span);
    copy->writable = shmd_load_relaxed(&entry->writable);
    copy->told = shmd_load_relaxed(&entry->told);
    copy->told_bit = shmd_load_relaxed(&entry->told_bit);
    shmd_fence_acquire(); /* G1: pairs with begin_change */
    return version % 2 == 0 && shmd_load32_relaxed(&entry->version) == version && copy->base != 0;
}

static chunk_t *append_chunk(chunk_t *last)
{
    chunk_t *chunk = calloc(1, sizeof *chunk);
    if (chunk != NULL && !shmd_cas(&last->next, 0, (uint64_t)(uintptr_t)chunk)) { /* G2: release, after calloc's zeros */
        free(chunk); /* another thread was first */
        chunk = next_chunk(last);
    }
    return chunk;
}

static entry_t *take_entry(void)
{
    for (chunk_t *chunk = &first_chunk; chunk != NULL;) {
        for (int i = 0; i < CHUNK_ENTRIES; i++)
            if (shmd_load32_relaxed(&chunk->entries[i].taken) == 0 && shmd_cas32(&chunk->entries[i].taken, 0, 1))
                return &chunk->entries[i];
        chunk_t *next = next_chunk(chunk);
        chunk = next != NULL ? next : append_chunk(chunk);
    }
    return NULL;
}

int shmd_bus_error_watch(void *base, uint64_t bytes, uint64_t span, int writable)
{
    entry_t *entry = take_entry();
    if (entry == NULL)
        return shmd_fail(SHMD_E_NO_MEMORY, "no memory for the table of mappings");
    begin_change(entry);
    shmd_store32_relaxed(&entry->damaged, 0);
    shmd_store_relaxed(&entry->bytes, bytes);
    shmd_store_relaxed(&entry->span, span);
    shmd_store_relaxed(&entry->writable, (uint64_t)(writable != 0));
    shmd_store_relaxed(&entry->told, 0);
    shmd_store_relaxed(&entry->base, (uint64_t)(uintptr_t)base);
    end_change(entry);
    return SHMD_OK;
}

/* The entry of a mapping that the caller owns. */
static entry_t *find(const void *base)
{
    uint64_t wanted = (uint64_t)(uintptr_t)base;
    for (chunk_t *chunk = &first_chunk; base != NULL && chunk != NULL; chunk = next_chunk(chunk))
        for (int i = 0; i < CHUNK_ENTRIES; i++)
            if (shmd_load_relaxed(&chunk->entries[i].base) == wanted)
                return &chunk->entries[i];
    return NULL;
}

void shmd_bus_error_forget(const void *base)
{
    entry_t *entry = find(base);
    if (entry == NULL)
        return;
    begin_change(entry);
    shmd_store_relaxed(&entry->base, 0);
    shmd_store_relaxed(&entry->told, 0);
    end_change(entry);
    shmd_store32_release(&entry->taken, 0);
}

static void tell(shmd_damage_t *damage, uint32_t bit)
{
    (void)shmd_or32(&damage->damaged, bit);
    (void)shmd_add32(&damage->inside, 1);
    shmd_fence_seq_cst(); /* G4: counted before this, the word after it; shmd_damage_disown does it the other way round */
    uint64_t *word = (uint64_t *)(uintptr_t)shmd_load_acquire(&damage->word);
    if (word != NULL)
        shmd_store_relaxed(word, damage->value);
    (void)shmd_sub32(&damage->inside, 1); /* G4: after the store */
}

void shmd_damage_own(shmd_damage_t *damage, uint64_t *word, uint64_t value)
{
    damage->value = value;
    shmd_store_seq_cst(&damage->word, (uint64_t)(uintptr_t)word); /* G4 */
    shmd_fence_seq_cst();
    if (shmd_load32_relaxed(&damage->damaged) != 0)
        *word = value;
}

void shmd_damage_disown(shmd_damage_t *damage)
{
    shmd_store_seq_cst(&damage->word, 0);
    shmd_fence_seq_cst(); /* G4: pairs with tell */
    while (shmd_load32_acquire(&damage->inside) != 0)
        (void)sched_yield();
}

void shmd_bus_error_tell(const void *base, shmd_damage_t *damage, uint32_t bit)
{
    entry_t *entry = find(base);
    if (entry == NULL)
        return;
    begin_change(entry);
    shmd_store_relaxed(&entry->told_bit, bit);
    shmd_store_relaxed(&entry->told, (uint64_t)(uintptr_t)damage);
    end_change(entry);
    if (shmd_load32_acquire(&entry->damaged) != 0)
        tell(damage, bit);
}

void shmd_bus_error_renew(const void *base)
{
    entry_t *entry = find(base);
    if (entry != NULL)
        shmd_store32_seq_cst(&entry->damaged, 0);
}

int shmd_segment_is_damaged(const void *base)
{
    const entry_t *entry = find(base);
    return entry != NULL && shmd_load32_acquire(&entry->damaged) != 0;
}

const void *shmd_segment_next_damaged(uint64_t *cursor)
{
    uint64_t place = 0;
    for (const chunk_t *chunk = &first_chunk; chunk != NULL; chunk = next_chunk(chunk))
        for (int i = 0; i < CHUNK_ENTRIES; i++) {
            const entry_t *entry = &chunk->entries[i];
            uint64_t base = shmd_load_relaxed(&entry->base);
            if (place++ < *cursor || base == 0 || shmd_load32_acquire(&entry->damaged) == 0)
                continue;
            *cursor = place;
            return (const void *)(uintptr_t)base;
        }
    return NULL;
}

uint32_t shmd_bus_errors(void) { return shmd_load32_acquire(&handled_count); }

/* ---- the handler: no allocation, no lock, no call that is not a system call ---------------- */

static void mark(entry_t *entry, const entry_t *copy)
{
    shmd_store32_seq_cst(&entry->damaged, 1);
    if (copy->told != 0)
        tell((shmd_damage_t *)(uintptr_t)copy->told, (uint32_t)copy->told_bit);
}

static int put_zeros(uint64_t from, uint64_t end, uint64_t writable)
{
    long protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    return syscall(SYS_mmap, from, end - from, protection, (long)(MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE), -1L, 0L) == (long)from;
}

/* Marked before and after: another thread that sees a zero sees the mark, and a renewal in between is renewed again (G3). */
static int replace(entry_t *entry, const entry_t *copy, uint64_t address)
{
    uint64_t from = address - address % page_bytes;
    uint64_t end = copy->base + ((address - copy->base) / copy->span + 1) * copy->span;
    mark(entry, copy);
    if (!put_zeros(from, end, copy->writable) && !put_zeros(from, from + page_bytes, copy->writable))
        return 0;
    mark(entry, copy);
    (void)shmd_add32(&handled_count, 1);
    return 1;
}

/* 1: the page was missing in a mapping of ours, and is there now. */
static int repair(uint64_t address)
{
    entry_t copy;
    for (chunk_t *chunk = &first_chunk; chunk != NULL; chunk = next_chunk(chunk))
        for (int i = 0; i < CHUNK_ENTRIES; i++)
            if (copy_entry(&chunk->entries[i], &copy) && address - copy.base < copy.bytes)
                return replace(&chunk->entries[i], &copy, address);
    return 0;
}

/* The default action of a SIGBUS ends the process. One that a fault caused comes again when the instruction is repeated. */
static void end_by_default(int number, const siginfo_t *info)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    (void)sigaction(number, &action, NULL);
    if (info->si_code <= 0) /* sent by a process: it would not come again by itself; delivered when the handler returns */
        (void)syscall(SYS_tgkill, getpid(), (pid_t)syscall(SYS_gettid), number);
}

static void pass_on(int number, siginfo_t *info, void *context)
{
    if ((previous.sa_flags & SA_SIGINFO) != 0)
        previous.sa_sigaction(number, info, context);
    else if (previous.sa_handler == SIG_DFL || (previous.sa_handler == SIG_IGN && info->si_code > 0))
        end_by_default(number, info); /* the kernel does not let a fault be ignored, either */
    else if (previous.sa_handler != SIG_IGN)
        previous.sa_handler(number);
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    int error = errno;
    if (info->si_code != BUS_ADRERR || !repair((uint64_t)(uintptr_t)info->si_addr))
        pass_on(number, info, context);
    errno = error;
}

/* ---- on request -------------------------------------------------------------------------- */

static int is_switched_off(void)
{
    const char *value = getenv(SHMD_GUARD_VARIABLE);
    return value != NULL && (strcmp(value, "off") == 0 || strcmp(value, "0") == 0);
}

/* Installed for the first time, or taken away since: faulthandler.disable() restores what was there before it. A later handler of
 * somebody else stays: it may call this one, and this one must not call it. */
static int is_due(const struct sigaction *current, int is_installed)
{
    int is_nobodys = (current->sa_flags & SA_SIGINFO) == 0 && (current->sa_handler == SIG_DFL || current->sa_handler == SIG_IGN);
    return !is_installed || is_nobodys;
}

int shmd_guard_truncation(void)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static int is_installed;
    /* SA_NODEFER: a handler that is called from here, or interrupts this one, may touch a missing page, too. */
    struct sigaction current, action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    if (is_switched_off())
        return 0;
    (void)pthread_mutex_lock(&mutex);
    (void)sigemptyset(&action.sa_mask);
    int rc = sigaction(SIGBUS, NULL, &current);
    if (rc == 0 && is_due(&current, is_installed)) {
        page_bytes = shmd_page_bytes();
        previous = current;
        rc = sigaction(SIGBUS, &action, NULL);
        is_installed |= rc == 0;
    }
    (void)pthread_mutex_unlock(&mutex);
    return rc == 0 ? 1 : shmd_fail_errno(SHMD_CALL_OTHER, "installing the handler of SIGBUS");
}
