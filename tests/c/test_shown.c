/* test_shown.c: this thread's error text drives no terminal and is one line, whatever names and answers it contains.
 * fault: 85 (names, paths and answers in the error texts of the C core) */
#include "rig.h"

static void shows(const char *given, const char *expected)
{
    char text[2048];
    (void)snprintf(text, sizeof text, "stream %s: no", expected);
    CHECK_EQ(shmd_fail(SHMD_E_INVALID, "stream %s: no", given), SHMD_E_INVALID);
    if (strcmp(shmd_last_error(), text) != 0)
        TEST_FAIL("found \"%s\", expected \"%s\"", shmd_last_error(), text);
}

static void test_what_drives_a_terminal_is_escaped(void)
{
    shows("a\nb\r\t\x1b[2J\x7f", "a\\x0ab\\x0d\\x09\\x1b[2J\\x7f");
    shows("\xc2\x9b" "2J\xc2\x85", "\\x9b2J\\x85");
    shows("\xd8\x9c\xe2\x80\x8e\xe2\x80\xa8\xe2\x80\xae\xe2\x81\xa6\xef\xbb\xbf", "\\u061c\\u200e\\u2028\\u202e\\u2066\\ufeff");
    shows("\xf3\xa0\x80\x81", "\\U000e0001");
}

static void test_text_is_left_as_it_is(void)
{
    shows("quotes/x@1", "quotes/x@1");
    shows("gr\xc3\xb6\xc3\x9f" "e \xe2\x86\x92 \xe6\xbc\xa2 \xf0\x9f\x98\x80 \\n", "gr\xc3\xb6\xc3\x9f" "e \xe2\x86\x92 \xe6\xbc\xa2 \xf0\x9f\x98\x80 \\n");
}

static void test_bytes_that_are_no_text_are_shown_as_numbers(void)
{
    shows("\xff\xc0\xaf\xe2\x80", "\\xff\\xc0\\xaf\\xe2\\x80");
    shows("\x9b\xf5\x80", "\\x9b\\xf5\\x80");
}

static void test_a_text_that_grows_is_cut_and_ends(void)
{
    char given[4096];
    memset(given, 0x1b, sizeof given - 1);
    given[sizeof given - 1] = '\0';
    CHECK_EQ(shmd_fail(SHMD_E_INVALID, "%s", given), SHMD_E_INVALID);
    size_t length = strlen(shmd_last_error());
    CHECK(length >= SHMD_TEXT_BYTES - 1);
    CHECK_EQ(length % 4, 0);
    CHECK(strspn(shmd_last_error(), "\\x1b") == length);
}

static void test_a_system_error_names_its_file_escaped(void)
{
    errno = ENOENT;
    CHECK_EQ(shmd_fail_errno(SHMD_CALL_OPEN, "cannot open %s", "/shmd.\x1b]0;t\x07"), SHMD_E_SYSTEM);
    CHECK_EQ(errno, ENOENT);
    CHECK_TEXT("cannot open /shmd.\\x1b]0;t\\x07: ");
}

int main(void)
{
    RUN(test_what_drives_a_terminal_is_escaped);
    RUN(test_text_is_left_as_it_is);
    RUN(test_bytes_that_are_no_text_are_shown_as_numbers);
    RUN(test_a_text_that_grows_is_cut_and_ends);
    RUN(test_a_system_error_names_its_file_escaped);
    return test_report();
}
