/* shmd_hello.c: the messages of a Hello by socket, and the address of a socket in a runtime folder. A message is a claim of another
 * process: it is received whole into private memory, and checked there. */
#include "shmd_hello.h"
#include "shmd_internal.h"

#include <stdio.h>
#include <sys/stat.h>

/* These fields have the same meaning in every layout. */
typedef struct shmd_message_head {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t bytes;
} shmd_message_head_t;

int shmd_socket_address(int folder_fd, const char *folder_path, const char *name, struct sockaddr_un *out)
{
    struct stat by_link, folder;
    char link[32];
    memset(out, 0, sizeof *out);
    out->sun_family = AF_UNIX;
    (void)snprintf(link, sizeof link, "/proc/self/fd/%d", folder_fd);
    if (fstat(folder_fd, &folder) != 0)
        return shmd_fail_errno(SHMD_CALL_RUNTIME, "fstat of the runtime folder %s", folder_path);
    int written;
    if (stat(link, &by_link) == 0 && by_link.st_dev == folder.st_dev && by_link.st_ino == folder.st_ino)
        written = snprintf(out->sun_path, sizeof out->sun_path, "%s/%s", link, name);
    else
        written = snprintf(out->sun_path, sizeof out->sun_path, "%s/%s", folder_path, name);
    if (written < (int)sizeof out->sun_path)
        return SHMD_OK;
    errno = ENAMETOOLONG;
    return shmd_fail_errno(SHMD_CALL_RUNTIME, "the address of %s in %s, without /proc (a socket's path has at most %zu bytes: mount /proc, or choose a shorter "
                           "SHMDRIVER_RUNTIME_DIR)", name, folder_path, sizeof out->sun_path - 1);
}

void shmd_message_begin(void *message, uint32_t kind, uint32_t bytes)
{
    shmd_message_head_t head = {.magic = shmd_magic(kind), .layout_version = SHMD_LAYOUT_VERSION, .bytes = bytes};
    memcpy(message, &head, sizeof head);
}

int shmd_message_check(const void *message, uint64_t bytes, uint32_t kind, uint64_t expected, const char *what)
{
    shmd_message_head_t head;
    if (bytes < sizeof head)
        return shmd_fail(SHMD_E_INVALID, "%s has %llu bytes, expected %llu", what, (unsigned long long)bytes, (unsigned long long)expected);
    memcpy(&head, message, sizeof head);
    if (head.magic != shmd_magic(kind))
        return shmd_fail(SHMD_E_INVALID, "%s has the magic 0x%016llx, expected 0x%016llx", what, (unsigned long long)head.magic,
                         (unsigned long long)shmd_magic(kind));
    if (head.layout_version != SHMD_LAYOUT_VERSION)
        return shmd_fail(SHMD_E_LAYOUT, "%s has layout version %u, this side has %u: use the same shmdriver version on both sides", what, head.layout_version,
                         (unsigned)SHMD_LAYOUT_VERSION);
    if (bytes != expected || head.bytes != expected)
        return shmd_fail(SHMD_E_INVALID, "%s has %llu bytes and says %u, expected %llu", what, (unsigned long long)bytes, head.bytes,
                         (unsigned long long)expected);
    return SHMD_OK;
}

static int is_zero(const uint8_t *at, size_t bytes)
{
    while (bytes > 0 && at[bytes - 1] == 0)
        bytes--;
    return bytes == 0;
}

int shmd_hello_check(const void *message, uint64_t bytes, shmd_hello_t *out)
{
    int rc = shmd_message_check(message, bytes, SHMD_MESSAGE_HELLO, sizeof *out, "Hello");
    if (rc != SHMD_OK)
        return rc;
    memcpy(out, message, sizeof *out);
    if (out->serial == 0 || (out->client_id == 0) != (out->boot_id == 0))
        return shmd_fail(SHMD_E_INVALID, "Hello has serial %llu, client id %llu, boot id %016llx: a serial is not 0, and an id comes with its boot id",
                         (unsigned long long)out->serial, (unsigned long long)out->client_id, (unsigned long long)out->boot_id);
    if (out->flags != 0 || out->reserved != 0 || !is_zero(out->pad, sizeof out->pad))
        return shmd_fail(SHMD_E_INVALID, "Hello has flags %u or bytes set that are not used: expected zeros", out->flags);
    return shmd_text_check("client name", out->name, sizeof out->name);
}

void shmd_hello_begin(shmd_hello_t *hello, const char *instance)
{
    shmd_process_t self;
    memset(hello, 0, sizeof *hello);
    shmd_message_begin(hello, SHMD_MESSAGE_HELLO, sizeof *hello);
    shmd_process_self(&self);
    hello->start_time = self.start_time;
    hello->pid_namespace = self.pid_namespace;
    hello->time_namespace = self.time_namespace;
    hello->image = shmd_image(instance);
}
