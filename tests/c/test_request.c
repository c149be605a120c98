/* What a request may look like: every refusal by name, and bytes that nobody meant as a request. */
#include "test.h"

static shmd_request_t good(uint32_t kind)
{
    shmd_request_t r;
    memset(&r, 0, sizeof r);
    r.kind = kind;
    r.layout_version = SHMD_LAYOUT_VERSION;
    r.correlation_id = 1;
    r.lease_id = 5;
    r.admin = 1;
    r.role = SHMD_ROLE_PRODUCER;
    r.arena_bytes = UINT64_MAX;
    memcpy(r.stream, "md/ticks.EURUSD", 15);
    return r;
}

static shmd_request_t good_consumer(void)
{
    shmd_request_t r = good(SHMD_REQUEST_ATTACH);
    r.role = SHMD_ROLE_CONSUMER;
    r.delivery = SHMD_DELIVERY_LOSSY;
    r.start = SHMD_START_OLDEST;
    r.wait = SHMD_WAIT_SLEEP;
    r.flags = SHMD_ATTACH_CREATE | SHMD_ATTACH_FOLLOW;
    return r;
}

#define REFUSED(request, code, text)                  \
    do {                                              \
        CHECK_EQ(shmd_request_check(&(request)), code); \
        CHECK_TEXT(text);                             \
    } while (0)

static void test_every_kind_is_accepted(void)
{
    for (uint32_t kind = SHMD_REQUEST_ATTACH; kind <= SHMD_REQUEST_ADMIN; kind++) {
        shmd_request_t r = good(kind);
        CHECK_EQ(shmd_request_check(&r), SHMD_OK);
    }
    shmd_request_t r = good_consumer();
    CHECK_EQ(shmd_request_check(&r), SHMD_OK);
}

static void test_unknown_kinds_and_versions_are_refused(void)
{
    shmd_request_t r = good(SHMD_REQUEST_ATTACH);
    r.kind = 0;
    REFUSED(r, SHMD_E_INVALID, "kind");
    r.kind = UINT32_MAX;
    REFUSED(r, SHMD_E_INVALID, "kind");
    r = good(SHMD_REQUEST_ATTACH);
    r.layout_version = SHMD_LAYOUT_VERSION + 1;
    REFUSED(r, SHMD_E_LAYOUT, "layout version");
    r = good(SHMD_REQUEST_DETACH);
    r.correlation_id = 0;
    REFUSED(r, SHMD_E_INVALID, "correlation");
}

static void test_a_producers_numbers_have_limits(void)
{
    shmd_request_t r = good(SHMD_REQUEST_ATTACH);
    r.role = 3;
    REFUSED(r, SHMD_E_INVALID, "role");
    r = good(SHMD_REQUEST_ATTACH);
    r.slots = SHMD_SLOTS_MAX + 1;
    REFUSED(r, SHMD_E_INVALID, "slots");
    r = good(SHMD_REQUEST_ATTACH);
    r.slot_bytes = SHMD_SLOT_BYTES_MAX + 1;
    REFUSED(r, SHMD_E_INVALID, "slot_bytes");
    r = good(SHMD_REQUEST_ATTACH);
    r.max_message = UINT32_MAX;
    REFUSED(r, SHMD_E_INVALID, "max_message");
    r = good(SHMD_REQUEST_ATTACH);
    r.arena_bytes = UINT64_MAX - 1;
    REFUSED(r, SHMD_E_INVALID, "arena");
    r = good(SHMD_REQUEST_ATTACH);
    r.min_consumers = SHMD_GATE_MAX + 1;
    REFUSED(r, SHMD_E_INVALID, "min_consumers");
    r = good(SHMD_REQUEST_ATTACH);
    r.slow_consumer = 4;
    REFUSED(r, SHMD_E_INVALID, "slow_consumer");
    r = good(SHMD_REQUEST_ATTACH);
    r.flags = SHMD_ATTACH_FOLLOW;
    REFUSED(r, SHMD_E_INVALID, "flags");
}

static void test_a_consumers_choices_are_known_ones(void)
{
    shmd_request_t r = good_consumer();
    r.delivery = 0;
    REFUSED(r, SHMD_E_INVALID, "delivery");
    r = good_consumer();
    r.start = 3;
    REFUSED(r, SHMD_E_INVALID, "start");
    r = good_consumer();
    r.wait = UINT32_MAX;
    REFUSED(r, SHMD_E_INVALID, "wait");
    r = good_consumer();
    r.flags = SHMD_ATTACH_TIMESTAMPS;
    REFUSED(r, SHMD_E_INVALID, "flags");
}

static void test_names_are_terminated_and_of_allowed_characters(void)
{
    static const char *const bad[] = {"", " x", "a b", "-a", ".a", "/a", "a\x01", "a\xc3\xa4", "a\"", "a\\b", "a%", "a*"};
    static const char *const fine[] = {"a", "_a", "9", "a.b_c:d/e@f+g-h", "A0123456789012345678901234567890123456789012345678901234567890"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        shmd_request_t r = good(SHMD_REQUEST_ATTACH);
        memset(r.stream, 0, sizeof r.stream);
        memcpy(r.stream, bad[i], strlen(bad[i]));
        REFUSED(r, SHMD_E_INVALID, "name");
        CHECK_EQ(shmd_name_check(bad[i]), SHMD_E_INVALID);
    }
    for (size_t i = 0; i < sizeof fine / sizeof fine[0]; i++)
        CHECK_EQ(shmd_name_check(fine[i]), SHMD_OK);
    shmd_request_t r = good(SHMD_REQUEST_ATTACH);
    memset(r.stream, 'a', sizeof r.stream);
    REFUSED(r, SHMD_E_INVALID, "not terminated");
    r = good(SHMD_REQUEST_GOODBYE);
    memset(r.text, 'a', sizeof r.text);
    REFUSED(r, SHMD_E_INVALID, "not terminated");
}

static void test_texts_are_utf8_without_control_characters(void)
{
    static const char *const bad[] = {"\x80", "\xc0\x80", "\xc3", "\xe2\x82", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff",
                                      "a\x1b[31m", "\x7f", "\xe0\x80\x80", "\xf0\x80\x80\x80", "\xc3(", "abc\xe2\x28\xa1"};
    static const char *const fine[] = {"", "plain", "Gr\xc3\xbc\xc3\x9f" "e", "\xe2\x82\xac", "\xf0\x9f\x8e\x89", "two\nlines\tand a tab"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        shmd_request_t r = good(SHMD_REQUEST_GOODBYE);
        memcpy(r.text, bad[i], strlen(bad[i]));
        REFUSED(r, SHMD_E_INVALID, "reason text");
    }
    for (size_t i = 0; i < sizeof fine / sizeof fine[0]; i++) {
        shmd_request_t r = good(SHMD_REQUEST_GOODBYE);
        memcpy(r.text, fine[i], strlen(fine[i]));
        CHECK_EQ(shmd_request_check(&r), SHMD_OK);
    }
}

static void test_a_schema_is_as_long_as_it_says(void)
{
    shmd_request_t r = good(SHMD_REQUEST_ATTACH);
    memcpy(r.schema, "[('a', '<i8')]", 14);
    r.schema_bytes = 14;
    CHECK_EQ(shmd_request_check(&r), SHMD_OK);
    r.schema_bytes = 13;
    REFUSED(r, SHMD_E_INVALID, "schema length");
    r.schema_bytes = SHMD_SCHEMA_BYTES;
    REFUSED(r, SHMD_E_INVALID, "schema length");
    r.schema_bytes = UINT32_MAX;
    REFUSED(r, SHMD_E_INVALID, "schema length");
    memset(r.schema, 'a', sizeof r.schema);
    r.schema_bytes = SHMD_SCHEMA_BYTES - 1;
    REFUSED(r, SHMD_E_INVALID, "schema");
}

static void test_the_other_kinds_are_checked_too(void)
{
    shmd_request_t r = good(SHMD_REQUEST_DETACH);
    r.lease_id = 0;
    REFUSED(r, SHMD_E_INVALID, "detach");
    r = good(SHMD_REQUEST_DETACH);
    r.flags = 1;
    REFUSED(r, SHMD_E_INVALID, "flags");
    r = good(SHMD_REQUEST_SHUTDOWN);
    r.admin = 3;
    REFUSED(r, SHMD_E_INVALID, "shutdown mode");
    r = good(SHMD_REQUEST_ADMIN);
    r.admin = 0;
    REFUSED(r, SHMD_E_INVALID, "admin");
}

/* Sanitizers watch. What is accepted must hold what the driver relies on. */
static void test_hostile_bytes_are_refused_or_harmless(void)
{
    uint64_t seed = 42, accepted = 0;
    unsigned char *exact = test_memory(sizeof(shmd_request_t)); /* on the heap: a read past its end is seen */
    for (uint64_t round = 0; round < test_scale(300000); round++) {
        shmd_request_t r = round % 2 ? good_consumer() : good((uint32_t)(round % 6 + 1));
        for (uint64_t n = test_random(&seed) % 6; n > 0; n--) {
            uint64_t at = test_random(&seed) % sizeof r;
            ((unsigned char *)&r)[at] = (unsigned char)test_random(&seed);
        }
        if (round % 50 == 0)
            for (size_t i = 0; i < sizeof r; i++)
                ((unsigned char *)&r)[i] = (unsigned char)test_random(&seed);
        memcpy(exact, &r, sizeof r);
        const shmd_request_t *request = (const shmd_request_t *)(const void *)exact;
        if (shmd_request_check(request) != SHMD_OK) {
            CHECK(shmd_last_error()[0] != 0);
            continue;
        }
        accepted++;
        CHECK(request->kind >= SHMD_REQUEST_ATTACH && request->kind <= SHMD_REQUEST_ADMIN && request->correlation_id != 0);
        if (request->kind == SHMD_REQUEST_ATTACH) {
            CHECK(strnlen(request->stream, SHMD_NAME_BYTES) < SHMD_NAME_BYTES && strlen(request->schema) == request->schema_bytes);
            CHECK(request->slots <= SHMD_SLOTS_MAX || request->role == SHMD_ROLE_CONSUMER);
        }
    }
    CHECK(accepted > 0);
    free(exact);
}

static void test_the_checksum_covers_every_byte(void)
{
    shmd_request_t r = good_consumer();
    uint64_t sum = shmd_request_checksum(&r, 3, 99);
    CHECK(sum != shmd_request_checksum(&r, 4, 99));
    CHECK(sum != shmd_request_checksum(&r, 3, 98));
    for (size_t at = sizeof r.checksum; at < sizeof r; at++) {
        ((unsigned char *)&r)[at] ^= 1;
        if (sum == shmd_request_checksum(&r, 3, 99))
            TEST_FAIL("byte %zu does not count", at);
        ((unsigned char *)&r)[at] ^= 1;
    }
    CHECK_EQ(sum, shmd_request_checksum(&r, 3, 99));
}

int main(void)
{
    RUN(test_every_kind_is_accepted);
    RUN(test_unknown_kinds_and_versions_are_refused);
    RUN(test_a_producers_numbers_have_limits);
    RUN(test_a_consumers_choices_are_known_ones);
    RUN(test_names_are_terminated_and_of_allowed_characters);
    RUN(test_texts_are_utf8_without_control_characters);
    RUN(test_a_schema_is_as_long_as_it_says);
    RUN(test_the_other_kinds_are_checked_too);
    RUN(test_hostile_bytes_are_refused_or_harmless);
    RUN(test_the_checksum_covers_every_byte);
    return test_report();
}
