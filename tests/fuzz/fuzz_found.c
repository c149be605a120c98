/* An authority of any bytes and any length in /dev/shm: what the scan, the choice and a client that connects make of it. The file is
 * this user's own: a stranger's is not opened at all (tests/c/test_scan.c).
 * fault: 17 (libFuzzer: any bytes as an authority that is found) */
#include "fuzz.h"

#include <sched.h>
#include <sys/mount.h>

static char instance[SHMD_NAME_BYTES];
static char path[SHMD_SEGMENT_NAME_BYTES + 16];
static unsigned char *whole;
static uint64_t whole_bytes;

/* Where it may, in an empty mount of its own: then nothing is left when a run is killed. */
static void begin(void)
{
    if (unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0)
        (void)mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777");
    shmd_authority_params_t params = {.instance = instance, .boot_id = 99, .now_ns = 1, .heartbeat_interval_ns = 1000,
                                      .lease_timeout_ns = 1000, .client_max = 2, .lease_max = 2, .stream_max = 1, .event_slots = 4, .config_bytes = 256,
                                      .error_max = 1};
    (void)snprintf(instance, sizeof instance, "fuzz-%ld", (long)getpid());
    (void)snprintf(path, sizeof path, "/dev/shm/shmd.%s.%032x.authority", instance, 1);
    whole_bytes = shmd_authority_footprint(&params);
    whole = calloc(1, whole_bytes);
    MUST(whole != NULL && shmd_authority_init(whole, whole_bytes, &params) == SHMD_OK);
    shmd_segment_complete(whole);
}

static void connect_to_it(void)
{
    shmd_client_options options;
    shmd_client *client = NULL;
    shmd_client_options_init(&options);
    options.timeout_ns = 0;
    options.flags = SHMD_HEARTBEAT_MANUAL;
    MUST(shmd_client_connect(instance, &options, &client) < 0); /* nobody answers */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (whole == NULL)
        begin();
    input_t input = {.at = data, .left = size};
    uint64_t how = input_take(&input, 1);
    uint64_t bytes = how & 1 ? input_take(&input, 3) % (whole_bytes + 1) : whole_bytes;
    unsigned char *copy = fuzz_copy(whole, bytes);
    if (how & 2)
        memcpy(copy, input.at, input.left < bytes ? input.left : bytes);
    else if (bytes != 0)
        input_patch(&input, copy, how & 4 && bytes > sizeof(shmd_authority_t) ? sizeof(shmd_authority_t) : bytes, 32);
    int fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    MUST(fd >= 0 && write(fd, copy, bytes) == (ssize_t)bytes);
    if (how & 8)
        MUST(shmd_life_show(fd) == SHMD_OK);
    shmd_found_t found, chosen;
    int n = shmd_authorities_find(instance, UINT32_MAX, &found, 1);
    MUST(n == 0 || n == 1);
    MUST(n == 0 || (found.bytes == bytes && found.life == (how & 8 ? 1 : 0) && strnlen(found.name, sizeof found.name) < sizeof found.name));
    MUST(n == 0 || !found.is_complete || (bytes >= sizeof(shmd_authority_t) && found.layout_version == SHMD_LAYOUT_VERSION));
    MUST(shmd_authority_choose(instance, UINT32_MAX, &chosen) == n && (n == 0 || memcmp(&chosen, &found, sizeof found) == 0));
    connect_to_it();
    (void)close(fd);
    MUST(unlink(path) == 0);
    free(copy);
    return 0;
}
