/* shmd_folder_find.c: the runtime folders of an instance that exist, in all the places of a user and of the system. */
#include "shmd_place.h"

#include <unistd.h>

/* INSTANCE below a place that was opened, which this closes. `above`: the folder between, NULL: none. */
static int find_below(shmd_spot_t *spot, const char *above, uint32_t above_owner, const shmd_search_t *search, uint32_t place, shmd_folder_t *out)
{
    int rc = above == NULL ? 0 : shmd_spot_descend(spot, above, above_owner, 1, 0);
    rc = rc ? rc : shmd_spot_descend(spot, search->instance, search->owner, 1, 0);
    if (rc == 0)
        shmd_spot_hand_out(spot, place, out);
    shmd_spot_close(spot);
    return rc;
}

static int find_in_system(const shmd_search_t *search, shmd_folder_t *out)
{
    shmd_spot_t spot = {.fd = -1};
    shmd_search_t owned = *search;
    int rc = shmd_place_open(SHMD_PLACE_SYSTEM, search, &spot);
    if (search->owner == UINT32_MAX && geteuid() == 0)
        owned.owner = 0; /* root uses others' only when it names them */
    return rc ? rc : find_below(&spot, "shmdriver", 0, &owned, SHMD_PLACE_SYSTEM, out);
}

static int find_named(const shmd_search_t *search, shmd_folder_t *out)
{
    uint32_t owners[2] = {search->owner == UINT32_MAX ? geteuid() : search->owner, 0};
    int rc = SHMD_PLACE_ABSENT;
    for (int i = 0; i < (search->owner == UINT32_MAX ? 2 : 1) && rc != 0 && rc != SHMD_PLACE_UNKNOWN; i++) {
        shmd_search_t owned = {.instance = search->instance, .owner = owners[i]};
        shmd_spot_t spot = {.fd = -1};
        rc = shmd_place_open(SHMD_PLACE_NAMED, &owned, &spot);
        rc = rc ? rc : find_below(&spot, NULL, 0, &owned, SHMD_PLACE_NAMED, out);
    }
    return rc;
}

/* The nth own folder in /dev/shm; *is_last: there is none. */
static int find_in_shm(const shmd_search_t *search, uint32_t nth, int *is_last, shmd_folder_t *out)
{
    shmd_own_t own[SHMD_OWN_FOLDERS_MAX];
    shmd_spot_t spot = {.fd = -1};
    int rc = shmd_place_open(SHMD_PLACE_SHM, search, &spot);
    int n = rc == 0 ? shmd_place_list_own(&spot, search->owner, own) : rc;
    *is_last = n < 0 || nth >= (uint32_t)n;
    if (!*is_last)
        return find_below(&spot, own[nth].name, search->owner, search, SHMD_PLACE_SHM, out);
    shmd_spot_close(&spot);
    return n < 0 ? n : SHMD_PLACE_ABSENT;
}

static int find_in(uint32_t place, uint32_t nth, const shmd_search_t *search, int *is_last, shmd_folder_t *out)
{
    shmd_spot_t spot = {.fd = -1};
    shmd_search_t owned = *search;
    *is_last = 1;
    if (place == SHMD_PLACE_NAMED)
        return find_named(search, out);
    if (place == SHMD_PLACE_SYSTEM)
        return find_in_system(search, out);
    if (owned.owner == UINT32_MAX)
        owned.owner = geteuid();
    if (place == SHMD_PLACE_SHM)
        return find_in_shm(&owned, nth, is_last, out);
    int rc = shmd_place_open(place, &owned, &spot);
    return rc ? rc : find_below(&spot, "shmdriver", owned.owner, &owned, place, out);
}

int shmd_folder_system(const char *instance, shmd_folder_t *out)
{
    shmd_search_t search = {.instance = instance, .owner = UINT32_MAX};
    shmd_place_begin(out, 1);
    int rc = shmd_place_environment("SHMDRIVER_RUNTIME_DIR") != NULL ? SHMD_PLACE_ABSENT : find_in_system(&search, out);
    return rc == 0 ? 1 : rc == SHMD_PLACE_UNKNOWN ? shmd_fail(SHMD_E_SYSTEM, "%s", shmd_place_why()) : 0;
}

/* *cursor: which place, and in its lower half which of several there; the highest bit: some place could not be looked at. */
int shmd_folder_find(const char *instance, uint32_t owner, uint32_t *cursor, shmd_folder_t *out)
{
    enum { BITS = 16, PLACES = 4 };
    static const uint32_t unbound[PLACES] = {SHMD_PLACE_USER, SHMD_PLACE_XDG, SHMD_PLACE_SHM, SHMD_PLACE_SYSTEM};
    static const uint32_t bound[1] = {SHMD_PLACE_NAMED};
    const uint32_t some_unknown = (uint32_t)1 << 31;
    shmd_search_t search = {.instance = instance, .owner = owner};
    int is_bound = shmd_place_environment("SHMDRIVER_RUNTIME_DIR") != NULL;
    shmd_place_begin(out, *cursor == 0);
    int rc = shmd_instance_check(instance);
    rc = rc ? rc : shmd_keep_standard_descriptors();
    if (rc != SHMD_OK)
        return rc;
    for (;;) {
        uint32_t unknown = *cursor & some_unknown, at = *cursor & ~some_unknown, index = at >> BITS;
        if (index >= (is_bound ? 1 : PLACES))
            return unknown != 0 ? shmd_fail(SHMD_E_SYSTEM, "whether there are more runtime folders of instance %s cannot be told: %s", instance, shmd_place_reasons()) : 0;
        int is_last = 1;
        uint32_t place = is_bound ? bound[0] : unbound[index];
        rc = find_in(place, at & ((1u << BITS) - 1), &search, &is_last, out);
        if (rc < 0 && rc != SHMD_PLACE_ABSENT)
            shmd_place_pass_over(rc);
        /* A folder that only another user can read is of no use to this one. */
        unknown |= rc == SHMD_PLACE_UNKNOWN && (owner == UINT32_MAX || owner == geteuid()) ? some_unknown : 0;
        *cursor = (is_last ? (index + 1) << BITS : at + 1) | unknown;
        if (rc == 0)
            return 1;
    }
}
