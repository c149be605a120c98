/* test_trust.c: whose drivers and segments a process uses.
 * fault: E2 (a common group, or being root, is no reason to attach to a stranger's segments) */
#include "rig.h"
#include "world.h"

#include <poll.h>
#include <sys/mman.h>

static const shmd_folder_t none = {.fd = -1};
static const shmd_folder_t of_the_system = {.fd = -1, .place = SHMD_PLACE_SYSTEM, .owner = BOB};
static const shmd_folder_t of_a_user = {.fd = -1, .place = SHMD_PLACE_USER, .owner = BOB};

/* ---- owners ------------------------------------------------------------------------------- */

static void alice_s(void)
{
    CHECK_EQ(shmd_trusts(ALICE, UINT32_MAX, NULL), 1);
    CHECK_EQ(shmd_trusts(0, UINT32_MAX, NULL), 1);
    CHECK_EQ(shmd_trusts(BOB, UINT32_MAX, NULL), 0);
    CHECK_EQ(shmd_trusts(BOB, UINT32_MAX, &none), 0);
    CHECK_EQ(shmd_trusts(BOB, BOB, NULL), 1);
    CHECK_EQ(shmd_trusts(BOB, MALLORY, NULL), 0);
    CHECK_EQ(shmd_trusts(BOB, UINT32_MAX, &of_the_system), 1);
    CHECK_EQ(shmd_trusts(MALLORY, UINT32_MAX, &of_the_system), 0);
    CHECK_EQ(shmd_trusts(BOB, UINT32_MAX, &of_a_user), 0);
    CHECK_EQ(shmd_trusts(65534, UINT32_MAX, NULL), 0);
    CHECK_EQ(shmd_trusts(UINT32_MAX, UINT32_MAX, NULL), 0);
    CHECK_EQ(setenv("SHMDRIVER_TRUST_OWNERS", ",4203,,4202,", 1), 0);
    CHECK_EQ(shmd_trusts(BOB, UINT32_MAX, NULL), 1);
    CHECK_EQ(shmd_trusts(MALLORY, UINT32_MAX, NULL), 1);
    CHECK_EQ(shmd_trusts(4204, UINT32_MAX, NULL), 0);
}

static void root_s(void)
{
    CHECK_EQ(shmd_trusts(0, UINT32_MAX, NULL), 1);
    CHECK_EQ(shmd_trusts(BOB, UINT32_MAX, NULL), 0);
    CHECK_EQ(shmd_trusts(BOB, UINT32_MAX, &of_the_system), 0); /* others could make root write where they like */
    CHECK_EQ(shmd_trusts(BOB, BOB, &of_the_system), 1);
}

static void of_a_bad_list(void)
{
    char list[512] = "1";
    CHECK_EQ(setenv("SHMDRIVER_TRUST_OWNERS", "no-such-user", 1), 0);
    CHECK_EQ(shmd_trusts(BOB, UINT32_MAX, NULL), SHMD_E_INVALID);
    CHECK_TEXT("$SHMDRIVER_TRUST_OWNERS: there is no user no-such-user on this machine: give the name or the number of one");
    for (int i = 2; i < 40; i++)
        (void)snprintf(list + strlen(list), sizeof list - strlen(list), ",%d", i);
    CHECK_EQ(setenv("SHMDRIVER_TRUST_OWNERS", list, 1), 0);
    CHECK_EQ(shmd_trusts(BOB, UINT32_MAX, NULL), SHMD_E_INVALID);
    CHECK_TEXT("at most 16 users");
    memset(list, 'x', sizeof list - 1);
    CHECK_EQ(setenv("SHMDRIVER_TRUST_OWNERS", list, 1), 0);
    CHECK_EQ(shmd_trusts(BOB, UINT32_MAX, NULL), SHMD_E_INVALID);
}

static void owners_of_a_user(void) { as(ALICE, alice_s); }
static void a_bad_list(void) { as(ALICE, of_a_bad_list); }
static void test_a_user_trusts_himself_root_whom_he_names_and_the_system_s(void) { in_world(owners_of_a_user); }
static void test_root_trusts_root_and_whom_it_names(void) { in_world(root_s); }
static void test_a_list_that_cannot_be_read_is_no_answer(void) { in_world(a_bad_list); }

static void test_an_owner_is_a_name_or_a_number(void)
{
    uint32_t uid = 1;
    CHECK_EQ(shmd_owner_named("root", &uid), SHMD_OK);
    CHECK_EQ(uid, 0);
    CHECK_EQ(shmd_owner_named("4201", &uid), SHMD_OK);
    CHECK_EQ(uid, 4201);
    CHECK_EQ(shmd_owner_named("0", &uid), SHMD_OK);
    CHECK_EQ(uid, 0);
    CHECK_EQ(shmd_owner_named("4294967294", &uid), SHMD_OK);
    CHECK_EQ(uid, 4294967294u);
    static const char *const wrong[] = {"", "4294967295", "99999999999999999999", "-1", "1 ", "no-such-user"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        CHECK_EQ(shmd_owner_named(wrong[i], &uid), SHMD_E_INVALID);
}

/* ---- user namespaces ---------------------------------------------------------------------- */

static void where_nobody_has_a_number(void)
{
    if (!world_user_namespace(NULL))
        return;
    CHECK_EQ(geteuid(), 65534);
    CHECK_EQ(shmd_trusts(65534, UINT32_MAX, NULL), 0); /* itself included: every stranger has that number, too */
    CHECK_EQ(shmd_trusts(65534, 65534, NULL), 0);
    CHECK_EQ(shmd_is_own_or_roots(65534), 0);
}

static void where_one_has_a_number(void)
{
    if (!world_user_namespace("0 4201 1\n"))
        return;
    CHECK_EQ(geteuid(), 0);
    CHECK_EQ(shmd_trusts(0, UINT32_MAX, NULL), 1);
    CHECK_EQ(shmd_trusts(65534, 65534, NULL), 0);
    CHECK_EQ(setenv("SHMDRIVER_TRUST_OWNERS", "65534", 1), 0);
    CHECK_EQ(shmd_trusts(65534, UINT32_MAX, NULL), 0);
}

static void where_all_have_a_number(void)
{
    unsigned first = 1, outside, count = 0;
    FILE *file = fopen("/proc/self/uid_map", "re");
    CHECK(file != NULL && fscanf(file, "%u %u %u", &first, &outside, &count) == 3);
    (void)fclose(file);
    if (first == 0 && count == UINT32_MAX)
        CHECK_EQ(shmd_trusts(65534, 65534, NULL), 1); /* one user, as any other */
    else
        (void)fprintf(stderr, "  NOT LOOKED AT: some users have no number here\n");
}

static void without_proc(void)
{
    CHECK_EQ(mount("tmpfs", "/proc", "tmpfs", 0, NULL), 0);
    CHECK_EQ(shmd_trusts(65534, 65534, NULL), SHMD_E_SYSTEM);
    CHECK_TEXT("cannot read /proc/self/uid_map, so whether uid 65534 is one user here or many is not known");
    CHECK_EQ(shmd_trusts(BOB, BOB, NULL), 1);
    CHECK_EQ(shmd_is_own_or_roots(65534), 0);
}

static void overflowing(void)
{
    as(ALICE, where_nobody_has_a_number);
    as(ALICE, where_one_has_a_number);
    as(0, where_all_have_a_number);
}

static void test_the_overflow_uid_is_nobody_where_some_have_no_number(void) { in_world(overflowing); }
static void test_without_proc_the_overflow_uid_cannot_be_told(void) { in_world(without_proc); }

/* ---- segments ----------------------------------------------------------------------------- */

static void make_object(const char *name, uid_t owner, gid_t group, mode_t mode)
{
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, 4096) == 0 && fchmod(fd, mode) == 0 && fchown(fd, owner, group) == 0);
    (void)close(fd);
}

static int opens(const char *name, uint32_t owner)
{
    uint64_t bytes = 0;
    int fd = owner == UINT32_MAX ? shmd_segment_open(name, 0, &bytes) : shmd_segment_open_of(name, owner, 0, &bytes);
    if (fd < 0)
        return fd;
    CHECK_EQ(bytes, 4096);
    (void)close(fd);
    return 0;
}

static void open_as_alice(void)
{
    CHECK_EQ(opens("/own", UINT32_MAX), 0);
    CHECK_EQ(opens("/roots", UINT32_MAX), 0);
    CHECK_EQ(opens("/own", 0), SHMD_E_LAYOUT);
    CHECK_TEXT("segment /own belongs to uid 4201, gid 4201 (mode 0600); expected one of uid 0: somebody planted it, or its owner has to be named");
    CHECK_EQ(opens("/shared", UINT32_MAX), SHMD_E_LAYOUT); /* its group is hers */
    CHECK_TEXT("segment /shared belongs to uid 4202, gid 4201 (mode 0660); expected one of uid 4201 or root");
    CHECK_EQ(opens("/shared", BOB), 0);
    CHECK_EQ(opens("/shared", MALLORY), SHMD_E_LAYOUT);
}

static void segments(void)
{
    make_object("/own", ALICE, ALICE, 0600);
    make_object("/roots", 0, 0, 0644);
    make_object("/shared", BOB, ALICE, 0660);
    as(ALICE, open_as_alice);
    CHECK_EQ(opens("/shared", UINT32_MAX), SHMD_E_LAYOUT); /* E2: also root does not look at anybody's */
    CHECK_EQ(opens("/shared", BOB), 0);
}

static void test_a_common_group_is_no_reason_and_neither_is_root(void) { in_world(segments); }

/* What a stranger put in the place of an epoch's segment: the authority's owner makes them all. */
static void foreign_epochs(void)
{
    rig_t rig;
    shmd_mapping *mapping = NULL;
    rig_start(&rig, 64, 64, 4096, 0);
    const shmd_epoch_record_t *record = &rig.stream->epochs[0];
    char path[2][SHMD_SEGMENT_NAME_BYTES + 16];
    (void)snprintf(path[0], sizeof path[0], "/dev/shm%s", record->data_name);
    (void)snprintf(path[1], sizeof path[1], "/dev/shm%s", record->gates_name);
    CHECK_EQ(shmd_mapping_open(&rig.client, record, SHMD_ROLE_CONSUMER, &mapping), SHMD_OK);
    shmd_mapping_free(mapping);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(chown(path[i], MALLORY, MALLORY), 0);
        CHECK_EQ(shmd_mapping_open(&rig.client, record, SHMD_ROLE_CONSUMER, &mapping), SHMD_E_LAYOUT);
        CHECK_TEXT("belongs to uid 4203");
        CHECK_TEXT("expected one of uid 0");
        CHECK_EQ(chown(path[i], 0, 0), 0);
    }
    rig.client.owner = MALLORY; /* of the authority: then all has to be his */
    CHECK_EQ(shmd_mapping_open(&rig.client, record, SHMD_ROLE_CONSUMER, &mapping), SHMD_E_LAYOUT);
    CHECK_EQ(chown(path[0], MALLORY, MALLORY), 0);
    CHECK_EQ(chown(path[1], MALLORY, MALLORY), 0);
    CHECK_EQ(shmd_mapping_open(&rig.client, record, SHMD_ROLE_CONSUMER, &mapping), SHMD_OK);
    shmd_mapping_free(mapping);
    rig_stop(&rig);
}

static void test_an_epoch_s_segments_are_the_authority_s_owner_s(void) { in_world(foreign_epochs); }

/* Somebody else's is not opened for writing, even to look at it: a FIFO would be given a writer. */
static void not_opened(void)
{
    uint64_t bytes;
    make_object("/theirs", MALLORY, MALLORY, 0666);
    CHECK_EQ(mkfifo("/dev/shm/pipe", 0666), 0);
    int reader = open("/dev/shm/pipe", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    struct pollfd one = {.fd = reader, .events = POLLIN};
    CHECK_EQ(shmd_segment_open("/pipe", 1, &bytes), SHMD_E_LAYOUT);
    CHECK_TEXT("not a regular shared-memory object");
    CHECK_EQ(poll(&one, 1, 0), 0); /* POLLHUP: a writer has been there */
    (void)close(reader);
    CHECK_EQ(shmd_segment_open("/theirs", 1, &bytes), SHMD_E_LAYOUT);
    CHECK_EQ(symlink("/dev/shm/theirs", "/dev/shm/link"), 0);
    CHECK_EQ(shmd_segment_open("/link", 1, &bytes), SHMD_E_LAYOUT);
}

static void test_what_is_somebody_else_s_is_not_even_opened(void) { in_world(not_opened); }

int main(void)
{
    world_or_skip();
    RUN(test_a_user_trusts_himself_root_whom_he_names_and_the_system_s);
    RUN(test_root_trusts_root_and_whom_it_names);
    RUN(test_a_list_that_cannot_be_read_is_no_answer);
    RUN(test_an_owner_is_a_name_or_a_number);
    RUN(test_the_overflow_uid_is_nobody_where_some_have_no_number);
    RUN(test_without_proc_the_overflow_uid_cannot_be_told);
    RUN(test_a_common_group_is_no_reason_and_neither_is_root);
    RUN(test_an_epoch_s_segments_are_the_authority_s_owner_s);
    RUN(test_what_is_somebody_else_s_is_not_even_opened);
    return test_report();
}
