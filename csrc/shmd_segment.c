/* shmd_segment.c: open, map (once or twice in a row), and check a segment. Never creates, sizes or unlinks. */
#include "shmd_internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

uint64_t shmd_page_bytes(void)
{
    long page = sysconf(_SC_PAGESIZE);
    return page > 0 ? (uint64_t)page : SHMD_PAGE_BYTES_MIN;
}

uint64_t shmd_magic(uint32_t kind) { return 0x53484d4452560000u | kind; /* "SHMDRV", kind */ }

/* Why it could not be opened; whose it is, when that is why. */
static int refused(const char *name, int writable)
{
    struct stat status;
    char path[sizeof "/dev/shm" + SHMD_SEGMENT_NAME_BYTES], owner[96] = "";
    int error = errno;
    (void)snprintf(path, sizeof path, "/dev/shm%s", name);
    if (error == EACCES && lstat(path, &status) == 0)
        (void)snprintf(owner, sizeof owner, " of uid %u, gid %u (mode %04o) as uid %u", (unsigned)status.st_uid, (unsigned)status.st_gid,
                       (unsigned)status.st_mode & 07777u, (unsigned)geteuid());
    errno = error;
    return shmd_fail_errno(SHMD_CALL_OPEN, "cannot open segment %s%s %s", name, owner, writable ? "for writing" : "for reading");
}

/* /dev/shm is a public folder: an object that a stranger made there under a driver's name is no driver's. */
static int check_owner(const char *name, const struct stat *status, uint32_t owner)
{
    if (owner == UINT32_MAX ? shmd_is_own_or_roots(status->st_uid) : status->st_uid == owner && shmd_is_nobody(owner) == 0)
        return SHMD_OK;
    char expected[48];
    (void)snprintf(expected, sizeof expected, owner == UINT32_MAX ? "uid %u or root" : "uid %u", owner == UINT32_MAX ? (unsigned)geteuid() : (unsigned)owner);
    return shmd_fail(SHMD_E_LAYOUT, "segment %s belongs to uid %u, gid %u (mode %04o); expected one of %s: somebody planted it, or its owner has to be named", name,
                     (unsigned)status->st_uid, (unsigned)status->st_gid, (unsigned)status->st_mode & 07777u, expected);
}

static int check_file(const char *name, const struct stat *status, uint32_t owner)
{
    if (!S_ISREG(status->st_mode))
        return shmd_fail(SHMD_E_LAYOUT, "segment %s is not a regular shared-memory object (mode %o); somebody planted it: remove it", name, (unsigned)status->st_mode);
    return check_owner(name, status, owner);
}

/* What is not to be used is not opened either: looked at before, and again when it is open. */
int shmd_segment_open_of(const char *name, uint32_t owner, int writable, uint64_t *bytes)
{
    struct stat status;
    char path[sizeof "/dev/shm" + SHMD_SEGMENT_NAME_BYTES];
    (void)snprintf(path, sizeof path, "/dev/shm%s", name);
    int rc = shmd_keep_standard_descriptors();
    if (rc == SHMD_OK && lstat(path, &status) == 0)
        rc = check_file(name, &status, owner);
    if (rc != SHMD_OK)
        return rc;
    int fd = shm_open(name, (writable ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0); /* O_NONBLOCK: a planted FIFO is refused, not waited for */
    if (fd < 0)
        return refused(name, writable);
    rc = fstat(fd, &status) == 0 ? check_file(name, &status, owner) : shmd_fail_errno(SHMD_CALL_OPEN, "fstat of %s", name);
    if (rc != SHMD_OK) {
        (void)close(fd);
        return rc;
    }
    *bytes = (uint64_t)status.st_size;
    return fd;
}

int shmd_segment_open(const char *name, int writable, uint64_t *bytes) { return shmd_segment_open_of(name, UINT32_MAX, writable, bytes); }

static int protection(int writable) { return writable ? PROT_READ | PROT_WRITE : PROT_READ; }

/* Everything that is mapped stands in the table of shmd_bus_error.c before anybody touches it. */
static int enter(void *base, uint64_t bytes, uint64_t span, int writable, void **out)
{
    int rc = shmd_bus_error_watch(base, bytes, span, writable);
    if (rc == SHMD_OK)
        *out = base;
    else
        (void)munmap(base, (size_t)bytes);
    return rc;
}

int shmd_segment_map(int fd, uint64_t offset, uint64_t bytes, int writable, int prefault, void **out)
{
    if (bytes == 0 || bytes > SIZE_MAX / 4)
        return shmd_fail(SHMD_E_INVALID, "cannot map %llu bytes", (unsigned long long)bytes);
    void *base = mmap(NULL, (size_t)bytes, protection(writable), MAP_SHARED | (prefault ? MAP_POPULATE : 0), fd, (off_t)offset);
    if (base == MAP_FAILED)
        return shmd_fail_errno(SHMD_CALL_MAP, "mmap of %llu bytes", (unsigned long long)bytes);
    return enter(base, bytes, bytes, writable, out);
}

int shmd_segment_renew(int fd, void *base, uint64_t bytes, int writable)
{
    shmd_bus_error_renew(base);
    if (mmap(base, (size_t)bytes, protection(writable), MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        return shmd_fail_errno(SHMD_CALL_MAP, "mmap of %llu bytes in place", (unsigned long long)bytes);
    return SHMD_OK;
}

int shmd_segment_map_mirrored(int fd, uint64_t offset, uint64_t bytes, int writable, int prefault, void **out)
{
    if (bytes == 0 || bytes > SIZE_MAX / 4 || bytes % shmd_page_bytes() != 0)
        return shmd_fail(SHMD_E_INVALID, "cannot map %llu bytes twice in a row: not whole pages of %llu", (unsigned long long)bytes,
                         (unsigned long long)shmd_page_bytes());
    int flags = MAP_SHARED | MAP_FIXED | (prefault ? MAP_POPULATE : 0);
    unsigned char *base = mmap(NULL, (size_t)bytes * 2, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return shmd_fail_errno(SHMD_CALL_MAP, "reserving %llu bytes of address space", (unsigned long long)bytes * 2);
    for (int half = 0; half < 2; half++) {
        if (mmap(base + (size_t)half * (size_t)bytes, (size_t)bytes, protection(writable), flags, fd, (off_t)offset) == MAP_FAILED) {
            int rc = shmd_fail_errno(SHMD_CALL_MAP, "mirrored mmap of %llu bytes", (unsigned long long)bytes);
            (void)munmap(base, (size_t)bytes * 2);
            return rc;
        }
    }
    return enter(base, bytes * 2, bytes, writable, out);
}

int shmd_segment_lock(const void *base, uint64_t bytes)
{
    return mlock(base, (size_t)bytes) == 0 ? SHMD_OK : shmd_fail_errno(SHMD_CALL_LOCK, "mlock of %llu bytes", (unsigned long long)bytes);
}

int shmd_segment_unmap(void *base, uint64_t bytes)
{
    shmd_bus_error_forget(base);
    if (base != NULL && munmap(base, (size_t)bytes) != 0)
        return shmd_fail_errno(SHMD_CALL_MAP, "munmap of %llu bytes", (unsigned long long)bytes);
    return SHMD_OK;
}

int shmd_header_check(const void *base, uint64_t bytes, uint32_t kind, uint64_t boot_id, uint32_t stream_id, uint32_t epoch)
{
    const shmd_header_t *header = base;
    if (bytes < sizeof *header)
        return shmd_fail(SHMD_E_LAYOUT, "segment of %llu bytes is too short for a header", (unsigned long long)bytes);
    uint64_t magic = shmd_load_acquire(&header->magic); /* S1: pairs with shmd_segment_complete */
    if (magic != shmd_magic(kind))
        return shmd_fail(SHMD_E_LAYOUT, "magic is 0x%016llx, expected 0x%016llx%s", (unsigned long long)magic,
                         (unsigned long long)shmd_magic(kind), magic == 0 ? ": the segment was never completed" : "; it is not ours: not touched");
    if (header->layout_version != SHMD_LAYOUT_VERSION)
        return shmd_fail(SHMD_E_LAYOUT, "layout version is %u, this build speaks %u: use the same shmdriver version on both sides, or stop that driver first",
                         header->layout_version, (unsigned)SHMD_LAYOUT_VERSION);
    if (header->kind != kind || header->segment_bytes != bytes)
        return shmd_fail(SHMD_E_LAYOUT, "header says kind %u, %llu bytes; expected kind %u, %llu bytes", header->kind,
                         (unsigned long long)header->segment_bytes, kind, (unsigned long long)bytes);
    if ((boot_id != 0 && header->boot_id != boot_id) || header->stream_id != stream_id || header->epoch != epoch)
        return shmd_fail(SHMD_E_LAYOUT, "header says boot %016llx stream %u epoch %u; expected boot %016llx stream %u epoch %u",
                         (unsigned long long)header->boot_id, header->stream_id, header->epoch, (unsigned long long)boot_id, stream_id, epoch);
    return SHMD_OK;
}

void shmd_segment_complete(void *base)
{
    shmd_header_t *header = base;
    SHMD_FAILPOINT("segment.filled");
    shmd_store_release(&header->magic, shmd_magic(header->kind)); /* S1: after everything that shmd_*_init wrote */
}

uint64_t shmd_word_load(const uint64_t *word) { return shmd_load_acquire(word); }
void shmd_word_store(uint64_t *word, uint64_t value) { shmd_store_release(word, value); }
int shmd_word_swap(uint64_t *word, uint64_t expected, uint64_t value) { return shmd_cas(word, expected, value); }
void shmd_word_store_seq_cst(uint64_t *word, uint64_t value)
{
    shmd_store_seq_cst(word, value);
    shmd_fence_seq_cst(); /* plain stores behind it do not pass it, on ARM64 either */
}
uint32_t shmd_futex_load(const uint32_t *word) { return shmd_load32_acquire(word); }
