/* shmd_process.c: who a process is: start time, PID namespace. */
#include "shmd_internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

int shmd_process_start_time(int64_t pid, uint64_t *start_time)
{
    char path[64];
    char text[1024];
    if (pid == 0)
        (void)snprintf(path, sizeof path, "/proc/self/stat");
    else
        (void)snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return shmd_fail_errno("%s", path);
    ssize_t got = read(fd, text, sizeof text - 1);
    (void)close(fd);
    if (got <= 0)
        return shmd_fail_errno("%s", path);
    text[got] = 0;
    char *field = strrchr(text, ')'); /* the command may hold spaces and parentheses: count from its end */
    if (field != NULL && field[1] == ' ' && (field[2] == 'Z' || field[2] == 'X'))
        return shmd_fail(SHMD_E_SYSTEM, "process %lld has ended and was not waited for", (long long)pid);
    for (int i = 2; field != NULL && i < 22; i++) {
        field = strchr(field, ' ');
        if (field != NULL)
            field++;
    }
    if (field == NULL)
        return shmd_fail(SHMD_E_SYSTEM, "%s: fewer than 22 fields", path);
    *start_time = strtoull(field, NULL, 10);
    return SHMD_OK;
}

uint64_t shmd_pid_namespace(void)
{
    struct stat status;
    return stat("/proc/self/ns/pid", &status) == 0 ? (uint64_t)status.st_ino : 0;
}
