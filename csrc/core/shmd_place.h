/* shmd_place.h: the places of runtime folders and the steps of a path, as far as making and finding share them. A thread's own:
 * what the last look found wrong, and what was passed over. */
#ifndef SHMD_PLACE_H
#define SHMD_PLACE_H

#include "../shmd_internal.h"

/* What a look at a place ends with, unless with a descriptor. */
enum { SHMD_PLACE_ABSENT = -1, SHMD_PLACE_FOREIGN = -2, SHMD_PLACE_UNKNOWN = -3 };

enum { SHMD_OWN_FOLDERS_MAX = 64, SHMD_OWN_NAME_BYTES = 64 };

typedef struct shmd_spot {
    int fd;
    uint32_t owner;
    mode_t mode;
    char path[SHMD_FOLDER_PATH_BYTES];
} shmd_spot_t;

typedef struct shmd_search {
    const char *instance;
    uint32_t owner;             /* whose folder; UINT32_MAX: of this user, or in the system's place of anybody */
    int for_group;              /* 1: other users have to pass */
} shmd_search_t;

/* A user's own folder in /dev/shm. */
typedef struct shmd_own { ino_t inode; char name[SHMD_OWN_NAME_BYTES]; } shmd_own_t;

int shmd_place_say(int code, const char *format, ...) __attribute__((format(printf, 2, 3))); /* notes what is wrong; code */
int shmd_place_failed(const char *what, const char *path, int error);   /* likewise, of a system call; the code that its errno means */
void shmd_place_pass_over(int code);            /* what was noted last is the reason why a place was not used */
void shmd_place_begin(shmd_folder_t *out, int is_first);
const char *shmd_place_why(void);               /* what was noted last */
const char *shmd_place_reasons(void);           /* of all that were passed over */
const char *shmd_place_environment(const char *name); /* NULL: not set, empty, or this process may do more than its user */

/* Opens `name` in parent; its path stands in out. is_exact: it has to be owner's own, and writable by nobody else even if it is
 * sticky; is_fixed: it is the system's. 0 or SHMD_PLACE_*. */
int shmd_spot_open(int parent, const char *name, uint32_t owner, int is_exact, int is_fixed, shmd_spot_t *out);
int shmd_spot_below(const shmd_spot_t *parent, const char *name, uint32_t owner, int is_exact, int is_fixed, shmd_spot_t *out);
int shmd_spot_descend(shmd_spot_t *spot, const char *name, uint32_t owner, int is_exact, int is_fixed); /* gives up where it stood */
int shmd_spot_append(const shmd_spot_t *parent, const char *name, shmd_spot_t *out);                    /* the path only */
void shmd_spot_close(shmd_spot_t *spot);
void shmd_spot_hand_out(shmd_spot_t *spot, uint32_t place, shmd_folder_t *out);

/* Where the folders of a user are kept: what is above INSTANCE, as far as others make it. */
int shmd_place_open(uint32_t place, const shmd_search_t *search, shmd_spot_t *out);
/* The earliest first, as far as the numbers of their inodes tell. How many, at most SHMD_OWN_FOLDERS_MAX; SHMD_PLACE_UNKNOWN. */
int shmd_place_list_own(const shmd_spot_t *shm, uint32_t owner, shmd_own_t *out);

#endif
