/* test_folder.c: where a runtime folder is made and found, and what of other users' doing it never takes.
 * fault: E12 (a fixed place taken by somebody else first), 78 (read-only, full and missing places) */
#include "world.h"

#include <sched.h>

static shmd_folder_t made;

/* Makes it, says where, and gives it back. */
static const char *make(const char *instance, int for_group)
{
    CHECK_EQ(shmd_folder_make(instance, for_group, &made), SHMD_OK);
    shmd_folder_close(&made);
    CHECK(made.fd == -1 && made.owner == geteuid());
    return made.path;
}

/* The nth one that is found; "": no more. */
static const char *find(const char *instance, uint32_t owner, int nth)
{
    static shmd_folder_t found;
    uint32_t cursor = 0;
    for (int i = 0;; i++) {
        int rc = shmd_folder_find(instance, owner, &cursor, &found);
        CHECK(rc == 0 || rc == 1);
        if (rc == 0)
            return "";
        shmd_folder_close(&found);
        if (i == nth)
            return found.path;
    }
}

static void check_in_shm(const char *path, const char *instance)
{
    char prefix[48];
    int length = snprintf(prefix, sizeof prefix, "/dev/shm/shmdriver-%u.", (unsigned)geteuid());
    CHECK_EQ(strncmp(path, prefix, (size_t)length), 0);
    CHECK_EQ(strspn(path + length, "0123456789abcdef"), 16);
    CHECK_EQ(path[length + 16], '/');
    CHECK_STR(path + length + 17, instance);
}

/* ---- the order of places ------------------------------------------------------------------ */

static void roots(void)
{
    (void)umask(0777);
    CHECK_STR(make("x", 0), "/run/shmdriver/x");
    CHECK_EQ(made.place, SHMD_PLACE_SYSTEM);
    CHECK_EQ(mode_of("/run/shmdriver"), 0755);
    CHECK_EQ(mode_of("/run/shmdriver/x"), 0700);
    CHECK_STR(make("x", 0), "/run/shmdriver/x");
    CHECK_STR(make("y", 1), "/run/shmdriver/y");
    CHECK_EQ(mode_of("/run/shmdriver/y"), 0711);
    CHECK_STR(shmd_folder_notes(), "");
    CHECK_STR(find("x", UINT32_MAX, 0), "/run/shmdriver/x");
    CHECK_STR(find("x", UINT32_MAX, 1), "");
}

static void without_anything(void)
{
    CHECK_EQ(clearenv(), 0);
    (void)umask(0777);
    const char *path = make("x", 0);
    check_in_shm(path, "x");
    CHECK_EQ(made.place, SHMD_PLACE_SHM);
    CHECK_EQ(mode_of(path), 0700);
    CHECK_STR(shmd_folder_notes(), "");
    char first[SHMD_FOLDER_PATH_BYTES];
    (void)snprintf(first, sizeof first, "%s", path);
    CHECK_STR(make("x", 0), first);
    CHECK_STR(find("x", UINT32_MAX, 0), first);
    CHECK_STR(find("y", UINT32_MAX, 0), "");
    CHECK_STR(make("x", 1), first); /* shared by a group from now on */
    CHECK_EQ(mode_of(first), 0711);
    *strrchr(first, '/') = 0;
    CHECK_EQ(mode_of(first), 0711);
}

/* No HOME, no entry in /etc/passwd, no /run/user. */
static void users(void)
{
    as(ALICE, without_anything);
    as(BOB, without_anything);
}

static void with_a_runtime_directory(void)
{
    CHECK_STR(make("x", 0), "/run/user/4201/shmdriver/x");
    CHECK_EQ(made.place, SHMD_PLACE_USER);
    CHECK_EQ(mode_of("/run/user/4201/shmdriver"), 0700);
    CHECK_STR(find("x", UINT32_MAX, 0), "/run/user/4201/shmdriver/x");
    check_in_shm(make("x", 1), "x"); /* others cannot pass /run/user/4201 */
    CHECK_EQ(mode_of(made.path), 0711);
    *strrchr(made.path, '/') = 0;
    CHECK_EQ(mode_of(made.path), 0711);
}

static void the_user_s_own(void)
{
    make_dir("/run/user", 0, 0755);
    make_dir("/run/user/4201", ALICE, 0700);
    as(ALICE, with_a_runtime_directory);
}

static void with_a_system_folder(void)
{
    CHECK_STR(make("x", 0), "/run/shmdriver/x");
    CHECK_EQ(made.place, SHMD_PLACE_SYSTEM);
    CHECK_STR(make("y", 0), "/run/user/4201/shmdriver/y"); /* that one is another user's, which is nothing to tell */
    CHECK_STR(shmd_folder_notes(), "");
    CHECK_STR(make("z", 0), "/run/user/4201/shmdriver/z");
}

static void the_system_s(void)
{
    make_dir("/run/shmdriver", 0, 0755);
    make_dir("/run/shmdriver/x", ALICE, 0755); /* as systemd makes it */
    make_dir("/run/shmdriver/y", BOB, 0755);
    make_dir("/run/user", 0, 0755);
    make_dir("/run/user/4201", ALICE, 0700);
    as(ALICE, with_a_system_folder);
}

static void a_long_xdg(void)
{
    char path[600] = "/tmp/a";
    CHECK_EQ(mkdir(path, 0700), 0);
    for (int i = 0; i < 2; i++) {
        (void)snprintf(path + strlen(path), sizeof path - strlen(path), "/%0200d", 1);
        CHECK_EQ(mkdir(path, 0700), 0);
    }
    CHECK_EQ(setenv("XDG_RUNTIME_DIR", path, 1), 0);
    check_in_shm(make("x", 0), "x");
    CHECK_MENTIONS(shmd_folder_notes(), "longer than 255 characters");
}

static void with_an_xdg_directory(void)
{
    CHECK_EQ(setenv("XDG_RUNTIME_DIR", "/tmp/link", 1), 0); /* resolved once */
    CHECK_STR(make("x", 0), "/tmp/own/shmdriver/x");
    CHECK_EQ(made.place, SHMD_PLACE_XDG);
    CHECK_STR(find("x", UINT32_MAX, 0), "/tmp/own/shmdriver/x");
    CHECK_EQ(setenv("XDG_RUNTIME_DIR", "/tmp/foreign", 1), 0);
    check_in_shm(make("x", 0), "x");
    CHECK_MENTIONS(shmd_folder_notes(), "/tmp/foreign belongs to uid 4203");
    CHECK_EQ(setenv("XDG_RUNTIME_DIR", "/tmp", 1), 0); /* everybody may write there: any name in it can be taken first */
    check_in_shm(make("x", 0), "x");
    CHECK_MENTIONS(shmd_folder_notes(), "/tmp belongs to uid 0; expected uid 4201");
    CHECK_EQ(setenv("XDG_RUNTIME_DIR", "/tmp/sticky", 1), 0);
    check_in_shm(make("x", 0), "x");
    CHECK_MENTIONS(shmd_folder_notes(), "/tmp/sticky can be written by others (mode 1777, uid 4201)");
    CHECK_EQ(setenv("XDG_RUNTIME_DIR", "own", 1), 0);
    check_in_shm(make("x", 0), "x");
    CHECK_MENTIONS(shmd_folder_notes(), "no absolute path");
    CHECK_EQ(setenv("XDG_RUNTIME_DIR", "/tmp/none", 1), 0);
    check_in_shm(make("x", 0), "x");
    CHECK_EQ(setenv("XDG_RUNTIME_DIR", "/tmp/loose", 1), 0);
    check_in_shm(make("x", 0), "x");
    CHECK_MENTIONS(shmd_folder_notes(), "/tmp/loose can be written by others (mode 0777, uid 4201)");
    a_long_xdg();
}

static void the_xdg_one(void)
{
    make_dir("/tmp/own", ALICE, 0700);
    make_dir("/tmp/foreign", MALLORY, 0777);
    make_dir("/tmp/loose", ALICE, 0777);
    make_dir("/tmp/sticky", ALICE, 01777);
    CHECK_EQ(symlink("/tmp/own", "/tmp/link"), 0);
    as(ALICE, with_an_xdg_directory);
}

static void test_root_s_are_in_run(void) { in_world(roots); }
static void test_a_user_without_anything_has_one_in_dev_shm(void) { in_world(users); }
static void test_a_user_s_runtime_directory_is_used_unless_a_group_has_to_pass(void) { in_world(the_user_s_own); }
static void test_what_systemd_made_comes_first(void) { in_world(the_system_s); }
static void test_an_xdg_directory_is_used_when_it_is_ours_only(void) { in_world(the_xdg_one); }

/* ---- what others did ---------------------------------------------------------------------- */

static void among_planted_ones(void)
{
    const char *path = make("x", 0);
    check_in_shm(path, "x");
    CHECK(strstr(path, "0000000000000000") == NULL);
    CHECK_STR(find("x", UINT32_MAX, 0), path);
    CHECK_STR(find("x", UINT32_MAX, 1), "");
}

static void planted(void)
{
    make_dir("/dev/shm/shmdriver-4201.0000000000000000", MALLORY, 0777);
    make_dir("/dev/shm/shmdriver-4201.0000000000000000/x", MALLORY, 0777);
    make_dir("/tmp/trap", ALICE, 0777);
    CHECK_EQ(symlink("/tmp/trap", "/dev/shm/shmdriver-4201.0000000000000001"), 0);
    CHECK_EQ(lchown("/dev/shm/shmdriver-4201.0000000000000001", ALICE, ALICE), 0);
    CHECK_EQ(mkfifo("/dev/shm/shmdriver-4201.0000000000000002", 0666), 0);
    CHECK_EQ(chown("/dev/shm/shmdriver-4201.0000000000000002", ALICE, ALICE), 0);
    make_dir("/dev/shm/shmdriver-42011.0000000000000003", ALICE, 0700);
    as(ALICE, among_planted_ones);
}

static void beside_a_foreign_runtime_directory(void)
{
    check_in_shm(make("x", 0), "x");
    CHECK_MENTIONS(shmd_folder_notes(), "/run/user/4201 belongs to uid 4203; expected uid 4201");
}

static void a_foreign_runtime_directory(void)
{
    make_dir("/run/user", 0, 0755);
    make_dir("/run/user/4201", MALLORY, 0777);
    as(ALICE, beside_a_foreign_runtime_directory);
}

static void root_beside_a_foreign_place(void)
{
    make_dir("/run/shmdriver", MALLORY, 0755);
    check_in_shm(make("x", 0), "x");
    CHECK_MENTIONS(shmd_folder_notes(), "/run/shmdriver belongs to uid 4203; expected uid 0");
    CHECK_EQ(chown("/run/shmdriver", 0, 0), 0);
    CHECK_EQ(chmod("/run/shmdriver", 01777), 0);
    check_in_shm(make("x", 0), "x");
    CHECK_MENTIONS(shmd_folder_notes(), "/run/shmdriver can be written by others (mode 1777, uid 0)");
    CHECK_EQ(rmdir("/run/shmdriver"), 0);
    CHECK_EQ(symlink("/tmp", "/run/shmdriver"), 0);
    check_in_shm(make("x", 0), "x");
    CHECK_MENTIONS(shmd_folder_notes(), "it is no folder, or a symbolic link");
}

static void test_planted_folders_in_dev_shm_are_not_taken(void) { in_world(planted); }
static void test_a_foreign_runtime_directory_is_passed_over_and_told(void) { in_world(a_foreign_runtime_directory); }
static void test_root_takes_no_place_that_others_can_write(void) { in_world(root_beside_a_foreign_place); }

/* ---- SHMDRIVER_RUNTIME_DIR ---------------------------------------------------------------- */

static void refuse_named(const char *path, const char *words)
{
    shmd_folder_t folder;
    CHECK_EQ(setenv("SHMDRIVER_RUNTIME_DIR", path, 1), 0);
    CHECK_EQ(shmd_folder_make("x", 0, &folder), SHMD_E_INVALID);
    CHECK_EQ(folder.fd, -1);
    CHECK_TEXT("SHMDRIVER_RUNTIME_DIR cannot be used");
    CHECK_TEXT(words);
}

static void with_a_named_one(void)
{
    char path[300] = "/tmp/own/";
    CHECK_EQ(setenv("SHMDRIVER_RUNTIME_DIR", "/tmp/link/below", 1), 0);
    CHECK_STR(make("x", 0), "/tmp/own/below/x");
    CHECK_EQ(made.place, SHMD_PLACE_NAMED);
    CHECK_STR(find("x", UINT32_MAX, 0), "/tmp/own/below/x");
    CHECK_STR(find("x", UINT32_MAX, 1), "");
    CHECK_EQ(chdir("/tmp/own"), 0);
    CHECK_EQ(setenv("SHMDRIVER_RUNTIME_DIR", "below", 1), 0);
    CHECK_STR(make("x", 0), "/tmp/own/below/x");
    CHECK_EQ(setenv("SHMDRIVER_RUNTIME_DIR", "/tmp", 1), 0);
    CHECK_STR(make("y", 0), "/tmp/y");
    refuse_named("/tmp/none", "cannot resolve /tmp/none: No such file or directory");
    refuse_named("/tmp/a_file", "/tmp/a_file: it is no folder");
    refuse_named("/tmp/foreign/below", "/tmp/foreign belongs to uid 4203; expected uid 4201 or root");
    refuse_named("/tmp/loose/below", "/tmp/loose can be written by others (mode 0777, uid 4201)");
    refuse_named("/tmp", "/tmp/x belongs to uid 4203; expected uid 4201"); /* taken first, in a place that everybody can write */
    refuse_named("/tmp/roots", "cannot make /tmp/roots/x: Permission denied");
    refuse_named("/tmp/fixed", "cannot make /tmp/fixed/x: Read-only file system");
    refuse_named("/tmp/fixed/there", "no file can be made in /tmp/fixed/there/x: Read-only file system");
    CHECK_EQ(symlink("/tmp/own/below", "/tmp/own/x"), 0);
    refuse_named("/tmp/own", "/tmp/own/x: it is no folder, or a symbolic link");
    CHECK_EQ(unlink("/tmp/own/x"), 0);
    (void)snprintf(path + strlen(path), sizeof path - strlen(path), "%0240d", 1);
    CHECK_EQ(mkdir(path, 0700), 0);
    CHECK_EQ(setenv("SHMDRIVER_RUNTIME_DIR", path, 1), 0);
    CHECK_EQ(strlen(make("x", 0)), strlen(path) + 2);
    shmd_folder_t folder;
    CHECK_EQ(shmd_folder_make("a23456789b23456789", 0, &folder), SHMD_E_INVALID);
    CHECK_TEXT("is longer than 255 characters");
}

static void named(void)
{
    make_dir("/tmp/own", ALICE, 0700);
    make_dir("/tmp/own/below", ALICE, 0700);
    make_dir("/tmp/foreign", MALLORY, 0755);
    make_dir("/tmp/foreign/below", ALICE, 0700);
    make_dir("/tmp/loose", ALICE, 0777);
    make_dir("/tmp/loose/below", ALICE, 0700);
    make_dir("/tmp/roots", 0, 0755);
    make_dir("/tmp/x", MALLORY, 0755);
    make_dir("/tmp/fixed", ALICE, 0755);
    CHECK_EQ(mount("tmpfs", "/tmp/fixed", "tmpfs", 0, "mode=0755,uid=4201"), 0);
    make_dir("/tmp/fixed/there", ALICE, 0755);
    make_dir("/tmp/fixed/there/x", ALICE, 0755);
    CHECK_EQ(mount("none", "/tmp/fixed", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL), 0);
    CHECK_EQ(close(open("/tmp/a_file", O_CREAT | O_WRONLY | O_CLOEXEC, 0644)), 0);
    CHECK_EQ(symlink("/tmp/own", "/tmp/link"), 0);
    as(ALICE, with_a_named_one);
    CHECK(is_empty("/dev/shm") && is_empty("/run")); /* nothing else was tried */
}

static void test_the_named_one_is_binding_and_its_faults_are_named(void) { in_world(named); }

/* ---- places that cannot be used ----------------------------------------------------------- */

static void with_run_read_only(void)
{
    CHECK_EQ(mount("none", "/run", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL), 0);
    check_in_shm(make("x", 0), "x");
}

static void with_run_without_inodes(void)
{
    CHECK_EQ(mount("tmpfs", "/run", "tmpfs", 0, "mode=0755,nr_inodes=3"), 0); /* itself, and two more: none is left for a file */
    check_in_shm(make("x", 0), "x");
    CHECK(!exists("/run/shmdriver/x"));
}

static void with_run_full(void)
{
    static const char zeros[4096];
    CHECK_EQ(mount("tmpfs", "/run", "tmpfs", 0, "mode=0755,size=4096"), 0);
    int fd = open("/run/filler", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    CHECK_EQ(write(fd, zeros, sizeof zeros), (ssize_t)sizeof zeros);
    (void)close(fd);
    check_in_shm(make("x", 0), "x");
    CHECK(!exists("/run/shmdriver/x"));
}

static void with_nothing_left(void)
{
    shmd_folder_t folder;
    CHECK_EQ(mount("none", "/run", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL), 0);
    CHECK_EQ(mount("none", "/dev/shm", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL), 0);
    CHECK_EQ(shmd_folder_make("x", 0, &folder), SHMD_E_SYSTEM);
    CHECK_EQ(folder.fd, -1);
    CHECK_TEXT("no place for the runtime folder of instance x, as uid 0");
    CHECK_TEXT("cannot make /run/shmdriver: Read-only file system");
    CHECK_TEXT("cannot resolve /run/user: No such file or directory");
    CHECK_TEXT("XDG_RUNTIME_DIR is not set");
    CHECK_TEXT("cannot make /dev/shm/shmdriver-0.");
    CHECK_TEXT("Set SHMDRIVER_RUNTIME_DIR to a folder of this user");
}

static void a_bad_instance_name(void)
{
    shmd_folder_t folder;
    uint32_t cursor = 0;
    static const char *const names[] = {"", "..", "a/b", ".", "a.b", "-a", "a23456789b23456789c23456789d23456789e23456789"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        CHECK_EQ(shmd_folder_make(names[i], 0, &folder), SHMD_E_INVALID);
        CHECK_EQ(shmd_folder_find(names[i], UINT32_MAX, &cursor, &folder), SHMD_E_INVALID);
        CHECK_EQ(cursor, 0);
    }
}

static void test_a_read_only_run_is_passed_over(void) { in_world(with_run_read_only); }
static void test_a_run_without_inodes_is_passed_over(void) { in_world(with_run_without_inodes); }
static void test_a_full_run_is_passed_over(void) { in_world(with_run_full); }
static void test_without_any_place_the_text_tells_of_each(void) { in_world(with_nothing_left); }
static void test_only_names_of_instances_are_taken(void) { in_world(a_bad_instance_name); }

/* ---- several in /dev/shm ------------------------------------------------------------------ */

static void with_two_of_its_own(void)
{
    static const char first[] = "/dev/shm/shmdriver-4201.ffffffffffffffff/x", second[] = "/dev/shm/shmdriver-4201.0000000000000000/x";
    CHECK_STR(make("x", 0), first); /* it was made first */
    CHECK_STR(find("x", UINT32_MAX, 0), first);
    CHECK_STR(find("x", UINT32_MAX, 1), second);
    CHECK_STR(find("x", UINT32_MAX, 2), "");
    int lock = open("/dev/shm/shmdriver-4201.0000000000000000/x/lock", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    CHECK_EQ(flock(lock, LOCK_EX | LOCK_NB), 0);
    CHECK_STR(make("x", 0), second); /* a driver runs there */
    CHECK_STR(make("y", 0), "/dev/shm/shmdriver-4201.ffffffffffffffff/y");
    (void)close(lock);
    CHECK_STR(make("x", 0), first);
}

static void two(void)
{
    make_dir("/dev/shm/shmdriver-4201.ffffffffffffffff", ALICE, 0700);
    make_dir("/dev/shm/shmdriver-4201.0000000000000000", ALICE, 0700);
    make_dir("/dev/shm/shmdriver-4201.ffffffffffffffff/x", ALICE, 0700);
    make_dir("/dev/shm/shmdriver-4201.0000000000000000/x", ALICE, 0700);
    as(ALICE, with_two_of_its_own);
}

enum { STARTERS = 8 };

static void *start_one(void *argument)
{
    shmd_folder_t *folder = argument;
    CHECK_EQ(shmd_folder_make("x", 0, folder), SHMD_OK);
    shmd_folder_close(folder);
    return NULL;
}

static void start_many(void)
{
    static shmd_folder_t folders[STARTERS];
    pthread_t threads[STARTERS];
    for (uint64_t turn = 0; turn < test_scale(200); turn++) {
        for (int i = 0; i < STARTERS; i++)
            threads[i] = test_thread(start_one, &folders[i]);
        for (int i = 0; i < STARTERS; i++)
            test_join(threads[i]);
        for (int i = 1; i < STARTERS; i++)
            CHECK_STR(folders[i].path, folders[0].path);
        CHECK_EQ(shmd_folder_make("x", 0, &folders[0]), SHMD_OK);
        CHECK_EQ(shmd_folder_remove(&folders[0]), SHMD_OK);
        shmd_folder_close(&folders[0]);
        CHECK_STR(find("x", UINT32_MAX, 0), "");
    }
}

static void starters(void) { as(ALICE, start_many); }

static void test_of_two_own_folders_the_locked_one_is_used_else_the_first(void) { in_world(two); }
static void test_starters_that_come_at_once_get_the_same_folder(void) { in_world(starters); }

/* ---- finding ------------------------------------------------------------------------------ */

static void find_as_bob(void)
{
    CHECK_STR(find("x", UINT32_MAX, 0), "/dev/shm/shmdriver-4202.0000000000000000/x"); /* its own comes before the system's */
    CHECK_STR(find("x", UINT32_MAX, 1), "/run/shmdriver/x");
    CHECK_STR(find("x", UINT32_MAX, 2), "");
    CHECK_STR(find("x", ALICE, 0), "/run/shmdriver/x");
    CHECK_STR(find("x", ALICE, 1), "");
    CHECK_STR(find("y", ALICE, 0), "/dev/shm/shmdriver-4201.0000000000000000/y");
    CHECK_STR(find("x", MALLORY, 0), "");
    CHECK_MENTIONS(shmd_folder_notes(), "/dev/shm/shmdriver-4203.\\x1b[2J can be written by others"); /* a name that drives no terminal */
}

static void find_as_root(void)
{
    CHECK_STR(find("x", UINT32_MAX, 0), ""); /* root uses others' drivers only when it names them */
    CHECK_MENTIONS(shmd_folder_notes(), "/run/shmdriver/x belongs to uid 4201");
    CHECK_STR(find("x", ALICE, 0), "/run/shmdriver/x");
    CHECK_STR(find("r", UINT32_MAX, 0), "/run/shmdriver/r");
}

static void find_in_a_loose_place(void)
{
    CHECK_STR(find("x", UINT32_MAX, 0), "/dev/shm/shmdriver-4202.0000000000000000/x");
    CHECK_STR(find("x", UINT32_MAX, 1), "");
    CHECK_MENTIONS(shmd_folder_notes(), "/run/shmdriver can be written by others");
}

static void find_in_a_foreign_place(void)
{
    CHECK_STR(find("x", UINT32_MAX, 0), "");
    CHECK_MENTIONS(shmd_folder_notes(), "/run/shmdriver belongs to uid 4203; expected uid 0");
}

static void finding(void)
{
    make_dir("/run/shmdriver", 0, 0755);
    make_dir("/run/shmdriver/x", ALICE, 0711);
    make_dir("/run/shmdriver/r", 0, 0700);
    make_dir("/dev/shm/shmdriver-4201.0000000000000000", ALICE, 0711);
    make_dir("/dev/shm/shmdriver-4201.0000000000000000/y", ALICE, 0711);
    make_dir("/dev/shm/shmdriver-4202.0000000000000000", BOB, 0700);
    make_dir("/dev/shm/shmdriver-4202.0000000000000000/x", BOB, 0700);
    make_dir("/dev/shm/shmdriver-4203.\x1b[2J", MALLORY, 0777);
    as(BOB, find_as_bob);
    find_as_root();
    CHECK_EQ(chmod("/run/shmdriver", 01777), 0);
    as(BOB, find_in_a_loose_place);
    CHECK_EQ(chmod("/run/shmdriver", 0755), 0);
    CHECK_EQ(chown("/run/shmdriver", MALLORY, MALLORY), 0);
    as(ALICE, find_in_a_foreign_place);
}

static void look_past_a_closed_place(void)
{
    shmd_folder_t folder;
    uint32_t cursor = 0;
    CHECK_EQ(setenv("XDG_RUNTIME_DIR", "/tmp/closed/x", 1), 0);
    CHECK_EQ(shmd_folder_find("x", UINT32_MAX, &cursor, &folder), 1);
    CHECK_STR(folder.path, "/dev/shm/shmdriver-4201.0000000000000000/x");
    shmd_folder_close(&folder);
    CHECK_EQ(shmd_folder_find("x", UINT32_MAX, &cursor, &folder), SHMD_E_SYSTEM);
    CHECK_TEXT("whether there are more runtime folders of instance x cannot be told: cannot resolve /tmp/closed/x: Permission denied");
    CHECK_EQ(folder.fd, -1);
    CHECK_EQ(setenv("XDG_RUNTIME_DIR", "/tmp/kept/x", 1), 0); /* what another user keeps to himself holds nothing of this one */
    cursor = 0;
    CHECK_EQ(shmd_folder_find("x", UINT32_MAX, &cursor, &folder), 1);
    shmd_folder_close(&folder);
    CHECK_EQ(shmd_folder_find("x", UINT32_MAX, &cursor, &folder), 0);
    CHECK_STR(find("x", BOB, 0), ""); /* likewise */
}

static void what_cannot_be_told(void)
{
    make_dir("/tmp/closed", ALICE, 0);
    make_dir("/tmp/kept", 0, 0700);
    make_dir("/run/user", 0, 0755);
    make_dir("/run/user/4202", BOB, 0700);
    make_dir("/dev/shm/shmdriver-4201.0000000000000000", ALICE, 0700);
    make_dir("/dev/shm/shmdriver-4201.0000000000000000/x", ALICE, 0700);
    as(ALICE, look_past_a_closed_place);
}

static void test_own_folders_come_before_the_system_s(void) { in_world(finding); }
static void test_a_place_that_cannot_be_looked_at_is_told_at_the_end(void) { in_world(what_cannot_be_told); }

/* ---- removing ----------------------------------------------------------------------------- */

static void removing(void)
{
    shmd_folder_t folder, other;
    CHECK_EQ(shmd_folder_make("x", 0, &folder), SHMD_OK);
    CHECK_EQ(shmd_folder_make("y", 0, &other), SHMD_OK);
    CHECK_EQ(shmd_folder_remove(&folder), SHMD_OK);
    CHECK(!exists(folder.path) && exists(other.path));
    CHECK_EQ(shmd_folder_remove(&folder), SHMD_OK); /* twice is once */
    int fd = openat(other.fd, "kept", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    CHECK_EQ(shmd_folder_remove(&other), SHMD_OK);
    CHECK(exists(other.path));
    CHECK_EQ(unlinkat(other.fd, "kept", 0), 0);
    (void)close(fd);
    char moved[SHMD_FOLDER_PATH_BYTES + 8];
    (void)snprintf(moved, sizeof moved, "%s-moved", other.path);
    CHECK_EQ(rename(other.path, moved), 0);
    CHECK_EQ(mkdir(other.path, 0700), 0); /* another stands there now */
    CHECK_EQ(shmd_folder_remove(&other), SHMD_OK);
    CHECK(exists(other.path) && exists(moved));
    CHECK_EQ(rmdir(moved), 0);
    shmd_folder_close(&folder);
    shmd_folder_close(&other);
    CHECK_EQ(shmd_folder_make("y", 0, &other), SHMD_OK);
    CHECK_EQ(shmd_folder_remove(&other), SHMD_OK);
    *strrchr(other.path, '/') = 0;
    CHECK(!exists(other.path)); /* nothing is left of it in /dev/shm */
    shmd_folder_close(&other);
}

static void as_alice_removing(void) { as(ALICE, removing); }
static void test_an_empty_folder_is_removed_and_nothing_else(void) { in_world(as_alice_removing); }

/* ---- user namespaces ---------------------------------------------------------------------- */

static void in_a_namespace_without_numbers(void)
{
    shmd_folder_t folder;
    if (!world_user_namespace(NULL))
        return;
    CHECK_EQ(geteuid(), 65534);
    CHECK_EQ(shmd_folder_make("x", 0, &folder), SHMD_E_SYSTEM);
    CHECK_TEXT("stands for every user who has no number in this user namespace");
}

static void in_a_namespace_of_one(void)
{
    if (!world_user_namespace("4201 4201 1\n"))
        return;
    check_in_shm(make("x", 0), "x"); /* `/`, /dev and /dev/shm are of nobody there */
    CHECK_EQ(setenv("XDG_RUNTIME_DIR", "/tmp/roots", 1), 0);
    check_in_shm(make("x", 0), "x");
    CHECK_MENTIONS(shmd_folder_notes(), "belongs to uid 65534, which is every user outside of this user namespace");
}

static void namespaces(void)
{
    make_dir("/tmp/roots", 0, 0755);
    as(ALICE, in_a_namespace_without_numbers);
    as(ALICE, in_a_namespace_of_one);
}

static void test_a_user_without_a_number_has_no_folder(void) { in_world(namespaces); }

int main(void)
{
    world_or_skip();
    if (!world_walks())
        SKIP("NOT LOOKED AT: no path can be walked from the root folder here");
    RUN(test_root_s_are_in_run);
    RUN(test_a_user_without_anything_has_one_in_dev_shm);
    RUN(test_a_user_s_runtime_directory_is_used_unless_a_group_has_to_pass);
    RUN(test_what_systemd_made_comes_first);
    RUN(test_an_xdg_directory_is_used_when_it_is_ours_only);
    RUN(test_planted_folders_in_dev_shm_are_not_taken);
    RUN(test_a_foreign_runtime_directory_is_passed_over_and_told);
    RUN(test_root_takes_no_place_that_others_can_write);
    RUN(test_the_named_one_is_binding_and_its_faults_are_named);
    RUN(test_a_read_only_run_is_passed_over);
    RUN(test_a_run_without_inodes_is_passed_over);
    RUN(test_a_full_run_is_passed_over);
    RUN(test_without_any_place_the_text_tells_of_each);
    RUN(test_only_names_of_instances_are_taken);
    RUN(test_of_two_own_folders_the_locked_one_is_used_else_the_first);
    RUN(test_starters_that_come_at_once_get_the_same_folder);
    RUN(test_own_folders_come_before_the_system_s);
    RUN(test_a_place_that_cannot_be_looked_at_is_told_at_the_end);
    RUN(test_an_empty_folder_is_removed_and_nothing_else);
    RUN(test_a_user_without_a_number_has_no_folder);
    return test_report();
}
