/* test_scan.c: authorities found by a scan: whose count, in which order, and what of a stranger's under such a name does nothing.
 * fault: E1 (planted objects keep nobody from starting or connecting), E11 (an authority with more than one link), 79 (a layout before) */
#include "world.h"

enum { ROOM = 8 };

static shmd_found_t found[ROOM];

static const char *path_of(const char *instance, unsigned number)
{
    static char path[2][SHMD_SEGMENT_NAME_BYTES + 16];
    static int turn;
    turn = !turn;
    (void)snprintf(path[turn], sizeof path[turn], "/dev/shm/shmd.%s.%032x.authority", instance, number);
    return path[turn];
}

/* A complete authority of that user; the lowest 32 bits of its boot id are its number. */
static void make_authority(const char *instance, unsigned number, uid_t owner, mode_t mode)
{
    shmd_authority_params_t params = {.instance = instance, .boot_id = number, .now_ns = 1000 + number, .heartbeat_interval_ns = 1000,
                                      .lease_timeout_ns = 1000, .client_max = 2, .lease_max = 2, .stream_max = 1, .event_slots = 4, .config_bytes = 256, .error_max = 1};
    uint64_t bytes = shmd_authority_footprint(&params);
    void *base = test_memory(bytes);
    CHECK_EQ(shmd_authority_init(base, bytes, &params), SHMD_OK);
    shmd_segment_complete(base);
    int fd = open(path_of(instance, number), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    CHECK_EQ(write(fd, base, bytes), (ssize_t)bytes);
    CHECK_EQ(fchmod(fd, mode), 0);
    CHECK_EQ(fchown(fd, owner, owner), 0);
    (void)close(fd);
    free(base);
}

/* Changes one field of it. */
static void change(const char *instance, unsigned number, size_t offset, const void *value, size_t bytes)
{
    int fd = open(path_of(instance, number), O_WRONLY | O_CLOEXEC);
    CHECK_EQ(pwrite(fd, value, bytes, (off_t)offset), (ssize_t)bytes);
    (void)close(fd);
}

/* Shows life on it, until the process ends. */
static int live(const char *instance, unsigned number)
{
    int fd = open(path_of(instance, number), O_RDONLY | O_CLOEXEC);
    CHECK_EQ(shmd_life_show(fd), SHMD_OK);
    return fd;
}

static unsigned number_of(const shmd_found_t *one)
{
    unsigned number = UINT32_MAX;
    const char *hex = strchr(one->name + sizeof "/shmd." - 1, '.');
    CHECK(hex != NULL && sscanf(hex + 1, "%32x", &number) == 1);
    return number;
}

/* The numbers that are found, in order. */
static const char *find(const char *instance, uint32_t owner)
{
    static char text[128];
    int n = shmd_authorities_find(instance, owner, found, ROOM);
    CHECK(n >= 0);
    text[0] = 0;
    for (int i = 0; i < n && i < ROOM; i++)
        (void)snprintf(text + strlen(text), sizeof text - strlen(text), "%s%x", i == 0 ? "" : " ", number_of(&found[i]));
    return text;
}

/* ---- one's own ---------------------------------------------------------------------------- */

static void none(void)
{
    CHECK_EQ(shmd_authorities_find("x", UINT32_MAX, NULL, 0), 0);
    CHECK_STR(shmd_authorities_notes(), "");
    CHECK_EQ(shmd_authority_choose("x", UINT32_MAX, found), 0);
    CHECK_EQ(shmd_authorities_find("a/b", UINT32_MAX, NULL, 0), SHMD_E_INVALID);
}

static void described(void)
{
    struct stat status;
    uint64_t ended = SHMD_EXIT_SUPERSEDED;
    make_authority("x", 0x2a, ALICE, 0600);
    change("x", 0x2a, offsetof(shmd_authority_t, exit_kind), &ended, sizeof ended);
    CHECK_EQ(stat(path_of("x", 0x2a), &status), 0);
    CHECK_STR(find("x", ALICE), "2a");
    CHECK_EQ(strcmp(found[0].name, path_of("x", 0x2a) + sizeof "/dev/shm" - 1), 0);
    CHECK_EQ(found[0].inode, status.st_ino);
    CHECK_EQ(found[0].device, status.st_dev);
    CHECK_EQ(found[0].bytes, status.st_size);
    CHECK_EQ(found[0].created_ns, 1000 + 0x2a);
    CHECK_EQ(found[0].boot_id, 0x2a);
    CHECK_EQ(found[0].owner, ALICE);
    CHECK_EQ(found[0].layout_version, SHMD_LAYOUT_VERSION);
    CHECK_EQ(found[0].is_complete, 1);
    CHECK_EQ(found[0].exit_kind, SHMD_EXIT_SUPERSEDED);
    CHECK_EQ(found[0].life, 0);
    int fd = live("x", 0x2a);
    CHECK_STR(find("x", ALICE), "2a");
    CHECK_EQ(found[0].life, 1);
    (void)close(fd);
}

static void half_made(void)
{
    uint64_t magic = 0;
    make_authority("x", 1, 0, 0600);
    make_authority("x", 2, 0, 0600);
    make_authority("x", 3, 0, 0600);
    make_authority("x", 4, 0, 0600);
    change("x", 1, 0, &magic, sizeof magic);
    CHECK_EQ(truncate(path_of("x", 2), 0), 0);
    CHECK_EQ(truncate(path_of("x", 3), sizeof(shmd_authority_t) - 1), 0);
    CHECK_EQ(truncate(path_of("x", 4), 7), 0);
    CHECK_EQ(shmd_authorities_find("x", UINT32_MAX, found, ROOM), 4);
    for (int i = 0; i < 4; i++)
        CHECK(!found[i].is_complete && found[i].created_ns == 0 && found[i].boot_id == 0 && found[i].layout_version == (number_of(&found[i]) == 3 ? SHMD_LAYOUT_VERSION : 0));
}

static void in_order(void)
{
    make_authority("x", 1, 0, 0600);
    make_authority("x", 9, 0, 0600);
    make_authority("x", 5, 0, 0600);
    make_authority("x", 7, 0, 0600);
    CHECK_EQ(truncate(path_of("x", 7), 0), 0);
    CHECK_STR(find("x", UINT32_MAX), "9 5 1 7");
    int fd = live("x", 1), made = live("x", 7);
    CHECK_STR(find("x", UINT32_MAX), "1 7 9 5");
    CHECK_EQ(shmd_authorities_find("x", UINT32_MAX, found, 1), 4);
    CHECK_EQ(number_of(&found[0]), 1);
    (void)close(fd);
    CHECK_EQ(shmd_authorities_find("x", UINT32_MAX, found, 2), 4);
    CHECK(number_of(&found[0]) == 7 && number_of(&found[1]) == 9);
    CHECK_EQ(shmd_authorities_find("x", UINT32_MAX, NULL, 0), 4);
    (void)close(made);
}

static void by_instance(void)
{
    make_authority("x", 1, 0, 0600);
    make_authority("xx", 2, 0, 0600);
    make_authority("x-y", 3, 0, 0600);
    CHECK_STR(find("x", UINT32_MAX), "1");
    CHECK_STR(find("x-y", UINT32_MAX), "3");
    CHECK_EQ(shmd_authorities_find(NULL, UINT32_MAX, found, ROOM), 3);
    CHECK_EQ(shmd_authorities_find(NULL, ALICE, found, ROOM), 0);
}

static void test_nothing_is_an_answer(void) { in_world(none); }
static void test_an_authority_is_described_by_its_file_and_its_header(void) { in_world(described); }
static void test_what_is_half_made_is_told_as_that(void) { in_world(half_made); }
static void test_those_with_life_come_first_then_the_newest(void) { in_world(in_order); }
static void test_instances_are_told_apart(void) { in_world(by_instance); }

/* ---- planted ------------------------------------------------------------------------------ */

static void find_among_planted(void)
{
    (void)alarm(20); /* a FIFO is not waited for */
    CHECK_STR(find("x", UINT32_MAX), "1");
    CHECK_MENTIONS(shmd_authorities_notes(), "belongs to uid 4203, whom this process (uid 4201) does not trust: name that owner");
    CHECK_STR(find("x", ALICE), "1");
    CHECK_MENTIONS(shmd_authorities_notes(), "is not used: mode ");
}

/* Everything that is no file of ours, the names as ours: of a stranger, and where it matters of ours, too. */
static void planted(void)
{
    make_authority("x", 1, ALICE, 0600);
    make_authority("x", 2, MALLORY, 0666);
    CHECK_EQ(symlink(path_of("x", 1), path_of("x", 3)), 0);
    CHECK_EQ(lchown(path_of("x", 3), ALICE, ALICE), 0);
    CHECK_EQ(mkfifo(path_of("x", 4), 0666), 0);
    CHECK_EQ(chown(path_of("x", 4), ALICE, ALICE), 0);
    make_dir(path_of("x", 5), ALICE, 0777);
    make_authority("x", 6, ALICE, 0600);
    CHECK_EQ(link(path_of("x", 6), "/dev/shm/also"), 0);
    as(ALICE, find_among_planted);
}

static void lying(void)
{
    uint64_t magic = 0x4b4f434b;
    uint32_t version = SHMD_LAYOUT_VERSION + 1, kind = SHMD_SEGMENT_DATA;
    make_authority("x", 1, 0, 0600);
    CHECK_EQ(rename(path_of("x", 1), path_of("y", 1)), 0);
    CHECK_STR(find("y", UINT32_MAX), "");
    CHECK_MENTIONS(shmd_authorities_notes(), "says that it is of another instance, x: look what made it");
    make_authority("x", 2, 0, 0600);
    change("x", 2, 0, &magic, sizeof magic);
    CHECK_STR(find("x", UINT32_MAX), "");
    CHECK_MENTIONS(shmd_authorities_notes(), "begins with 0x000000004b4f434b, which is no authority of ours");
    make_authority("x", 3, 0, 0600);
    change("x", 3, offsetof(shmd_header_t, kind), &kind, sizeof kind);
    CHECK_STR(find("x", UINT32_MAX), "");
    make_authority("x", 4, 0, 0600);
    change("x", 4, offsetof(shmd_header_t, layout_version), &version, sizeof version);
    CHECK_STR(find("x", UINT32_MAX), "4");
    CHECK(found[0].layout_version == version && !found[0].is_complete);
}

static void almost(void)
{
    static const char *const names[] = {"shmd.x.authority", "shmd.x.0000000000000000000000000000000.authority", "shmd.x.000000000000000000000000000000000.authority",
                                        "shmd.x.0000000000000000000000000000000A.authority", "shmd.x.00000000000000000000000000000000.authority.", "shmd..00000000000000000000000000000000.authority",
                                        "shmd.x.00000000000000000000000000000000.control", "shmd.x.y.00000000000000000000000000000000.authority"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[128];
        (void)snprintf(path, sizeof path, "/dev/shm/%s", names[i]);
        CHECK_EQ(close(open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600)), 0);
    }
    CHECK_EQ(shmd_authorities_find(NULL, UINT32_MAX, found, ROOM), 0);
    CHECK_STR(shmd_authorities_notes(), "");
}

static void many_planted_find(void)
{
    CHECK_STR(find("x", UINT32_MAX), "1");
    CHECK(strlen(shmd_authorities_notes()) < SHMD_TEXT_BYTES);
}

static void many_planted(void)
{
    make_authority("x", 1, ALICE, 0600);
    for (unsigned number = 2; number < 2000; number++)
        CHECK_EQ(close(open(path_of("x", number), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666)), 0);
    for (unsigned number = 2; number < 2000; number++)
        CHECK_EQ(chown(path_of("x", number), MALLORY, MALLORY), 0);
    as(ALICE, many_planted_find);
}

static void test_planted_objects_are_passed_over_and_told(void) { in_world(planted); }
static void test_what_a_header_says_is_compared(void) { in_world(lying); }
static void test_names_that_are_almost_ours_are_not(void) { in_world(almost); }
static void test_thousands_of_planted_names_change_nothing(void) { in_world(many_planted); }

/* ---- owners ------------------------------------------------------------------------------- */

static void find_as_bob(void)
{
    CHECK_STR(find("x", UINT32_MAX), "2 3 1"); /* its own, root's, the system folder's owner's */
    CHECK_MENTIONS(shmd_authorities_notes(), "belongs to uid 4203");
    CHECK_MENTIONS(shmd_authorities_notes(), "of uid 0 cannot be read by uid 4202 (mode 0600)");
    CHECK_STR(find("x", ALICE), "1");
    CHECK_STR(find("x", MALLORY), "4"); /* named is trusted */
    CHECK_STR(find("y", UINT32_MAX), ""); /* its folder is of instance x only */
    CHECK_EQ(setenv("SHMDRIVER_TRUST_OWNERS", "4203,4201", 1), 0);
    CHECK_STR(find("x", UINT32_MAX), "2 3 1 4");
    CHECK_STR(find("y", UINT32_MAX), "6");
    CHECK_EQ(setenv("SHMDRIVER_TRUST_OWNERS", "4203,no-such-user", 1), 0);
    CHECK_EQ(shmd_authorities_find("x", UINT32_MAX, found, ROOM), SHMD_E_INVALID);
    CHECK_TEXT("$SHMDRIVER_TRUST_OWNERS: there is no user no-such-user");
}

static void find_as_root(void)
{
    CHECK_STR(find("x", UINT32_MAX), "5 3");
    CHECK_MENTIONS(shmd_authorities_notes(), "belongs to uid 4201, whom this process (uid 0) does not trust");
    CHECK_STR(find("x", ALICE), "1");
}

static void owners(void)
{
    if (!world_walks())
        return;
    make_dir("/run/shmdriver", 0, 0755);
    make_dir("/run/shmdriver/x", ALICE, 0755);
    make_authority("x", 1, ALICE, 0644);
    make_authority("x", 2, BOB, 0600);
    make_authority("x", 3, 0, 0644);
    make_authority("x", 4, MALLORY, 0644);
    make_authority("x", 5, 0, 0600);
    make_authority("y", 6, ALICE, 0644);
    as(BOB, find_as_bob);
    find_as_root();
}

static void when_the_mount_cannot_be_listed(void)
{
    CHECK_EQ(shmd_authorities_find("x", UINT32_MAX, found, ROOM), SHMD_E_SYSTEM);
    CHECK_TEXT("cannot list /dev/shm, so whether there is a driver is not known");
    CHECK_EQ(shmd_authority_choose("x", UINT32_MAX, found), SHMD_E_SYSTEM);
}

static void when_one_s_own_cannot_be_opened(void)
{
    CHECK_EQ(shmd_authorities_find("x", UINT32_MAX, found, ROOM), SHMD_E_SYSTEM);
    CHECK_TEXT("cannot open the authority /dev/shm/shmd.x.");
}

static void cannot_be_told(void)
{
    make_authority("x", 1, ALICE, 0000);
    as(ALICE, when_one_s_own_cannot_be_opened);
    CHECK_EQ(chmod("/dev/shm", 0711), 0);
    as(ALICE, when_the_mount_cannot_be_listed);
}

static void test_only_those_of_owners_who_are_trusted_count(void) { in_world(owners); }
static void test_what_cannot_be_told_is_no_answer(void) { in_world(cannot_be_told); }

/* ---- the choice --------------------------------------------------------------------------- */

static unsigned choose(uint32_t named)
{
    CHECK_EQ(shmd_authority_choose("x", named, found), 1);
    return number_of(&found[0]);
}

static void choose_as_bob(void)
{
    uint64_t ended = SHMD_EXIT_CLEAN;
    CHECK_EQ(choose(UINT32_MAX), 2); /* its own, though that driver was killed: it is started again */
    CHECK_EQ(choose(ALICE), 1);
    CHECK_EQ(choose(0), 3);
    int fd = live("x", 1), roots = live("x", 3);
    CHECK_EQ(choose(UINT32_MAX), 2);
    change("x", 2, offsetof(shmd_authority_t, exit_kind), &ended, sizeof ended);
    CHECK_EQ(shmd_authority_choose("x", UINT32_MAX, found), SHMD_E_INVALID);
    CHECK_TEXT("uid 0 and uid 4201 have a driver of instance x each (/dev/shm/shmd.x.");
    CHECK_TEXT("name the owner of the one that is meant (--owner, connect(owner=...))");
    (void)close(fd);
    CHECK_EQ(choose(UINT32_MAX), 3);
    (void)close(roots);
    CHECK_EQ(unlink(path_of("x", 2)), 0);
    CHECK_EQ(shmd_authority_choose("x", UINT32_MAX, found), SHMD_E_INVALID); /* both were killed */
    CHECK_EQ(choose(0), 3);
}

static void choice(void)
{
    if (!world_walks())
        return;
    make_dir("/run/shmdriver", 0, 0755);
    make_dir("/run/shmdriver/x", ALICE, 0755);
    make_authority("x", 1, ALICE, 0644);
    make_authority("x", 2, BOB, 0600);
    make_authority("x", 3, 0, 0644);
    as(BOB, choose_as_bob);
}

static void over(void)
{
    uint64_t ended = SHMD_EXIT_SUPERSEDED;
    make_authority("x", 1, 0, 0600);
    make_authority("x", 2, 0, 0600);
    change("x", 2, offsetof(shmd_authority_t, exit_kind), &ended, sizeof ended);
    CHECK_EQ(choose(UINT32_MAX), 1);
    make_authority("x", 3, 0, 0600);
    CHECK_EQ(truncate(path_of("x", 3), 0), 0);
    CHECK_EQ(choose(UINT32_MAX), 1);
    int fd = live("x", 3); /* one starts */
    CHECK_EQ(choose(UINT32_MAX), 3);
    (void)close(fd);
    CHECK_EQ(unlink(path_of("x", 1)), 0);
    CHECK_EQ(choose(UINT32_MAX), 2);
}

static void test_one_s_own_is_chosen_before_others_and_two_others_are_not_guessed_between(void) { in_world(choice); }
static void test_one_that_is_over_is_chosen_last(void) { in_world(over); }

/* ---- opening ------------------------------------------------------------------------------ */

static void opening(void)
{
    shmd_found_t one;
    make_authority("x", 1, 0, 0600);
    CHECK_STR(find("x", UINT32_MAX), "1");
    one = found[0];
    int fd = shmd_found_open(&one, 1);
    CHECK(fd > STDERR_FILENO);
    (void)close(fd);
    CHECK_EQ(link(path_of("x", 1), "/dev/shm/also"), 0);
    CHECK_EQ(shmd_found_open(&one, 0), SHMD_E_LAYOUT);
    CHECK_TEXT("has 2 links; expected 1");
    CHECK_EQ(unlink(path_of("x", 1)), 0);
    CHECK_EQ(shmd_found_open(&one, 0), SHMD_E_SYSTEM);
    CHECK_EQ(errno, ENOENT);
    make_authority("x", 1, 0, 0600);
    CHECK_EQ(shmd_found_open(&one, 0), SHMD_E_LAYOUT);
    CHECK_TEXT("is another file than a moment ago");
    CHECK_EQ(chown(path_of("x", 1), MALLORY, MALLORY), 0);
    CHECK_EQ(shmd_found_open(&one, 0), SHMD_E_LAYOUT);
    CHECK_TEXT("belongs to uid 4203, gid 4203 (mode 0600); expected one of uid 0");
}

static void test_what_was_found_is_what_is_opened(void) { in_world(opening); }

/* ---- the layout before -------------------------------------------------------------------- */

static void old_as_alice(void)
{
    CHECK_EQ(shmd_old_layout("own"), SHMD_E_LAYOUT);
    CHECK_TEXT("/dev/shm/shmd.own.authority is of a driver of instance own with layout version 3, and this build speaks 4");
    CHECK_TEXT("stop that driver with the version of shmdriver that made it (`shmdriver shutdown -i own`), or remove the file if none runs");
    CHECK_EQ(shmd_authority_choose("own", UINT32_MAX, found), SHMD_E_LAYOUT);
    CHECK_EQ(shmd_authority_choose("own", MALLORY, found), 0); /* whoever names another does not mean that one */
    CHECK_EQ(shmd_old_layout("roots"), SHMD_E_LAYOUT);
    CHECK_EQ(shmd_old_layout("stranger"), 0);
    CHECK_EQ(shmd_old_layout("garbage"), 0);
    CHECK_EQ(shmd_old_layout("empty"), 0);
    CHECK_EQ(shmd_old_layout("none"), 0);
    CHECK_EQ(shmd_old_layout("fifo"), 0);
    CHECK_EQ(shmd_old_layout("closed"), SHMD_E_SYSTEM);
    CHECK_TEXT("cannot open /dev/shm/shmd.closed.authority, so whether it is of a driver of a layout before 4 is not known");
}

static void make_old(const char *instance, uid_t owner, mode_t mode, uint64_t magic)
{
    char path[128];
    shmd_header_t header = {.magic = magic, .layout_version = 3, .kind = SHMD_SEGMENT_AUTHORITY};
    (void)snprintf(path, sizeof path, "/dev/shm/shmd.%s.authority", instance);
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    CHECK_EQ(write(fd, &header, sizeof header), (ssize_t)sizeof header);
    CHECK_EQ(fchmod(fd, mode), 0);
    CHECK_EQ(fchown(fd, owner, owner), 0);
    (void)close(fd);
}

static void old(void)
{
    uint64_t magic = shmd_magic(SHMD_SEGMENT_AUTHORITY);
    (void)alarm(20);
    make_old("own", ALICE, 0600, magic);
    make_old("roots", 0, 0644, magic);
    make_old("stranger", MALLORY, 0666, magic);
    make_old("garbage", ALICE, 0600, 7);
    make_old("closed", 0, 0600, magic);
    CHECK_EQ(close(open("/dev/shm/shmd.empty.authority", O_CREAT | O_WRONLY | O_CLOEXEC, 0644)), 0);
    CHECK_EQ(mkfifo("/dev/shm/shmd.fifo.authority", 0666), 0);
    as(ALICE, old_as_alice);
}

static void test_a_layout_before_is_refused_with_instructions(void) { in_world(old); }

/* ---- a client's look ---------------------------------------------------------------------- */

static int try_connect(const char *owner)
{
    shmd_client_options options;
    shmd_client *client = NULL;
    shmd_client_options_init(&options);
    options.timeout_ns = 1000000;
    options.owner = owner;
    return shmd_client_connect("x", &options, &client);
}

static void connect_as_alice(void)
{
    CHECK_EQ(try_connect(NULL), SHMD_E_DRIVER_UNAVAILABLE);
    CHECK_TEXT("no driver of instance x: no authority segment of it is in /dev/shm; start one with `shmdriver run -i x`. Passed over: /dev/shm/shmd.x.");
    CHECK_TEXT("belongs to uid 4203, whom this process (uid 4201) does not trust");
    CHECK_EQ(try_connect("no-such-user"), SHMD_E_INVALID);
    CHECK_TEXT("there is no user no-such-user");
    CHECK_EQ(try_connect("4203"), SHMD_E_DRIVER_UNAVAILABLE); /* named, it is used: and its driver is dead */
    CHECK_TEXT("is dead; start it again");
}

static void a_stranger_s(void)
{
    make_authority("x", 1, MALLORY, 0644);
    as(ALICE, connect_as_alice);
}

static void a_starting_one(void)
{
    make_authority("x", 1, 0, 0600);
    CHECK_EQ(truncate(path_of("x", 1), 0), 0);
    CHECK_EQ(try_connect(NULL), SHMD_E_DRIVER_UNAVAILABLE);
    CHECK_TEXT("driver of instance x is still starting (/shmd.x.");
}

static void one_of_another_layout(void)
{
    uint32_t version = SHMD_LAYOUT_VERSION + 1;
    make_authority("x", 1, 0, 0600);
    change("x", 1, offsetof(shmd_header_t, layout_version), &version, sizeof version);
    CHECK_EQ(try_connect(NULL), SHMD_E_LAYOUT);
    CHECK_TEXT("layout version is 5, this build speaks 4");
}

static void one_with_two_links(void)
{
    make_authority("x", 1, 0, 0600);
    CHECK_EQ(link(path_of("x", 1), "/dev/shm/also"), 0);
    CHECK_EQ(try_connect(NULL), SHMD_E_DRIVER_UNAVAILABLE);
    CHECK_TEXT("is not used: mode 100600, 2 links; expected a regular file with one link");
}

static void test_a_client_passes_a_stranger_s_driver_over_unless_it_names_him(void) { in_world(a_stranger_s); }
static void test_a_client_tells_that_a_driver_is_starting(void) { in_world(a_starting_one); }
static void test_a_client_refuses_another_layout(void) { in_world(one_of_another_layout); }
static void test_a_client_attaches_to_no_authority_with_two_links(void) { in_world(one_with_two_links); }

/* ---- while others come and go ------------------------------------------------------------- */

static uint32_t is_done;

static void *come_and_go(void *argument)
{
    (void)argument;
    for (unsigned turn = 0; shmd_load32_acquire(&is_done) == 0; turn++) {
        make_authority("x", 2 + turn % 3, 0, 0600);
        CHECK_EQ(unlink(path_of("x", 2 + turn % 3)), 0);
    }
    return NULL;
}

static void changing(void)
{
    make_authority("y", 1, 0, 0600);
    pthread_t other = test_thread(come_and_go, NULL);
    for (uint64_t turn = 0; turn < test_scale(4000); turn++) {
        CHECK_EQ(shmd_authorities_find("y", UINT32_MAX, found, ROOM), 1);
        int n = shmd_authorities_find("x", UINT32_MAX, found, ROOM);
        CHECK(n >= 0 && n <= 3);
        for (int i = 0; i < n; i++)
            CHECK(!found[i].is_complete || found[i].boot_id == number_of(&found[i]));
    }
    shmd_store32_release(&is_done, 1);
    test_join(other);
}

static void test_a_scan_while_authorities_come_and_go_never_fails(void) { in_world(changing); }

int main(void)
{
    world_or_skip();
    RUN(test_nothing_is_an_answer);
    RUN(test_an_authority_is_described_by_its_file_and_its_header);
    RUN(test_what_is_half_made_is_told_as_that);
    RUN(test_those_with_life_come_first_then_the_newest);
    RUN(test_instances_are_told_apart);
    RUN(test_planted_objects_are_passed_over_and_told);
    RUN(test_what_a_header_says_is_compared);
    RUN(test_names_that_are_almost_ours_are_not);
    RUN(test_thousands_of_planted_names_change_nothing);
    RUN(test_only_those_of_owners_who_are_trusted_count);
    RUN(test_what_cannot_be_told_is_no_answer);
    RUN(test_one_s_own_is_chosen_before_others_and_two_others_are_not_guessed_between);
    RUN(test_one_that_is_over_is_chosen_last);
    RUN(test_what_was_found_is_what_is_opened);
    RUN(test_a_layout_before_is_refused_with_instructions);
    RUN(test_a_client_passes_a_stranger_s_driver_over_unless_it_names_him);
    RUN(test_a_client_tells_that_a_driver_is_starting);
    RUN(test_a_client_refuses_another_layout);
    RUN(test_a_client_attaches_to_no_authority_with_two_links);
    RUN(test_a_scan_while_authorities_come_and_go_never_fails);
    return test_report();
}
