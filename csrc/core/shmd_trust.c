/* shmd_trust.c: whose drivers this process uses. /dev/shm is a public folder, so a name there says nothing about who made it;
 * the owner that fstat tells of an open descriptor does. A common group is no reason to trust anybody. */
#include "../shmd_internal.h"

#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char owners_variable[] = "SHMDRIVER_TRUST_OWNERS";

/* ---- nobody ------------------------------------------------------------------------------ */

/* Who has no number in a user namespace is shown there under this one. */
static uint32_t overflow_uid(void)
{
    enum { USUAL = 65534 };
    static uint32_t known; /* + 1 */
    uint32_t value = shmd_load32_relaxed(&known);
    if (value != 0)
        return value - 1;
    unsigned found;
    FILE *file = fopen("/proc/sys/kernel/overflowuid", "re");
    if (file == NULL)
        return USUAL;
    if (fscanf(file, "%u", &found) == 1)
        shmd_store32_relaxed(&known, (value = found + 1));
    (void)fclose(file);
    return value == 0 ? USUAL : value - 1;
}

/* 1: this process is in a user namespace in which some users have no number; 0: it is not; SHMD_E_SYSTEM. */
static int some_have_no_number(void)
{
    unsigned long long first, outside, count, mapped = 0;
    FILE *file = fopen("/proc/self/uid_map", "re");
    if (file == NULL && errno == ENOENT && access("/proc/self/stat", F_OK) == 0)
        return 0; /* this kernel has no user namespaces */
    if (file == NULL)
        return shmd_fail_errno(SHMD_CALL_OTHER, "cannot read /proc/self/uid_map, so whether uid %u is one user here or many is not known", overflow_uid());
    while (fscanf(file, "%llu %llu %llu", &first, &outside, &count) == 3)
        mapped += count;
    (void)fclose(file);
    return mapped < UINT32_MAX;
}

int shmd_is_nobody(uint32_t uid)
{
    int rc = shmd_keep_standard_descriptors();
    return rc != SHMD_OK ? rc : uid == overflow_uid() ? some_have_no_number() : 0;
}

int shmd_is_own_or_roots(uint32_t uid) { return (uid == geteuid() || uid == 0) && shmd_is_nobody(uid) == 0; }

/* ---- owners ------------------------------------------------------------------------------ */

static int look_up(const char *name, uint32_t *uid)
{
    struct passwd entry, *found = NULL;
    size_t bytes = 4096;
    char *buffer = NULL;
    int error = ERANGE;
    while (error == ERANGE && bytes <= 1 << 20) {
        free(buffer);
        buffer = malloc(bytes);
        if (buffer == NULL)
            return shmd_fail(SHMD_E_NO_MEMORY, "no memory for the entry of user %.64s", name);
        error = getpwnam_r(name, &entry, buffer, bytes, &found);
        bytes *= 4;
    }
    if (found != NULL)
        *uid = entry.pw_uid;
    free(buffer);
    if (found != NULL)
        return SHMD_OK;
    if (error == 0 || error == ENOENT || error == ESRCH)
        return shmd_fail(SHMD_E_INVALID, "there is no user %.64s on this machine: give the name or the number of one", name);
    errno = error;
    return shmd_fail_errno(SHMD_CALL_OTHER, "user %.64s cannot be looked up", name);
}

int shmd_owner_named(const char *owner, uint32_t *uid)
{
    size_t digits = strspn(owner, "0123456789");
    if (digits == 0 || owner[digits] != 0)
        return owner[0] == 0 ? shmd_fail(SHMD_E_INVALID, "the owner is empty: give the name or the number of a user") : look_up(owner, uid);
    unsigned long long number = strtoull(owner, NULL, 10);
    if (digits > 10 || number >= UINT32_MAX)
        return shmd_fail(SHMD_E_INVALID, "owner %.64s: a user's number is below %u", owner, UINT32_MAX);
    *uid = (uint32_t)number;
    return SHMD_OK;
}

/* The users of $SHMDRIVER_TRUST_OWNERS, a list with commas: how many; negative. */
static int named_by_environment(uint32_t *out, uint32_t room)
{
    const char *at = secure_getenv(owners_variable);
    uint32_t n = 0;
    while (at != NULL && *at != 0) {
        char name[128];
        size_t length = strcspn(at, ",");
        if (length >= sizeof name || n == room)
            return shmd_fail(SHMD_E_INVALID, "$%s: at most %u users, with names shorter than %zu characters", owners_variable, room, sizeof name);
        memcpy(name, at, length);
        name[length] = 0;
        if (length != 0) {
            char text[SHMD_TEXT_BYTES];
            int rc = shmd_owner_named(name, &out[n++]);
            (void)snprintf(text, sizeof text, "%s", shmd_last_error());
            if (rc != SHMD_OK)
                return shmd_fail(rc, "$%s: %s", owners_variable, text);
        }
        at += length + (at[length] == ',');
    }
    return (int)n;
}

static int is_in(uint32_t uid, const uint32_t *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (list[i] == uid)
            return 1;
    return 0;
}

/* Adds a user whom something speaks for. */
static int add(uint32_t uid, uint32_t *list, uint32_t *n)
{
    int nobody = shmd_is_nobody(uid);
    if (nobody == 0 && *n < SHMD_OWNERS_MAX && !is_in(uid, list, *n))
        list[(*n)++] = uid;
    return nobody < 0 ? nobody : SHMD_OK;
}

int shmd_owners_trusted(const shmd_folder_t *folder, uint32_t *out)
{
    uint32_t n = 0, named[SHMD_OWNERS_MAX / 2];
    int rc = add(geteuid(), out, &n);
    rc = rc ? rc : add(0, out, &n);
    if (rc == SHMD_OK && folder != NULL && folder->place == SHMD_PLACE_SYSTEM && geteuid() != 0)
        rc = add(folder->owner, out, &n); /* root has put it there. Root itself trusts only whom it names: others could make it write */
    int from_environment = rc == SHMD_OK ? named_by_environment(named, SHMD_OWNERS_MAX / 2) : rc;
    rc = from_environment < 0 ? from_environment : SHMD_OK;
    for (int i = 0; rc == SHMD_OK && i < from_environment; i++)
        rc = add(named[i], out, &n);
    return rc ? rc : (int)n;
}

int shmd_trusts(uint32_t owner, uint32_t named, const shmd_folder_t *folder)
{
    uint32_t owners[SHMD_OWNERS_MAX];
    if (named != UINT32_MAX && owner == named) {
        int nobody = shmd_is_nobody(owner);
        return nobody < 0 ? nobody : !nobody;
    }
    int n = shmd_owners_trusted(folder, owners);
    return n < 0 ? n : is_in(owner, owners, (uint32_t)n);
}
