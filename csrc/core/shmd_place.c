/* shmd_place.c: the places in which runtime folders are, and how a path to one is walked.
 *
 * A path is resolved once; then each of its components is opened from the one above it, without following links, and looked at: it
 * has to be root's, the folder's owner's or this process's, and writable by nobody else unless it is sticky. What passed is held by
 * descriptor. */
#include "shmd_place.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- what was passed over ---------------------------------------------------------------- */

static _Thread_local char notes[SHMD_TEXT_BYTES];    /* that somebody should look at */
static _Thread_local char reasons[SHMD_TEXT_BYTES];  /* all of it */
static _Thread_local char why[SHMD_TEXT_BYTES / 2];  /* the present look */

int shmd_place_say(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    return code;
}

/* Names in it may be of other users. */
static void append(char *to, size_t bytes, const char *text)
{
    size_t used = strlen(to);
    if (strstr(to, text) != NULL)
        return; /* several places may fail for one cause */
    used += used == 0 || used + 3 > bytes ? 0 : (size_t)snprintf(to + used, bytes - used, "; ");
    shmd_escape(to + used, bytes - used, text);
}

void shmd_place_pass_over(int code)
{
    append(reasons, sizeof reasons, why);
    if (code == SHMD_PLACE_FOREIGN)
        append(notes, sizeof notes, why);
}

void shmd_place_begin(shmd_folder_t *out, int is_first)
{
    memset(out, 0, sizeof *out);
    out->fd = -1;
    if (is_first)
        notes[0] = reasons[0] = 0;
}

const char *shmd_place_why(void) { return why; }
const char *shmd_place_reasons(void) { return reasons; }
const char *shmd_folder_notes(void) { return notes; }

/* ---- one step ---------------------------------------------------------------------------- */

int shmd_place_failed(const char *what, const char *path, int error)
{
    int code = error == ENOENT ? SHMD_PLACE_ABSENT : error == ENOTDIR || error == ELOOP || error == ENAMETOOLONG ? SHMD_PLACE_FOREIGN : SHMD_PLACE_UNKNOWN;
    return shmd_place_say(code, "%s %s: %s", what, path, error == ENOTDIR ? "it is no folder, or a symbolic link" : shmd_errno_text(SHMD_CALL_FILE, error));
}

/* Who may own what stands above a folder. Users who have no number here are told apart nowhere: only what the system makes itself
 * (`/`, /dev/shm, /run) may be theirs, because in a user namespace of its own every process finds those so. */
static int check_owner(const shmd_spot_t *spot, uint32_t owner, int is_exact, int is_fixed)
{
    int nobody = shmd_is_nobody(spot->owner);
    if (nobody < 0)
        return shmd_place_say(SHMD_PLACE_UNKNOWN, "%s: %s", spot->path, shmd_last_error());
    if (nobody == 1 && is_fixed)
        return 0;
    if (nobody == 1)
        return shmd_place_say(SHMD_PLACE_FOREIGN, "%s belongs to uid %u, which is every user outside of this user namespace", spot->path, spot->owner);
    if (is_exact ? owner == UINT32_MAX || spot->owner == owner : spot->owner == 0 || spot->owner == owner || spot->owner == geteuid())
        return 0;
    return shmd_place_say(SHMD_PLACE_FOREIGN, "%s belongs to uid %u; expected uid %u%s", spot->path, spot->owner, owner == UINT32_MAX ? (uint32_t)geteuid() : owner,
               is_exact ? "" : " or root");
}

static int check_mode(const shmd_spot_t *spot, int is_exact)
{
    if ((spot->mode & 022) == 0 || (!is_exact && (spot->mode & S_ISVTX) != 0))
        return 0;
    return shmd_place_say(SHMD_PLACE_FOREIGN, "%s can be written by others (mode %04o, uid %u); expected at most 0755", spot->path, (unsigned)spot->mode & 07777u, spot->owner);
}

int shmd_spot_open(int parent, const char *name, uint32_t owner, int is_exact, int is_fixed, shmd_spot_t *out)
{
    struct stat status;
    out->fd = openat(parent, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (out->fd < 0)
        return shmd_place_failed("cannot open", out->path, errno);
    int rc = fstat(out->fd, &status) == 0 ? 0 : shmd_place_failed("cannot look at", out->path, errno);
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

int shmd_spot_append(const shmd_spot_t *parent, const char *name, shmd_spot_t *out)
{
    char path[SHMD_FOLDER_PATH_BYTES + NAME_MAX];
    const char *above = strcmp(parent->path, "/") == 0 ? "" : parent->path;
    int length = snprintf(path, sizeof path, "%s/%s", above, name);
    if (length < 0 || (size_t)length >= sizeof out->path)
        return shmd_place_say(SHMD_PLACE_FOREIGN, "%s/%.60s is longer than %d characters", parent->path, name, SHMD_FOLDER_PATH_BYTES - 1);
    memcpy(out->path, path, (size_t)length + 1);
    return 0;
}

int shmd_spot_below(const shmd_spot_t *parent, const char *name, uint32_t owner, int is_exact, int is_fixed, shmd_spot_t *out)
{
    shmd_spot_t next = {.fd = -1};
    int rc = shmd_spot_append(parent, name, &next);
    rc = rc ? rc : shmd_spot_open(parent->fd, name, owner, is_exact, is_fixed, &next);
    struct stat status; /* what its owner keeps to himself holds nothing of this user */
    if (rc == SHMD_PLACE_UNKNOWN && parent->owner != geteuid() && fstatat(parent->fd, name, &status, AT_SYMLINK_NOFOLLOW) != 0 && errno == EACCES)
        return SHMD_PLACE_FOREIGN;
    if (rc == 0)
        *out = next;
    return rc;
}

void shmd_spot_close(shmd_spot_t *spot)
{
    if (spot->fd >= 0)
        (void)close(spot->fd);
    spot->fd = -1;
}

/* Goes one down, and gives up where it stood. */
int shmd_spot_descend(shmd_spot_t *spot, const char *name, uint32_t owner, int is_exact, int is_fixed)
{
    shmd_spot_t next = {.fd = -1};
    int rc = shmd_spot_below(spot, name, owner, is_exact, is_fixed, &next);
    shmd_spot_close(spot);
    if (rc == 0)
        *spot = next;
    return rc;
}

/* Shared by a group: whoever is in it has to pass. The caller closes the spot. */
static int check_passable(const shmd_spot_t *spot, int for_group)
{
    if (!for_group || (spot->mode & (S_IXGRP | S_IXOTH)) != 0)
        return 0;
    return shmd_place_say(SHMD_PLACE_ABSENT, "%s can be entered by its owner only (mode %04o), and shm.group is set", spot->path, (unsigned)spot->mode & 07777u);
}

/* From the root down a path. is_fixed: the system's own path. */
static int walk(const char *path, const shmd_search_t *search, int is_fixed, shmd_spot_t *out)
{
    char resolved[PATH_MAX], *rest = resolved;
    out->fd = -1;
    if (realpath(path, resolved) == NULL)
        return shmd_place_failed("cannot resolve", path, errno);
    if (strlen(resolved) >= sizeof out->path)
        return shmd_place_say(SHMD_PLACE_FOREIGN, "%.60s... is longer than %d characters", resolved, SHMD_FOLDER_PATH_BYTES - 1);
    (void)snprintf(out->path, sizeof out->path, "/");
    int rc = shmd_spot_open(AT_FDCWD, "/", search->owner, 0, 1, out);
    for (char *name; rc == 0 && (name = strsep(&rest, "/")) != NULL;) {
        rc = *name == 0 ? 0 : shmd_spot_descend(out, name, search->owner, 0, is_fixed);
        rc = rc ? rc : check_passable(out, search->for_group);
    }
    if (rc != 0)
        shmd_spot_close(out);
    return rc;
}

/* ---- places ------------------------------------------------------------------------------ */

const char *shmd_place_environment(const char *name)
{
    const char *value = secure_getenv(name);
    return value == NULL || *value == 0 ? NULL : value;
}

/* Whether a path leads through a folder that another user keeps to himself. */
static int is_kept_by_another(const char *path)
{
    struct stat status;
    char above[PATH_MAX];
    int length = snprintf(above, sizeof above, "%s", path), rc = stat(path, &status);
    if (rc == 0 || length < 0 || (size_t)length >= sizeof above)
        return 0;
    while (rc != 0 && errno == EACCES && strrchr(above, '/') > above) {
        *strrchr(above, '/') = 0;
        rc = stat(above, &status);
    }
    return rc == 0 && status.st_uid != geteuid();
}

int shmd_place_open(uint32_t place, const shmd_search_t *search, shmd_spot_t *out)
{
    const char *named = shmd_place_environment(place == SHMD_PLACE_NAMED ? "SHMDRIVER_RUNTIME_DIR" : "XDG_RUNTIME_DIR");
    shmd_search_t walker = *search;
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
        rc = rc ? rc : shmd_spot_descend(out, uid, walker.owner, 1, 0);
        break;
    case SHMD_PLACE_XDG:
        if (named == NULL)
            return shmd_place_say(SHMD_PLACE_ABSENT, "XDG_RUNTIME_DIR is not set");
        if (walker.owner != geteuid())
            return shmd_place_say(SHMD_PLACE_ABSENT, "XDG_RUNTIME_DIR is another user's");
        rc = named[0] == '/' ? walk(named, &walker, 0, out) : shmd_place_say(SHMD_PLACE_FOREIGN, "XDG_RUNTIME_DIR is %.80s, which is no absolute path", named);
        rc = rc == SHMD_PLACE_UNKNOWN && is_kept_by_another(named) ? SHMD_PLACE_FOREIGN : rc;
        rc = rc ? rc : check_owner(out, walker.owner, 1, 0);
        rc = rc ? rc : check_mode(out, 1);
        break;
    default:
        return walk("/dev/shm", &walker, 1, out);
    }
    rc = rc ? rc : check_passable(out, search->for_group);
    if (rc != 0)
        shmd_spot_close(out);
    return rc;
}

static int by_inode(const void *a, const void *b)
{
    ino_t first = ((const shmd_own_t *)a)->inode, second = ((const shmd_own_t *)b)->inode;
    return (first > second) - (first < second);
}

/* Anybody can make such a name: whose it is decides. */
int shmd_place_list_own(const shmd_spot_t *shm, uint32_t owner, shmd_own_t *out)
{
    char prefix[32];
    int n = 0, length = snprintf(prefix, sizeof prefix, "shmdriver-%u.", owner);
    int fd = openat(shm->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (folder == NULL) {
        int rc = shmd_place_failed("cannot list", shm->path, errno == ENOENT ? EIO : errno);
        if (fd >= 0)
            (void)close(fd);
        return rc;
    }
    errno = 0;
    for (struct dirent *entry; n < SHMD_OWN_FOLDERS_MAX && (entry = readdir(folder)) != NULL; errno = 0) {
        struct stat status;
        size_t name_bytes = strlen(entry->d_name) + 1;
        if (strncmp(entry->d_name, prefix, (size_t)length) != 0 || name_bytes > sizeof out[n].name ||
            fstatat(shm->fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISDIR(status.st_mode) || status.st_uid != owner)
            continue;
        out[n].inode = status.st_ino;
        memcpy(out[n++].name, entry->d_name, name_bytes);
    }
    int error = n < SHMD_OWN_FOLDERS_MAX ? errno : 0;
    (void)closedir(folder);
    qsort(out, (size_t)n, sizeof *out, by_inode);
    return error == 0 ? n : shmd_place_failed("cannot list", shm->path, error == ENOENT ? EIO : error);
}

void shmd_spot_hand_out(shmd_spot_t *spot, uint32_t place, shmd_folder_t *out)
{
    *out = (shmd_folder_t){.fd = spot->fd, .place = place, .owner = spot->owner};
    memcpy(out->path, spot->path, sizeof out->path);
    spot->fd = -1;
}
