/* shmd_scan.c: the authorities in /dev/shm. Their names are random, so they are found by looking at all, and believed by their
 * owner and by what stands in them. Whatever else has a name like that was made by somebody else: it is passed over and told. */
#include "../shmd_internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

enum { HEX_DIGITS = 32 };
static const char mount_path[] = "/dev/shm";

static _Thread_local char notes[SHMD_TEXT_BYTES];

static void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void note(const char *format, ...)
{
    size_t used = strlen(notes);
    va_list arguments;
    if (used != 0)
        used += (size_t)snprintf(notes + used, sizeof notes - used, "; ");
    if (used >= sizeof notes)
        return;
    va_start(arguments, format);
    (void)vsnprintf(notes + used, sizeof notes - used, format, arguments);
    va_end(arguments);
}

const char *shmd_authorities_notes(void) { return notes; }

/* "shmd.INSTANCE.HEX.authority"; copies the instance out. */
static int is_authority_name(const char *name, char *instance)
{
    static const char prefix[] = "shmd.", suffix[] = ".authority";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return 0;
    const char *at = name + sizeof prefix - 1;
    size_t length = strcspn(at, ".");
    if (length > SHMD_INSTANCE_CHARS_MAX || at[length] != '.' || strspn(at + length + 1, "0123456789abcdef") != HEX_DIGITS ||
        strcmp(at + length + 1 + HEX_DIGITS, suffix) != 0)
        return 0;
    memcpy(instance, at, length);
    instance[length] = 0;
    return shmd_instance_is_name(instance);
}

/* ---- one of them ------------------------------------------------------------------------- */

static int is_same(const struct stat *a, const struct stat *b) { return a->st_ino == b->st_ino && a->st_dev == b->st_dev; }

/* Copied once: what it says afterwards changes nothing. The magic first, and then what was written before it. */
static int read_header(int fd, shmd_authority_t *out)
{
    uint64_t magic = 0;
    memset(out, 0, sizeof *out);
    if (pread(fd, &magic, sizeof magic, 0) != (ssize_t)sizeof magic)
        return 0;
    shmd_fence_acquire(); /* S1: pairs with shmd_segment_complete */
    ssize_t got = pread(fd, out, sizeof *out, 0);
    out->header.magic = magic;
    out->instance[sizeof out->instance - 1] = 0;
    return got >= (ssize_t)sizeof out->header && magic != 0;
}

/* 1: it is one, described in out; 0: it is none, or no more; negative: that cannot be told. */
static int describe(int fd, const char *instance, shmd_found_t *out)
{
    shmd_authority_t copy;
    int has_magic = read_header(fd, &copy);
    out->life = shmd_life_seen(fd);
    if (!has_magic)
        return 1;
    if (copy.header.magic != shmd_magic(SHMD_SEGMENT_AUTHORITY) || copy.header.kind != SHMD_SEGMENT_AUTHORITY) {
        note("%s%s begins with 0x%016llx, which is no authority of ours: look what made it", mount_path, out->name, (unsigned long long)copy.header.magic);
        return 0;
    }
    out->layout_version = copy.header.layout_version;
    if (copy.header.layout_version != SHMD_LAYOUT_VERSION)
        return 1;
    if (strcmp(copy.instance, instance) != 0) {
        note("%s%s says that it is of another instance%s%s: look what made it", mount_path, out->name, shmd_instance_is_name(copy.instance) ? ", " : "",
             shmd_instance_is_name(copy.instance) ? copy.instance : "");
        return 0;
    }
    if (out->bytes < sizeof copy)
        return 1; /* cut short */
    out->is_complete = 1;
    out->boot_id = copy.header.boot_id;
    out->created_ns = copy.header.created_ns;
    out->exit_kind = (uint32_t)copy.exit_kind;
    return 1;
}

static int look(int folder, const char *name, const char *instance, const struct stat *before, shmd_found_t *out)
{
    struct stat status;
    int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == ELOOP))
        return 0; /* removed meanwhile */
    if (fd < 0 && errno == EACCES && before->st_uid != geteuid()) {
        note("%s/%s of uid %u cannot be read by uid %u (mode %04o)", mount_path, name, (unsigned)before->st_uid, (unsigned)geteuid(), (unsigned)before->st_mode & 07777u);
        return 0;
    }
    if (fd < 0)
        return shmd_fail_errno(SHMD_CALL_OPEN, "cannot open the authority %s/%s of uid %u", mount_path, name, (unsigned)before->st_uid);
    int rc = fstat(fd, &status) == 0 ? 1 : shmd_fail_errno(SHMD_CALL_OPEN, "fstat of %s/%s", mount_path, name);
    if (rc == 1 && (!is_same(&status, before) || status.st_nlink != 1))
        rc = 0;
    if (rc == 1) {
        *out = (shmd_found_t){.inode = status.st_ino, .device = status.st_dev, .bytes = (uint64_t)status.st_size, .owner = status.st_uid};
        out->name[0] = '/';
        memcpy(out->name + 1, name, strnlen(name, sizeof out->name - 2)); /* is_authority_name: it fits */
        rc = describe(fd, instance, out);
    }
    (void)close(fd);
    return rc;
}

/* ---- all of them ------------------------------------------------------------------------- */

typedef struct owners { uint32_t uid[SHMD_OWNERS_MAX]; uint32_t count; } owners_t;

static int place_of(uint32_t uid, const owners_t *owners)
{
    for (uint32_t i = 0; i < owners->count; i++)
        if (owners->uid[i] == uid)
            return (int)i;
    return -1;
}

/* Life, then the owner, then the newest that is complete. */
static int goes_before(const shmd_found_t *a, const shmd_found_t *b, const owners_t *owners)
{
    if ((a->life == 1) != (b->life == 1))
        return a->life == 1;
    if (a->owner != b->owner)
        return place_of(a->owner, owners) < place_of(b->owner, owners);
    return a->created_ns > b->created_ns; /* 0: not complete */
}

static void insert(const shmd_found_t *one, const owners_t *owners, shmd_found_t *out, uint32_t count, uint32_t room)
{
    uint32_t at = count < room ? count : room;
    while (at > 0 && goes_before(one, &out[at - 1], owners)) {
        if (at < room)
            out[at] = out[at - 1];
        at--;
    }
    if (at < room)
        out[at] = *one;
}

/* Whose authorities of that instance count; negative. */
static int choose_owners(const char *instance, uint32_t owner, owners_t *out)
{
    shmd_folder_t system;
    int rc = 1;
    if (owner != UINT32_MAX) {
        int nobody = shmd_is_nobody(owner);
        out->uid[0] = owner;
        out->count = 1;
        return nobody == 1 ? shmd_fail(SHMD_E_INVALID, "uid %u stands for every user who has no number in this user namespace: nobody's driver is used", owner) : nobody;
    }
    rc = shmd_folder_system(instance, &system);
    if (rc >= 0)
        rc = shmd_owners_trusted(rc == 1 ? &system : NULL, out->uid);
    shmd_folder_close(&system);
    out->count = rc < 0 ? 0 : (uint32_t)rc;
    return rc < 0 ? rc : SHMD_OK;
}

/* One name of our pattern: 1, it is in found; 0, it does not count; negative. */
static int judge(int folder, const char *name, const char *instance, const owners_t *owners, uint32_t asked, shmd_found_t *found)
{
    struct stat status;
    if (fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? 0 : shmd_fail_errno(SHMD_CALL_OPEN, "cannot look at %s/%s", mount_path, name);
    if (place_of(status.st_uid, owners) < 0) {
        if (asked == UINT32_MAX)
            note("%s/%s belongs to uid %u, whom this process (uid %u) does not trust: name that owner if it should be used", mount_path, name,
                 (unsigned)status.st_uid, (unsigned)geteuid());
        return 0;
    }
    if (!S_ISREG(status.st_mode) || status.st_nlink != 1) {
        note("%s/%s is not used: mode %o, %lu links; expected a regular file with one link", mount_path, name, (unsigned)status.st_mode, (unsigned long)status.st_nlink);
        return 0;
    }
    return look(folder, name, instance, &status, found);
}

int shmd_authorities_find(const char *instance, uint32_t owner, shmd_found_t *out, uint32_t room)
{
    owners_t owners = {.count = 0};
    uint32_t count = 0;
    notes[0] = 0;
    int rc = instance == NULL ? SHMD_OK : shmd_instance_check(instance);
    rc = rc ? rc : shmd_keep_standard_descriptors();
    rc = rc || instance == NULL ? rc : choose_owners(instance, owner, &owners);
    if (rc != SHMD_OK)
        return rc;
    DIR *folder = opendir(mount_path);
    if (folder == NULL)
        return shmd_fail_errno(SHMD_CALL_OPEN, "cannot list %s, so whether there is a driver is not known", mount_path);
    errno = 0;
    for (struct dirent *entry; rc == SHMD_OK && (entry = readdir(folder)) != NULL; errno = 0) {
        char named[SHMD_NAME_BYTES];
        shmd_found_t found;
        if (!is_authority_name(entry->d_name, named) || (instance != NULL && strcmp(named, instance) != 0))
            continue;
        if (instance == NULL)
            rc = choose_owners(named, owner, &owners);
        int is_one = rc == SHMD_OK ? judge(dirfd(folder), entry->d_name, named, &owners, owner, &found) : rc;
        if (is_one == 1)
            insert(&found, &owners, out, count++, room);
        rc = is_one < 0 ? is_one : SHMD_OK;
    }
    if (rc == SHMD_OK && errno != 0)
        rc = shmd_fail_errno(SHMD_CALL_OPEN, "cannot list %s", mount_path);
    (void)closedir(folder);
    return rc ? rc : (int)count;
}

/* Whoever is meant by a name has ended there for good, or was never there. */
static int is_over(const shmd_found_t *one)
{
    return one->life == 0 && (one->layout_version == 0 || one->exit_kind == SHMD_EXIT_CLEAN || one->exit_kind == SHMD_EXIT_SUPERSEDED);
}

/* This user's own counts also when its driver was killed: its clients wait for the next one, and do not go over to another user's. */
int shmd_authority_choose(const char *instance, uint32_t named, shmd_found_t *out)
{
    enum { ROOM = 16 };
    shmd_found_t found[ROOM];
    const shmd_found_t *chosen = NULL, *other = NULL;
    int n = shmd_authorities_find(instance, named, found, ROOM);
    for (int i = 0; i < n && i < ROOM; i++) {
        const shmd_found_t *one = &found[i];
        if (is_over(one))
            continue;
        if (chosen == NULL || (one->owner == geteuid() && chosen->owner != geteuid()))
            chosen = one;
        else if (other == NULL && one->owner != chosen->owner && one->life == chosen->life)
            other = one;
    }
    if (n <= 0)
        return n < 0 || (named != UINT32_MAX && !shmd_is_own_or_roots(named)) ? n : shmd_old_layout(instance);
    if (chosen == NULL)
        chosen = &found[0];
    if (other != NULL && chosen->owner != geteuid() && other->owner != chosen->owner)
        return shmd_fail(SHMD_E_INVALID, "uid %u and uid %u have a driver of instance %s each (%s%s and %s%s): name the owner of the one that is meant (--owner, "
                         "connect(owner=...))", chosen->owner, other->owner, instance, mount_path, chosen->name, mount_path, other->name);
    *out = *chosen;
    return 1;
}

int shmd_found_open(const shmd_found_t *found, int writable)
{
    uint64_t bytes;
    struct stat status;
    int fd = shmd_segment_open_of(found->name, found->owner, writable, &bytes);
    if (fd < 0)
        return fd;
    int rc = fstat(fd, &status) == 0 ? SHMD_OK : shmd_fail_errno(SHMD_CALL_OPEN, "fstat of %s", found->name);
    if (rc == SHMD_OK && (status.st_ino != found->inode || status.st_dev != found->device))
        rc = shmd_fail(SHMD_E_LAYOUT, "%s is another file than a moment ago: look again", found->name);
    if (rc == SHMD_OK && status.st_nlink != 1)
        rc = shmd_fail(SHMD_E_LAYOUT, "%s has %lu links; expected 1: remove the others", found->name, (unsigned long)status.st_nlink);
    if (rc == SHMD_OK)
        return fd;
    (void)close(fd);
    return rc;
}

/* ---- the layout before ------------------------------------------------------------------- */

static int refuse_old(const char *instance, const char *path, const shmd_header_t *header)
{
    if (header->magic != shmd_magic(SHMD_SEGMENT_AUTHORITY))
        return SHMD_OK; /* left half made, or not ours */
    return shmd_fail(SHMD_E_LAYOUT, "%s is of a driver of instance %s with layout version %u, and this build speaks %u. It is left as it is: stop that driver with "
                     "the version of shmdriver that made it (`shmdriver shutdown -i %s`), or remove the file if none runs", path, instance, header->layout_version,
                     (unsigned)SHMD_LAYOUT_VERSION, instance);
}

int shmd_old_layout(const char *instance)
{
    char path[sizeof mount_path + SHMD_SEGMENT_NAME_BYTES];
    struct stat status;
    shmd_header_t header = {.magic = 0};
    int rc = shmd_instance_check(instance);
    rc = rc ? rc : shmd_keep_standard_descriptors();
    if (rc != SHMD_OK)
        return rc;
    (void)snprintf(path, sizeof path, "%s/shmd.%s.authority", mount_path, instance);
    if (lstat(path, &status) != 0)
        return errno == ENOENT ? SHMD_OK : shmd_fail_errno(SHMD_CALL_OPEN, "cannot look at %s", path);
    if (!S_ISREG(status.st_mode) || !shmd_is_own_or_roots(status.st_uid))
        return SHMD_OK; /* anybody can make a file of that name */
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? SHMD_OK : shmd_fail_errno(SHMD_CALL_OPEN, "cannot open %s, so whether it is of a driver of a layout before %u is not known", path,
                                                           (unsigned)SHMD_LAYOUT_VERSION);
    ssize_t got = pread(fd, &header, sizeof header, 0);
    rc = got < 0 ? shmd_fail_errno(SHMD_CALL_OPEN, "cannot read %s", path) : got == (ssize_t)sizeof header ? refuse_old(instance, path, &header) : SHMD_OK;
    (void)close(fd);
    return rc;
}
