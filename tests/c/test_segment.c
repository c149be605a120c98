/* Segments: what may be mapped, what is refused before any field of it is used. */
#include "rig.h"

#include <sys/wait.h>

#include <signal.h>

static void test_every_header_field_is_compared(void)
{
    shmd_header_t header;
    static const struct { size_t offset; const char *text; } fields[] = {
        {offsetof(shmd_header_t, magic), "magic"}, {offsetof(shmd_header_t, layout_version), "layout version"},
        {offsetof(shmd_header_t, kind), "kind"}, {offsetof(shmd_header_t, segment_bytes), "bytes"},
        {offsetof(shmd_header_t, boot_id), "boot"}, {offsetof(shmd_header_t, stream_id), "stream"},
        {offsetof(shmd_header_t, epoch), "epoch"}};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        memset(&header, 0, sizeof header);
        header = (shmd_header_t){.magic = shmd_magic(SHMD_SEGMENT_DATA), .layout_version = SHMD_LAYOUT_VERSION, .kind = SHMD_SEGMENT_DATA,
                                 .segment_bytes = 8192, .boot_id = 5, .stream_id = 6, .epoch = 7};
        CHECK_EQ(shmd_header_check(&header, 8192, SHMD_SEGMENT_DATA, 5, 6, 7), SHMD_OK);
        CHECK_EQ(shmd_header_check(&header, 8192, SHMD_SEGMENT_DATA, 0, 6, 7), SHMD_OK);
        ((unsigned char *)&header)[fields[i].offset] ^= 0x10;
        CHECK_EQ(shmd_header_check(&header, 8192, SHMD_SEGMENT_DATA, 5, 6, 7), SHMD_E_LAYOUT);
        CHECK_TEXT(fields[i].text);
        CHECK_TEXT(i == 1 ? "this build speaks" : "expected");
    }
    CHECK_EQ(shmd_header_check(&header, 100, SHMD_SEGMENT_DATA, 5, 6, 7), SHMD_E_LAYOUT);
}

static void test_a_segment_without_magic_was_never_completed(void)
{
    shmd_header_t header;
    memset(&header, 0, sizeof header);
    CHECK_EQ(shmd_header_check(&header, sizeof header, SHMD_SEGMENT_DATA, 0, 0, 0), SHMD_E_LAYOUT);
    CHECK_TEXT("never completed");
}

static void test_an_authority_whose_offsets_lie_is_refused(void)
{
    rig_t rig = {0};
    rig_authority(&rig);
    uint64_t bytes = rig.authority->header.segment_bytes;
    CHECK_EQ(shmd_authority_check(rig.authority, bytes), SHMD_OK);
    CHECK_EQ(shmd_authority_check(rig.authority, bytes - 4096), SHMD_E_LAYOUT);
    CHECK_EQ(shmd_authority_check(rig.authority, 100), SHMD_E_LAYOUT);
    for (size_t at = offsetof(shmd_authority_t, client_max); at < offsetof(shmd_authority_t, reserved); at += 4) {
        uint32_t *word = (uint32_t *)(void *)((unsigned char *)rig.authority + at);
        uint32_t before = *word;
        static const uint32_t lies[] = {UINT32_MAX, 0, 1u << 31, 3};
        for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
            *word = lies[i];
            if (*word != before && shmd_authority_check(rig.authority, bytes) != SHMD_E_LAYOUT)
                TEST_FAIL("authority with %u at offset %zu is accepted", lies[i], at);
        }
        *word = before;
    }
    free(rig.authority);
    free(rig.control);
}

static void test_tables_end_where_their_counts_say(void)
{
    rig_t rig = {0};
    rig_authority(&rig);
    const shmd_authority_t *a = rig.authority;
    CHECK(shmd_authority_client(a, 7) != NULL && shmd_authority_client(a, 8) == NULL);
    CHECK(shmd_authority_lease(a, 15) != NULL && shmd_authority_lease(a, 16) == NULL);
    CHECK(shmd_authority_stream(a, 1) != NULL && shmd_authority_stream(a, 2) == NULL);
    CHECK(shmd_authority_error(a, 3) != NULL && shmd_authority_error(a, 4) == NULL);
    CHECK((unsigned char *)shmd_authority_config(a) + a->config_bytes <= (const unsigned char *)a + a->header.segment_bytes);
    free(rig.authority);
    free(rig.control);
}

static void test_counts_out_of_range_have_no_footprint(void)
{
    shmd_authority_params_t fine = {.client_max = 8, .lease_max = 16, .stream_max = 2, .event_slots = 16, .config_bytes = 256, .error_max = 4};
    CHECK(shmd_authority_footprint(&fine) != 0);
    shmd_authority_params_t bad = fine;
    bad.client_max = SHMD_CLIENT_MAX + 1;
    CHECK_EQ(shmd_authority_footprint(&bad), 0);
    bad = fine;
    bad.lease_max = 0;
    CHECK_EQ(shmd_authority_footprint(&bad), 0);
    bad = fine;
    bad.event_slots = 17;
    CHECK_EQ(shmd_authority_footprint(&bad), 0);
    shmd_geometry_t geometry = {.slots = 63, .slot_bytes = 64};
    CHECK_EQ(shmd_data_footprint(&geometry), 0);
    geometry = (shmd_geometry_t){.slots = 64, .slot_bytes = 64, .arena_bytes = 100};
    CHECK_EQ(shmd_data_footprint(&geometry), 0);
}

static void test_a_mirrored_mapping_shows_the_same_bytes_twice(void)
{
    rig_t rig;
    rig_start(&rig, 64, 64, 8192, 0);
    memset(rig.arena, 1, 8192);
    memset(rig.arena + 8192 - 10, 2, 20);
    const volatile unsigned char *seen = rig.arena; /* the compiler does not know that two addresses are one place */
    CHECK_EQ(seen[9], 2);
    CHECK_EQ(seen[10], 1);
    for (int i = 0; i < 8192; i++)
        CHECK_EQ(seen[i], seen[8192 + i]);
    void *out = NULL;
    CHECK_EQ(shmd_segment_map_mirrored(0, 0, 100, 0, 0, &out), SHMD_E_INVALID);
    CHECK_EQ(shmd_segment_map(0, 0, 0, 0, 0, &out), SHMD_E_INVALID);
    rig_stop(&rig);
}

static const char *shm_path(const char *name)
{
    static char path[SHMD_SEGMENT_NAME_BYTES + 16];
    (void)snprintf(path, sizeof path, "/dev/shm%s", name);
    return path;
}

static void interrupt(int signal) { (void)signal; }

static void test_opening_never_creates_and_follows_no_link(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    uint64_t bytes;
    rig_name(name, "none");
    const char *path = shm_path(name);
    CHECK_EQ(shmd_segment_open(name, 0, &bytes), SHMD_E_SYSTEM);
    CHECK_TEXT(name);
    CHECK(access(path, F_OK) != 0);
    CHECK_EQ(symlink("/etc/hostname", path), 0);
    int rc = shmd_segment_open(name, 0, &bytes);
    CHECK_EQ(unlink(path), 0);
    CHECK(rc < 0);
    CHECK_EQ(mkdir(path, 0700), 0);
    rc = shmd_segment_open(name, 0, &bytes);
    CHECK_EQ(rmdir(path), 0);
    CHECK(rc < 0);
    CHECK_EQ(mkfifo(path, 0600), 0);
    struct sigaction action = {.sa_handler = interrupt}; /* no SA_RESTART: a blocked open ends with EINTR */
    CHECK_EQ(sigaction(SIGALRM, &action, NULL), 0);
    for (int writable = 1; writable >= 0; writable--) {
        (void)alarm(2); /* a FIFO must not make it wait for whoever opens the other end */
        rc = shmd_segment_open(name, writable, &bytes);
        (void)alarm(0);
        if (rc != SHMD_E_LAYOUT)
            (void)unlink(path);
        CHECK_EQ(rc, SHMD_E_LAYOUT);
    }
    CHECK_EQ(unlink(path), 0);
}

/* A child that is killed with a segment in hand, as a test that hangs is. */
static void test_what_a_killed_test_left_is_collected_by_the_next_and_nothing_else(void)
{
    char kept[SHMD_SEGMENT_NAME_BYTES], left[SHMD_SEGMENT_NAME_BYTES];
    int pipes[2], status;
    CHECK(close(rig_segment("kept", 4096, kept)) == 0);
    CHECK_EQ(pipe(pipes), 0);
    pid_t child = fork();
    if (child == 0) {
        (void)rig_segment("left", 4096, left);
        (void)!write(pipes[1], left, sizeof left);
        (void)raise(SIGKILL);
    }
    CHECK_EQ(read(pipes[0], left, sizeof left), (ssize_t)sizeof left);
    CHECK_EQ(waitid(P_PID, (id_t)child, &(siginfo_t){0}, WEXITED | WNOWAIT), 0);
    rig_collect(); /* a zombie without a living thread has ended */
    CHECK(access(shm_path(left), F_OK) != 0 && access(shm_path(kept), F_OK) == 0);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(!rig_owner_is_gone("shmd.ctest-1-1-1-1-0.data") && !rig_owner_is_gone("shmd.ctest-none"));
    (void)close(pipes[0]);
    (void)close(pipes[1]);
    rig_unlink();
}

/* In a child: the test's own output goes there, too. */
static void test_a_closed_standard_descriptor_becomes_dev_null_and_is_never_ours(void)
{
    char name[SHMD_SEGMENT_NAME_BYTES];
    int status = 0;
    (void)close(rig_segment("data", 4096, name));
    for (int kept = STDIN_FILENO; kept <= STDERR_FILENO + 1; kept++) { /* the one that stays open; at last none */
        pid_t child = fork();
        if (child == 0) {
            shmd_process_t self;
            struct stat null_is, found, before = {0};
            uint64_t bytes;
            int event = -1, copy = -1, pidfd = -1, wrong = 0;
            uint32_t evidence;
            (void)stat("/dev/null", &null_is);
            for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
                wrong += fd == kept ? fstat(fd, &before) : close(fd);
            shmd_process_self(&self);
            (void)shmd_process_look(&self, &pidfd, &evidence);
            int segment = shmd_segment_open(name, 1, &bytes);
            wrong += shmd_descriptor_open_event(&event) + shmd_descriptor_copy(event, &copy);
            wrong += segment <= STDERR_FILENO || event <= STDERR_FILENO || copy <= STDERR_FILENO || (pidfd >= 0 && pidfd <= STDERR_FILENO);
            for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
                wrong += fstat(fd, &found) != 0;
                wrong += fd == kept ? found.st_ino != before.st_ino : found.st_rdev != null_is.st_rdev;
            }
            _exit(wrong == 0 ? 0 : 1);
        }
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK_EQ(status, 0);
    }
    rig_unlink();
}

int main(void)
{
    RUN(test_what_a_killed_test_left_is_collected_by_the_next_and_nothing_else);
    RUN(test_every_header_field_is_compared);
    RUN(test_a_segment_without_magic_was_never_completed);
    RUN(test_an_authority_whose_offsets_lie_is_refused);
    RUN(test_tables_end_where_their_counts_say);
    RUN(test_counts_out_of_range_have_no_footprint);
    RUN(test_a_mirrored_mapping_shows_the_same_bytes_twice);
    RUN(test_opening_never_creates_and_follows_no_link);
    RUN(test_a_closed_standard_descriptor_becomes_dev_null_and_is_never_ours);
    return test_report();
}
