/* shmd_folder.c: the runtime folder of an instance: where it may be, how a driver makes it, how everybody finds it.
 *
 * One code for both sides, because a driver and a client that look in different places do not meet. A path is resolved once; then
 * each of its components is opened from the one above it, without following links, and looked at: it has to be root's, the
 * folder's owner's or this process's, and writable by nobody else unless it is sticky. What passed is held by descriptor. */
#include "../shmd_internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/* What a look at a place ends with, unless with a descriptor. */
enum { ABSENT = -1, FOREIGN = -2, UNKNOWN = -3 };

enum { FOLDERS_MAX = 64, FOLDER_NAME_BYTES = 64, RANDOM_BYTES = 8 };

typedef struct spot {
    int fd;
    uint32_t owner;
    mode_t mode;
    char path[SHMD_FOLDER_PATH_BYTES];
} spot_t;

typedef struct search {
    const char *instance;
    uint32_t owner;             /* whose folder; UINT32_MAX: of this user, or in the system's place of anybody */
    int for_group;              /* 1: other users have to pass */
} search_t;

/* ---- what was passed over ---------------------------------------------------------------- */

static _Thread_local char notes[SHMD_TEXT_BYTES];    /* that somebody should look at */
static _Thread_local char reasons[SHMD_TEXT_BYTES];  /* all of it */
static _Thread_local char why[SHMD_TEXT_BYTES / 2];  /* the present look */

static int say(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int say(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    return code;
}

static void append(char *to, size_t bytes, const char *text)
{
    size_t used = strlen(to);
    (void)snprintf(to + used, bytes - used, "%s%s", used == 0 ? "" : "; ", text);
}

static void pass_over(int code)
{
    append(reasons, sizeof reasons, why);
    if (code == FOREIGN)
        append(notes, sizeof notes, why);
}

static void begin(shmd_folder_t *out, int is_first)
{
    memset(out, 0, sizeof *out);
    out->fd = -1;
    if (is_first)
        notes[0] = reasons[0] = 0;
}

const char *shmd_folder_notes(void) { return notes; }

/* ---- one step ---------------------------------------------------------------------------- */

static int failed(const char *what, const char *path, int error)
{
    int code = error == ENOENT ? ABSENT : error == ENOTDIR || error == ELOOP || error == ENAMETOOLONG ? FOREIGN : UNKNOWN;
    return say(code, "%s %s: %s", what, path, error == ENOTDIR ? "it is no folder, or a symbolic link" : strerror(error));
}

/* Who may own what stands above a folder. Users who have no number here are told apart nowhere: only what the system makes itself
 * (`/`, /dev/shm, /run) may be theirs, because in a user namespace of its own every process finds those so. */
static int check_owner(const spot_t *spot, uint32_t owner, int is_exact, int is_fixed)
{
    int nobody = shmd_is_nobody(spot->owner);
    if (nobody < 0)
        return say(UNKNOWN, "%s: %s", spot->path, shmd_last_error());
    if (nobody == 1 && is_fixed)
        return 0;
    if (nobody == 1)
        return say(FOREIGN, "%s belongs to uid %u, which is every user outside of this user namespace", spot->path, spot->owner);
    if (is_exact ? owner == UINT32_MAX || spot->owner == owner : spot->owner == 0 || spot->owner == owner || spot->owner == geteuid())
        return 0;
    return say(FOREIGN, "%s belongs to uid %u; expected uid %u%s", spot->path, spot->owner, owner == UINT32_MAX ? (uint32_t)geteuid() : owner,
               is_exact ? "" : " or root");
}

static int check_mode(const spot_t *spot, int is_exact)
{
    if ((spot->mode & 022) == 0 || (!is_exact && (spot->mode & S_ISVTX) != 0))
        return 0;
    return say(FOREIGN, "%s can be written by others (mode %04o, uid %u); expected at most 0755", spot->path, (unsigned)spot->mode & 07777u, spot->owner);
}

/* Opens `name` in parent. is_exact: it has to be owner's own, and writable by nobody else even if it is sticky. The path is in out. */
static int open_spot(int parent, const char *name, uint32_t owner, int is_exact, int is_fixed, spot_t *out)
{
    struct stat status;
    out->fd = openat(parent, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (out->fd < 0)
        return failed("cannot open", out->path, errno);
    int rc = fstat(out->fd, &status) == 0 ? 0 : failed("cannot look at", out->path, errno);
    out->owner = status.st_uid;
    out->mode = status.st_mode;
    rc = rc ? rc : check_owner(out, owner, is_exact, is_fixed);
    rc = rc ? rc : check_mode(out, is_exact);
    if (rc != 0) {
        (void)close(out->fd);
        out->fd = -1;
    }
    return rc;
}

static int append_name(const spot_t *parent, const char *name, spot_t *out)
{
    char path[SHMD_FOLDER_PATH_BYTES + NAME_MAX];
    const char *above = strcmp(parent->path, "/") == 0 ? "" : parent->path;
    int length = snprintf(path, sizeof path, "%s/%s", above, name);
    if (length < 0 || (size_t)length >= sizeof out->path)
        return say(FOREIGN, "%s/%.60s is longer than %d characters", parent->path, name, SHMD_FOLDER_PATH_BYTES - 1);
    memcpy(out->path, path, (size_t)length + 1);
    return 0;
}

static int below(const spot_t *parent, const char *name, uint32_t owner, int is_exact, int is_fixed, spot_t *out)
{
    spot_t next = {.fd = -1};
    int rc = append_name(parent, name, &next);
    rc = rc ? rc : open_spot(parent->fd, name, owner, is_exact, is_fixed, &next);
    if (rc == 0)
        *out = next;
    return rc;
}

static void close_spot(spot_t *spot)
{
    if (spot->fd >= 0)
        (void)close(spot->fd);
    spot->fd = -1;
}

/* Goes one down, and gives up where it stood. */
static int descend(spot_t *spot, const char *name, uint32_t owner, int is_exact, int is_fixed)
{
    spot_t next = {.fd = -1};
    int rc = below(spot, name, owner, is_exact, is_fixed, &next);
    close_spot(spot);
    if (rc == 0)
        *spot = next;
    return rc;
}

/* Shared by a group: whoever is in it has to pass. The caller closes the spot. */
static int check_passable(const spot_t *spot, int for_group)
{
    if (!for_group || (spot->mode & (S_IXGRP | S_IXOTH)) != 0)
        return 0;
    return say(ABSENT, "%s can be entered by its owner only (mode %04o), and shm.group is set", spot->path, (unsigned)spot->mode & 07777u);
}

/* From the root down a path. is_fixed: the system's own path. */
static int walk(const char *path, const search_t *search, int is_fixed, spot_t *out)
{
    char resolved[PATH_MAX], *rest = resolved;
    out->fd = -1;
    if (realpath(path, resolved) == NULL)
        return failed("cannot resolve", path, errno);
    if (strlen(resolved) >= sizeof out->path)
        return say(FOREIGN, "%.60s... is longer than %d characters", resolved, SHMD_FOLDER_PATH_BYTES - 1);
    (void)snprintf(out->path, sizeof out->path, "/");
    int rc = open_spot(AT_FDCWD, "/", search->owner, 0, 1, out);
    rc = rc ? rc : check_passable(out, search->for_group);
    for (char *name; rc == 0 && (name = strsep(&rest, "/")) != NULL;) {
        rc = *name == 0 ? 0 : descend(out, name, search->owner, 0, is_fixed);
        rc = rc ? rc : check_passable(out, search->for_group);
    }
    if (rc != 0)
        close_spot(out);
    return rc;
}

/* ---- places ------------------------------------------------------------------------------ */

static const char *environment(const char *name)
{
    const char *value = secure_getenv(name);
    return value == NULL || *value == 0 ? NULL : value;
}

/* Where the folders of a user are kept: what is above INSTANCE, as far as others make it. ABSENT: there is no such place. */
static int open_place(uint32_t place, const search_t *search, spot_t *out)
{
    const char *named = environment(place == SHMD_PLACE_NAMED ? "SHMDRIVER_RUNTIME_DIR" : "XDG_RUNTIME_DIR");
    search_t walker = *search;
    char uid[16];
    int rc;
    if (walker.owner == UINT32_MAX)
        walker.owner = geteuid();
    switch (place) {
    case SHMD_PLACE_NAMED:
        return walk(named, &walker, 0, out);
    case SHMD_PLACE_SYSTEM:
        return walk("/run", &walker, 1, out);
    case SHMD_PLACE_USER:
        (void)snprintf(uid, sizeof uid, "%u", walker.owner);
        rc = walk("/run/user", &walker, 1, out);
        rc = rc ? rc : descend(out, uid, walker.owner, 1, 0);
        break;
    case SHMD_PLACE_XDG:
        if (named == NULL)
            return say(ABSENT, "XDG_RUNTIME_DIR is not set");
        if (walker.owner != geteuid())
            return say(ABSENT, "XDG_RUNTIME_DIR is another user's");
        rc = named[0] == '/' ? walk(named, &walker, 0, out) : say(FOREIGN, "XDG_RUNTIME_DIR is %.80s, which is no absolute path", named);
        rc = rc ? rc : check_owner(out, walker.owner, 1, 0);
        rc = rc ? rc : check_mode(out, 1);
        break;
    default:
        return walk("/dev/shm", &walker, 1, out);
    }
    rc = rc ? rc : check_passable(out, search->for_group);
    if (rc != 0)
        close_spot(out);
    return rc;
}

/* A user's own folders in /dev/shm. */
typedef struct own { ino_t inode; char name[FOLDER_NAME_BYTES]; } own_t;

static int by_inode(const void *a, const void *b)
{
    ino_t first = ((const own_t *)a)->inode, second = ((const own_t *)b)->inode;
    return (first > second) - (first < second);
}

/* The earliest first, as far as the numbers of their inodes tell. Anybody can make such a name: whose it is decides. Negative: UNKNOWN. */
static int list_own(const spot_t *shm, uint32_t owner, own_t *out)
{
    char prefix[32];
    int n = 0, length = snprintf(prefix, sizeof prefix, "shmdriver-%u.", owner);
    int fd = openat(shm->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (folder == NULL) {
        int rc = failed("cannot list", shm->path, errno == ENOENT ? EIO : errno);
        if (fd >= 0)
            (void)close(fd);
        return rc;
    }
    errno = 0;
    for (struct dirent *entry; n < FOLDERS_MAX && (entry = readdir(folder)) != NULL; errno = 0) {
        struct stat status;
        size_t name_bytes = strlen(entry->d_name) + 1;
        if (strncmp(entry->d_name, prefix, (size_t)length) != 0 || name_bytes > sizeof out[n].name ||
            fstatat(shm->fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISDIR(status.st_mode) || status.st_uid != owner)
            continue;
        out[n].inode = status.st_ino;
        memcpy(out[n++].name, entry->d_name, name_bytes);
    }
    int error = n < FOLDERS_MAX ? errno : 0;
    (void)closedir(folder);
    qsort(out, (size_t)n, sizeof *out, by_inode);
    return error == 0 ? n : failed("cannot list", shm->path, error == ENOENT ? EIO : error);
}

static void hand_out(spot_t *spot, uint32_t place, shmd_folder_t *out)
{
    *out = (shmd_folder_t){.fd = spot->fd, .place = place, .owner = spot->owner};
    memcpy(out->path, spot->path, sizeof out->path);
    spot->fd = -1;
}

/* ---- making ------------------------------------------------------------------------------ */

/* The folder `name` of this user in parent, made where it is not there; *made: whether it was. */
static int make_below(const spot_t *parent, const char *name, mode_t mode, int for_group, int *made, spot_t *out)
{
    spot_t next = {.fd = -1};
    int rc = append_name(parent, name, &next);
    if (rc != 0)
        return rc;
    *made = mkdirat(parent->fd, name, 0700) == 0;
    if (!*made && errno != EEXIST)
        return failed("cannot make", next.path, errno);
    rc = open_spot(parent->fd, name, geteuid(), 1, 0, &next);
    /* The umask is none of ours. By name: the parent is nobody else's, or sticky, so that is the folder which was opened. */
    int is_changed = rc == 0 && (*made || (for_group && (next.mode & 011) == 0));
    if (is_changed && fchmodat(parent->fd, name, mode, 0) != 0)
        rc = failed("cannot change the mode of", next.path, errno);
    if (rc == 0)
        *out = next;
    else
        close_spot(&next);
    if (rc != 0 && *made)
        (void)unlinkat(parent->fd, name, AT_REMOVEDIR);
    return rc;
}

/* Whether a file with a page can be made there: not where the file system is read-only or full. */
static int probe(const spot_t *folder)
{
    int fd = openat(folder->fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno == EOPNOTSUPP || errno == EISDIR ? 0 : say(UNKNOWN, "no file can be made in %s: %s", folder->path, strerror(errno));
    int error = posix_fallocate(fd, 0, 1);
    (void)close(fd);
    return error == 0 || error == EOPNOTSUPP || error == EINVAL ? 0 : say(UNKNOWN, "no file can be made in %s: %s", folder->path, strerror(error));
}

static int make_instance(const spot_t *parent, const search_t *search, uint32_t place, shmd_folder_t *out)
{
    spot_t folder = {.fd = -1};
    int made = 0;
    int rc = make_below(parent, search->instance, search->for_group ? 0711 : 0700, search->for_group, &made, &folder);
    if (rc != 0)
        return rc;
    rc = probe(&folder);
    if (rc == 0)
        hand_out(&folder, place, out);
    else if (made)
        (void)unlinkat(parent->fd, search->instance, AT_REMOVEDIR);
    close_spot(&folder);
    return rc;
}

/* /run/shmdriver is root's. Others have a folder there only where root has made it, as systemd does (RuntimeDirectory=). */
static int make_in_system(spot_t *place, const search_t *search, shmd_folder_t *out)
{
    spot_t above = {.fd = -1}, folder = {.fd = -1};
    int made;
    if (geteuid() == 0) {
        int rc = make_below(place, "shmdriver", 0755, 0, &made, &above);
        rc = rc ? rc : make_instance(&above, search, SHMD_PLACE_SYSTEM, out);
        close_spot(&above);
        return rc;
    }
    int rc = below(place, "shmdriver", 0, 1, 0, &above);
    if (rc == 0 && (rc = below(&above, search->instance, geteuid(), 1, 0, &folder)) == FOREIGN)
        rc = ABSENT; /* another user's of the same name: nothing that anybody should look at */
    rc = rc ? rc : probe(&folder);
    if (rc == 0)
        hand_out(&folder, SHMD_PLACE_SYSTEM, out);
    close_spot(&folder);
    close_spot(&above);
    return rc;
}

static int make_in_user(const spot_t *place, const search_t *search, uint32_t kind, shmd_folder_t *out)
{
    spot_t above = {.fd = -1};
    int made;
    int rc = make_below(place, "shmdriver", search->for_group ? 0711 : 0700, search->for_group, &made, &above);
    rc = rc ? rc : make_instance(&above, search, kind, out);
    close_spot(&above);
    return rc;
}

/* Whether a driver holds the lock of this instance in a folder of ours. */
static int is_locked(const spot_t *shm, const char *name, const char *instance)
{
    char path[FOLDER_NAME_BYTES + SHMD_NAME_BYTES + sizeof "//lock"];
    (void)snprintf(path, sizeof path, "%s/%s/lock", name, instance);
    int fd = openat(shm->fd, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    int locked = fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (fd >= 0)
        (void)close(fd);
    return locked;
}

/* Which of several: the one in which a driver of this instance runs, else the earliest. */
static int choose(const spot_t *shm, const own_t *own, int n, const char *instance)
{
    for (int i = 0; n > 1 && i < n; i++)
        if (is_locked(shm, own[i].name, instance))
            return i;
    return 0;
}

static int draw_name(char *name, size_t bytes)
{
    uint64_t random;
    if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
        return say(UNKNOWN, "getrandom: %s", strerror(errno));
    (void)snprintf(name, bytes, "shmdriver-%u.%016llx", (unsigned)geteuid(), (unsigned long long)random);
    return 0;
}

/* Two starters that find none at once make one each. Each looks again then, and whoever's is not the one to be chosen removes it
 * and takes the other. */
static int make_in_shm(const spot_t *shm, const search_t *search, shmd_folder_t *out)
{
    enum { TURNS = 16 };
    own_t own[FOLDERS_MAX];
    char drawn[FOLDER_NAME_BYTES] = "";
    int rc = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        spot_t above = {.fd = -1};
        int made = 0, n = list_own(shm, geteuid(), own);
        if (n < 0)
            return n;
        const char *name = n == 0 ? drawn : own[choose(shm, own, n, search->instance)].name;
        rc = n == 0 ? draw_name(drawn, sizeof drawn) : 0;
        rc = rc ? rc : make_below(shm, name, search->for_group ? 0711 : 0700, search->for_group, &made, &above);
        if (rc == 0 && made && (n = list_own(shm, geteuid(), own)) > 1 && strcmp(own[choose(shm, own, n, search->instance)].name, drawn) != 0) {
            close_spot(&above);
            (void)unlinkat(shm->fd, drawn, AT_REMOVEDIR);
            continue;
        }
        rc = rc ? rc : make_instance(&above, search, SHMD_PLACE_SHM, out);
        close_spot(&above);
        if (rc != 0 && made)
            (void)unlinkat(shm->fd, drawn, AT_REMOVEDIR);
        if (rc != ABSENT)
            return rc;
        /* a driver that ended has removed the empty folder meanwhile */
    }
    return rc;
}

static int make_in(uint32_t place, const search_t *search, shmd_folder_t *out)
{
    spot_t spot = {.fd = -1};
    int rc = open_place(place, search, &spot);
    if (rc == 0)
        rc = place == SHMD_PLACE_NAMED ? make_instance(&spot, search, place, out) : place == SHMD_PLACE_SYSTEM ? make_in_system(&spot, search, out)
           : place == SHMD_PLACE_SHM ? make_in_shm(&spot, search, out) : make_in_user(&spot, search, place, out);
    close_spot(&spot);
    return rc;
}

int shmd_folder_make(const char *instance, int for_group, shmd_folder_t *out)
{
    search_t search = {.instance = instance, .owner = geteuid(), .for_group = for_group};
    begin(out, 1);
    int rc = shmd_instance_check(instance);
    rc = rc ? rc : shmd_keep_standard_descriptors();
    int nobody = rc == SHMD_OK ? shmd_is_nobody(search.owner) : rc;
    if (nobody < 0)
        return nobody;
    if (nobody == 1)
        return shmd_fail(SHMD_E_SYSTEM, "uid %u, as which this driver runs, stands for every user who has no number in this user namespace: map one "
                         "(unshare --map-root-user), or run as another user", search.owner);
    if (environment("SHMDRIVER_RUNTIME_DIR") != NULL) {
        if (make_in(SHMD_PLACE_NAMED, &search, out) == 0)
            return SHMD_OK;
        return shmd_fail(SHMD_E_INVALID, "SHMDRIVER_RUNTIME_DIR cannot be used: %s. Nothing else is tried while it is set: name a folder of uid %u (or root) that "
                         "nobody else can write, or unset it", why, search.owner);
    }
    for (uint32_t place = SHMD_PLACE_SYSTEM; place <= SHMD_PLACE_SHM; place++) {
        rc = make_in(place, &search, out);
        if (rc == 0)
            return SHMD_OK;
        pass_over(rc);
    }
    return shmd_fail(SHMD_E_SYSTEM, "no place for the runtime folder of instance %s, as uid %u: %s. Set SHMDRIVER_RUNTIME_DIR to a folder of this user", instance,
                     search.owner, reasons);
}

/* ---- finding ----------------------------------------------------------------------------- */

/* INSTANCE below a place that was opened, which this closes. `above`: the folder between, NULL: none. */
static int find_below(spot_t *spot, const char *above, uint32_t above_owner, const search_t *search, uint32_t place, shmd_folder_t *out)
{
    int rc = above == NULL ? 0 : descend(spot, above, above_owner, 1, 0);
    rc = rc ? rc : descend(spot, search->instance, search->owner, 1, 0);
    if (rc == 0)
        hand_out(spot, place, out);
    close_spot(spot);
    return rc;
}

static int find_in_system(const search_t *search, shmd_folder_t *out)
{
    spot_t spot = {.fd = -1};
    search_t owned = *search;
    int rc = open_place(SHMD_PLACE_SYSTEM, search, &spot);
    if (search->owner == UINT32_MAX && geteuid() == 0)
        owned.owner = 0; /* root uses others' only when it names them */
    return rc ? rc : find_below(&spot, "shmdriver", 0, &owned, SHMD_PLACE_SYSTEM, out);
}

static int find_named(const search_t *search, shmd_folder_t *out)
{
    uint32_t owners[2] = {search->owner == UINT32_MAX ? geteuid() : search->owner, 0};
    int rc = ABSENT;
    for (int i = 0; i < (search->owner == UINT32_MAX ? 2 : 1) && rc != 0 && rc != UNKNOWN; i++) {
        search_t owned = {.instance = search->instance, .owner = owners[i]};
        spot_t spot = {.fd = -1};
        rc = open_place(SHMD_PLACE_NAMED, &owned, &spot);
        rc = rc ? rc : find_below(&spot, NULL, 0, &owned, SHMD_PLACE_NAMED, out);
    }
    return rc;
}

/* The nth own folder in /dev/shm; *is_last: there is none. */
static int find_in_shm(const search_t *search, uint32_t nth, int *is_last, shmd_folder_t *out)
{
    own_t own[FOLDERS_MAX];
    spot_t spot = {.fd = -1};
    int rc = open_place(SHMD_PLACE_SHM, search, &spot);
    int n = rc == 0 ? list_own(&spot, search->owner, own) : rc;
    *is_last = n < 0 || nth >= (uint32_t)n;
    if (!*is_last)
        return find_below(&spot, own[nth].name, search->owner, search, SHMD_PLACE_SHM, out);
    close_spot(&spot);
    return n < 0 ? n : ABSENT;
}

static int find_in(uint32_t place, uint32_t nth, const search_t *search, int *is_last, shmd_folder_t *out)
{
    spot_t spot = {.fd = -1};
    search_t owned = *search;
    *is_last = 1;
    if (place == SHMD_PLACE_NAMED)
        return find_named(search, out);
    if (place == SHMD_PLACE_SYSTEM)
        return find_in_system(search, out);
    if (owned.owner == UINT32_MAX)
        owned.owner = geteuid();
    if (place == SHMD_PLACE_SHM)
        return find_in_shm(&owned, nth, is_last, out);
    int rc = open_place(place, &owned, &spot);
    return rc ? rc : find_below(&spot, "shmdriver", owned.owner, &owned, place, out);
}

int shmd_folder_system(const char *instance, shmd_folder_t *out)
{
    search_t search = {.instance = instance, .owner = UINT32_MAX};
    begin(out, 1);
    int rc = environment("SHMDRIVER_RUNTIME_DIR") != NULL ? ABSENT : find_in_system(&search, out);
    return rc == 0 ? 1 : rc == UNKNOWN ? shmd_fail(SHMD_E_SYSTEM, "%s", why) : 0;
}

/* *cursor: which place, and in its lower half which of several there; the highest bit: some place could not be looked at. */
int shmd_folder_find(const char *instance, uint32_t owner, uint32_t *cursor, shmd_folder_t *out)
{
    enum { BITS = 16, PLACES = 4 };
    static const uint32_t unbound[PLACES] = {SHMD_PLACE_USER, SHMD_PLACE_XDG, SHMD_PLACE_SHM, SHMD_PLACE_SYSTEM};
    static const uint32_t bound[1] = {SHMD_PLACE_NAMED};
    const uint32_t some_unknown = (uint32_t)1 << 31;
    search_t search = {.instance = instance, .owner = owner};
    int is_bound = environment("SHMDRIVER_RUNTIME_DIR") != NULL;
    begin(out, *cursor == 0);
    int rc = shmd_instance_check(instance);
    rc = rc ? rc : shmd_keep_standard_descriptors();
    if (rc != SHMD_OK)
        return rc;
    for (;;) {
        uint32_t unknown = *cursor & some_unknown, at = *cursor & ~some_unknown, index = at >> BITS;
        if (index >= (is_bound ? 1 : PLACES))
            return unknown != 0 ? shmd_fail(SHMD_E_SYSTEM, "whether there are more runtime folders of instance %s cannot be told: %s", instance, reasons) : 0;
        int is_last = 1;
        uint32_t place = is_bound ? bound[0] : unbound[index];
        rc = find_in(place, at & ((1u << BITS) - 1), &search, &is_last, out);
        if (rc < 0 && rc != ABSENT)
            pass_over(rc);
        /* What another user keeps to himself is of no use to this one. */
        unknown |= rc == UNKNOWN && (owner == UINT32_MAX || owner == geteuid()) ? some_unknown : 0;
        *cursor = (is_last ? (index + 1) << BITS : at + 1) | unknown;
        if (rc == 0)
            return 1;
    }
}

/* ---- the end ----------------------------------------------------------------------------- */

/* Removes the folder that fd leads to, from the one above it; *above: that one. */
static int remove_from_above(int fd, const char *name, int *above)
{
    struct stat here, there;
    *above = openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*above < 0 || fstat(fd, &here) != 0 || fstatat(*above, name, &there, AT_SYMLINK_NOFOLLOW) != 0)
        return errno;
    if (here.st_ino != there.st_ino || here.st_dev != there.st_dev)
        return ENOENT;
    return unlinkat(*above, name, AT_REMOVEDIR) == 0 ? 0 : errno;
}

int shmd_folder_remove(const shmd_folder_t *folder)
{
    char path[SHMD_FOLDER_PATH_BYTES];
    int above = -1, shm = -1;
    memcpy(path, folder->path, sizeof path);
    char *name = strrchr(path, '/');
    if (folder->fd < 0 || name == NULL)
        return shmd_fail(SHMD_E_INVALID, "this is no runtime folder");
    *name++ = 0;
    int error = remove_from_above(folder->fd, name, &above);
    char *around = strrchr(path, '/');
    if (error == 0 && folder->place == SHMD_PLACE_SHM && around != NULL)
        (void)remove_from_above(above, around + 1, &shm); /* other instances may be in it */
    if (above >= 0)
        (void)close(above);
    if (shm >= 0)
        (void)close(shm);
    if (error == 0 || error == ENOENT || error == ENOTEMPTY || error == EEXIST)
        return SHMD_OK;
    errno = error;
    return shmd_fail_errno(SHMD_CALL_RUNTIME, "cannot remove %s", folder->path);
}

void shmd_folder_close(shmd_folder_t *folder)
{
    if (folder->fd >= 0)
        (void)close(folder->fd);
    folder->fd = -1;
}
