/* shmd_standard_descriptors.c: no descriptor of this library is ever 0, 1 or 2.
 *
 * The kernel gives the lowest free number. In a process that runs with stdout closed, the next
 * segment that is opened would be 1, and each line that the program prints would be written into
 * it. So a closed standard descriptor is opened on /dev/null before anything else is opened. It
 * stays there, also for the programs that this process starts. */
#include "../shmd_internal.h"

#include <fcntl.h>
#include <unistd.h>

int shmd_keep_standard_descriptors(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) >= 0)
            continue;
        int opened = open("/dev/null", O_RDWR); /* the lowest free number: this one */
        if (opened < 0) {
            int rc = shmd_fail_errno(SHMD_CALL_OTHER, "standard descriptor %d is closed, and /dev/null cannot be opened "
                                     "in its place", fd);
            errno = EBADF; /* ENOENT would say that a segment does not exist */
            return rc;
        }
        if (opened > STDERR_FILENO)
            (void)close(opened); /* another thread has opened that number meanwhile */
    }
    return SHMD_OK;
}
