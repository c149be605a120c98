/* shmd_life.c: the sign of life that a driver shows on its authority: a read lock of an open file description.
 *
 * A read lock, because a reader can take one, too, and so nobody who may only read the authority can keep a driver from taking
 * its own: a write lock of a stranger would need permission to write. Of a file description, because such a lock is not lost when
 * some other part of the process closes the file, it ends with its last descriptor, however the process ends, and it shows in
 * every PID namespace. It excludes nobody: that is the business of `lock` in the runtime folder. */
#include "../shmd_internal.h"

#include <fcntl.h>
#include <unistd.h>

int shmd_life_show(int fd)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    return fcntl(fd, F_OFD_SETLK, &lock) == 0 ? SHMD_OK : shmd_fail_errno(SHMD_CALL_OTHER, "cannot set the read lock on the authority that shows that its driver lives");
}

/* A write lock would meet every other lock; it is asked for and not taken, so a descriptor that may only read is enough. */
int shmd_life_seen(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_GETLK, &lock) != 0)
        return shmd_fail_errno(SHMD_CALL_OTHER, "cannot look for the lock on the authority that shows that its driver lives");
    return lock.l_type != F_UNLCK;
}
