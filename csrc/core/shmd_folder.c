/* shmd_folder.c: the runtime folder of an instance: how a driver makes it, and how it goes.
 *
 * The first place is taken that has room for a driver's files. Making and finding walk the same paths (shmd_place.c), because
 * a driver and a client that look in different places do not meet. */
#include "shmd_place.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

enum { TURNS = 16, ROOM_BYTES = 16 << 10 };

/* The folder `name` of this user in parent, made where it is not there; *made: whether it was. */
static int make_below(const shmd_spot_t *parent, const char *name, mode_t mode, int for_group, int *made, shmd_spot_t *out)
{
    shmd_spot_t next = {.fd = -1};
    int rc = shmd_spot_append(parent, name, &next);
    if (rc != 0)
        return rc;
    *made = mkdirat(parent->fd, name, 0700) == 0;
    if (!*made && errno != EEXIST)
        return shmd_place_failed("cannot make", next.path, errno);
    rc = shmd_spot_open(parent->fd, name, geteuid(), 1, 0, &next);
    /* The umask is none of ours. By name: the parent is nobody else's, or sticky, so that is the folder which was opened. */
    int is_changed = rc == 0 && (*made || (for_group && (next.mode & 011) == 0));
    if (is_changed && fchmodat(parent->fd, name, mode, 0) != 0)
        rc = shmd_place_failed("cannot change the mode of", next.path, errno);
    if (rc == 0)
        *out = next;
    else
        shmd_spot_close(&next);
    if (rc != 0 && *made)
        (void)unlinkat(parent->fd, name, AT_REMOVEDIR);
    return rc;
}

/* Whether there is room for a driver's files there: not where the file system is read-only or full. */
static int probe(const shmd_spot_t *folder)
{
    int fd = openat(folder->fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno == EOPNOTSUPP || errno == EISDIR ? 0 : shmd_place_say(SHMD_PLACE_UNKNOWN, "no file can be made in %s: %s", folder->path, shmd_errno_text(SHMD_CALL_FILE, errno));
    int error = posix_fallocate(fd, 0, ROOM_BYTES);
    (void)close(fd);
    return error == 0 || error == EOPNOTSUPP || error == EINVAL ? 0 : shmd_place_say(SHMD_PLACE_UNKNOWN, "no file can be made in %s: %s", folder->path, shmd_errno_text(SHMD_CALL_FILE, error));
}

static int is_removed(const shmd_spot_t *folder)
{
    struct stat status;
    return fstat(folder->fd, &status) == 0 && status.st_nlink == 0;
}

static int make_instance_once(const shmd_spot_t *parent, const shmd_search_t *search, uint32_t place, shmd_folder_t *out)
{
    shmd_spot_t folder = {.fd = -1};
    int made = 0;
    int rc = make_below(parent, search->instance, search->for_group ? 0711 : 0700, search->for_group, &made, &folder);
    if (rc != 0)
        return rc;
    rc = probe(&folder);
    if (rc == 0)
        shmd_spot_hand_out(&folder, place, out);
    else if (is_removed(&folder))
        rc = SHMD_PLACE_ABSENT;
    else if (made)
        (void)unlinkat(parent->fd, search->instance, AT_REMOVEDIR);
    shmd_spot_close(&folder);
    return rc;
}

/* Others of this user, who end or are refused, remove an empty folder: also one that this process has just found. */
static int make_instance(const shmd_spot_t *parent, const shmd_search_t *search, uint32_t place, shmd_folder_t *out)
{
    int rc = SHMD_PLACE_ABSENT;
    for (int turn = 0; turn < TURNS && rc == SHMD_PLACE_ABSENT; turn++)
        rc = make_instance_once(parent, search, place, out);
    return rc;
}

/* /run/shmdriver is root's. Others have a folder there only where root has made it, as systemd does (RuntimeDirectory=). */
static int make_in_system(shmd_spot_t *place, const shmd_search_t *search, shmd_folder_t *out)
{
    shmd_spot_t above = {.fd = -1}, folder = {.fd = -1};
    int made;
    if (geteuid() == 0) {
        int rc = make_below(place, "shmdriver", 0755, 0, &made, &above);
        rc = rc ? rc : make_instance(&above, search, SHMD_PLACE_SYSTEM, out);
        shmd_spot_close(&above);
        return rc;
    }
    int rc = shmd_spot_below(place, "shmdriver", 0, 1, 0, &above);
    if (rc == 0 && (rc = shmd_spot_below(&above, search->instance, geteuid(), 1, 0, &folder)) == SHMD_PLACE_FOREIGN)
        rc = SHMD_PLACE_ABSENT; /* another user's of the same name: nothing that anybody should look at */
    rc = rc ? rc : probe(&folder);
    if (rc == 0)
        shmd_spot_hand_out(&folder, SHMD_PLACE_SYSTEM, out);
    shmd_spot_close(&folder);
    shmd_spot_close(&above);
    return rc;
}

static int make_in_user(const shmd_spot_t *place, const shmd_search_t *search, uint32_t kind, shmd_folder_t *out)
{
    shmd_spot_t above = {.fd = -1};
    int made;
    int rc = make_below(place, "shmdriver", search->for_group ? 0711 : 0700, search->for_group, &made, &above);
    rc = rc ? rc : make_instance(&above, search, kind, out);
    shmd_spot_close(&above);
    return rc;
}

/* Whether a driver holds the lock of this instance in a folder of ours. */
static int is_locked(const shmd_spot_t *shm, const char *name, const char *instance)
{
    char path[SHMD_OWN_NAME_BYTES + SHMD_NAME_BYTES + sizeof "//lock"];
    (void)snprintf(path, sizeof path, "%s/%s/lock", name, instance);
    int fd = openat(shm->fd, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    int locked = fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (fd >= 0)
        (void)close(fd);
    return locked;
}

/* Which of several: the one in which a driver of this instance runs, else the earliest. */
static int choose(const shmd_spot_t *shm, const shmd_own_t *own, int n, const char *instance)
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
        return shmd_place_say(SHMD_PLACE_UNKNOWN, "getrandom: %s", shmd_errno_text(SHMD_CALL_FILE, errno));
    (void)snprintf(name, bytes, "shmdriver-%u.%016llx", (unsigned)geteuid(), (unsigned long long)random);
    return 0;
}

/* Two starters that find none at once make one each. Each looks again then, and whoever's is not the one to be chosen removes it
 * and takes the other. */
static int make_in_shm(const shmd_spot_t *shm, const shmd_search_t *search, shmd_folder_t *out)
{
    shmd_own_t own[SHMD_OWN_FOLDERS_MAX];
    char drawn[SHMD_OWN_NAME_BYTES] = "";
    int rc = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        shmd_spot_t above = {.fd = -1};
        int made = 0, n = shmd_place_list_own(shm, geteuid(), own);
        if (n < 0)
            return n;
        const char *name = n == 0 ? drawn : own[choose(shm, own, n, search->instance)].name;
        rc = n == 0 ? draw_name(drawn, sizeof drawn) : 0;
        rc = rc ? rc : make_below(shm, name, search->for_group ? 0711 : 0700, search->for_group, &made, &above);
        if (rc == 0 && made && (n = shmd_place_list_own(shm, geteuid(), own)) > 1 && strcmp(own[choose(shm, own, n, search->instance)].name, drawn) != 0) {
            shmd_spot_close(&above);
            (void)unlinkat(shm->fd, drawn, AT_REMOVEDIR);
            continue;
        }
        rc = rc ? rc : make_instance(&above, search, SHMD_PLACE_SHM, out);
        shmd_spot_close(&above);
        if (rc != 0 && made)
            (void)unlinkat(shm->fd, drawn, AT_REMOVEDIR);
        if (rc != SHMD_PLACE_ABSENT)
            return rc;
        /* a driver that ended has removed the empty folder meanwhile */
    }
    return rc;
}

static int make_in(uint32_t place, const shmd_search_t *search, shmd_folder_t *out)
{
    shmd_spot_t spot = {.fd = -1};
    int rc = shmd_place_open(place, search, &spot);
    if (rc == 0)
        rc = place == SHMD_PLACE_NAMED ? make_instance(&spot, search, place, out) : place == SHMD_PLACE_SYSTEM ? make_in_system(&spot, search, out)
           : place == SHMD_PLACE_SHM ? make_in_shm(&spot, search, out) : make_in_user(&spot, search, place, out);
    shmd_spot_close(&spot);
    return rc;
}

int shmd_folder_make(const char *instance, int for_group, shmd_folder_t *out)
{
    shmd_search_t search = {.instance = instance, .owner = geteuid(), .for_group = for_group};
    shmd_place_begin(out, 1);
    int rc = shmd_instance_check(instance);
    rc = rc ? rc : shmd_keep_standard_descriptors();
    int nobody = rc == SHMD_OK ? shmd_is_nobody(search.owner) : rc;
    if (nobody < 0)
        return nobody;
    if (nobody == 1)
        return shmd_fail(SHMD_E_SYSTEM, "uid %u, as which this driver runs, stands for every user who has no number in this user namespace: map one "
                         "(unshare --map-root-user), or run as another user", search.owner);
    if (shmd_place_environment("SHMDRIVER_RUNTIME_DIR") != NULL) {
        if (make_in(SHMD_PLACE_NAMED, &search, out) == 0)
            return SHMD_OK;
        return shmd_fail(SHMD_E_INVALID, "SHMDRIVER_RUNTIME_DIR cannot be used: %s. Nothing else is tried while it is set: name a folder of uid %u (or root) that "
                         "nobody else can write, or unset it", shmd_place_why(), search.owner);
    }
    for (uint32_t place = SHMD_PLACE_SYSTEM; place <= SHMD_PLACE_SHM; place++) {
        rc = make_in(place, &search, out);
        if (rc == 0)
            return SHMD_OK;
        shmd_place_pass_over(rc);
    }
    return shmd_fail(SHMD_E_SYSTEM, "no place for the runtime folder of instance %s, as uid %u: %s. Set SHMDRIVER_RUNTIME_DIR to a folder of this user", instance,
                     search.owner, shmd_place_reasons());
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
