/* shmd_request.c: what a request may look like. Works on a private copy only; nothing here reads shared memory. */
#include "core/shmd_hello.h"
#include "shmd_internal.h"

#include <ctype.h>

uint64_t shmd_request_checksum(const shmd_request_t *request, uint32_t who, uint64_t nonce)
{
    uint64_t seed = shmd_hash(&nonce, sizeof nonce, ((uint64_t)who << 32) ^ request->position);
    return shmd_hash((const unsigned char *)request + sizeof request->checksum, sizeof *request - sizeof request->checksum, seed);
}

int shmd_name_check(const char *name)
{
    size_t length = strnlen(name, SHMD_NAME_BYTES);
    if (length == 0)
        return shmd_fail(SHMD_E_INVALID, "empty name: a name has 1 to %d characters", SHMD_NAME_BYTES - 1);
    if (length >= SHMD_NAME_BYTES)
        return shmd_fail(SHMD_E_INVALID, "name of %d bytes or more: a name has 1 to %d", SHMD_NAME_BYTES, SHMD_NAME_BYTES - 1);
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)name[i];
        if (!(c < 128 && isalnum(c)) && (c == 0 || strchr("._:/@+-", c) == NULL))
            return shmd_fail(SHMD_E_INVALID, "name has byte 0x%02x at %zu: letters, digits and ._:/@+- are allowed", c, i);
        if (i == 0 && c != '_' && !isalnum(c))
            return shmd_fail(SHMD_E_INVALID, "name begins with '%c': it begins with a letter, a digit or _", c);
    }
    return SHMD_OK;
}

/* Well-formed UTF-8 without control characters but newline and tab, terminated within limit bytes. */
int shmd_text_check(const char *what, const char *text, size_t limit)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t length = strnlen(text, limit);
    if (length == limit)
        return shmd_fail(SHMD_E_INVALID, "%s is not terminated within %zu bytes", what, limit);
    for (size_t i = 0; i < length;) {
        unsigned char c = p[i];
        size_t more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2 : c >= 0xf0 && c < 0xf5 ? 3 : 4;
        if (more == 4 || i + more >= length + (more == 0) || (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f)
            return shmd_fail(SHMD_E_INVALID, "%s has byte 0x%02x at %zu: text is UTF-8 without control characters", what, c, i);
        uint32_t point = more == 0 ? c : more == 1 ? c & 0x1fu : more == 2 ? c & 0x0fu : c & 0x07u;
        for (size_t k = 1; k <= more; k++) {
            if ((p[i + k] & 0xc0) != 0x80)
                return shmd_fail(SHMD_E_INVALID, "%s is not UTF-8 at byte %zu", what, i + k);
            point = point << 6 | (p[i + k] & 0x3fu);
        }
        if ((more == 2 && (point < 0x800 || (point >= 0xd800 && point < 0xe000))) || (more == 3 && (point < 0x10000 || point > 0x10ffff)))
            return shmd_fail(SHMD_E_INVALID, "%s has the invalid code point U+%04X at byte %zu", what, point, i);
        i += more + 1;
    }
    return SHMD_OK;
}

int shmd_request_begin(shmd_request_t *request, uint32_t role, const char *stream, const char *schema)
{
    size_t schema_bytes = schema == NULL ? 0 : strlen(schema);
    int rc = shmd_name_check(stream);
    if (rc == SHMD_OK && schema_bytes >= SHMD_SCHEMA_BYTES)
        rc = shmd_fail(SHMD_E_INVALID, "schema of %zu bytes: at most %d", schema_bytes, SHMD_SCHEMA_BYTES - 1);
    if (rc != SHMD_OK)
        return rc;
    memset(request, 0, sizeof *request);
    request->kind = SHMD_REQUEST_ATTACH;
    request->role = role;
    memcpy(request->stream, stream, strlen(stream));
    if (schema != NULL)
        memcpy(request->schema, schema, schema_bytes);
    request->schema_bytes = (uint32_t)schema_bytes;
    return SHMD_OK;
}

static int name_in_request(const char *what, const char *name)
{
    if (strnlen(name, SHMD_NAME_BYTES) == SHMD_NAME_BYTES)
        return shmd_fail(SHMD_E_INVALID, "%s is not terminated within %d bytes", what, SHMD_NAME_BYTES);
    return shmd_name_check(name);
}

static int range(const char *what, uint64_t value, uint64_t low, uint64_t high)
{
    if (value >= low && value <= high)
        return SHMD_OK;
    return shmd_fail(SHMD_E_INVALID, "%s is %llu, allowed are %llu to %llu", what, (unsigned long long)value, (unsigned long long)low,
                     (unsigned long long)high);
}

static int attach_check(const shmd_request_t *r)
{
    int rc = name_in_request("stream name", r->stream);
    rc = rc ? rc : range("role", r->role, SHMD_ROLE_PRODUCER, SHMD_ROLE_CONSUMER);
    rc = rc ? rc : range("schema length", r->schema_bytes, 0, SHMD_SCHEMA_BYTES - 1);
    rc = rc ? rc : shmd_text_check("schema", r->schema, SHMD_SCHEMA_BYTES);
    if (rc == SHMD_OK && strnlen(r->schema, SHMD_SCHEMA_BYTES) != r->schema_bytes)
        rc = shmd_fail(SHMD_E_INVALID, "schema length is %u, its text has %zu bytes", r->schema_bytes, strnlen(r->schema, SHMD_SCHEMA_BYTES));
    if (rc != SHMD_OK)
        return rc;
    if (r->role == SHMD_ROLE_CONSUMER) {
        rc = range("delivery", r->delivery, SHMD_DELIVERY_RELIABLE, SHMD_DELIVERY_LATEST);
        rc = rc ? rc : range("start", r->start, SHMD_START_NEWEST, SHMD_START_OLDEST);
        rc = rc ? rc : range("wait", r->wait, SHMD_WAIT_ADAPTIVE, SHMD_WAIT_SLEEP);
        rc = rc ? rc : range("shards", r->shards, 0, SHMD_GATE_MAX);
        return rc ? rc : range("flags", r->flags & ~3u, 0, 0);
    }
    rc = range("slow_consumer", r->slow_consumer, SHMD_SLOW_DEFAULT, SHMD_SLOW_REFUSE);
    rc = rc ? rc : range("min_consumers", r->min_consumers, 0, SHMD_GATE_MAX);
    rc = rc ? rc : range("slots", r->slots, 0, SHMD_SLOTS_MAX);
    rc = rc ? rc : range("slot_bytes", r->slot_bytes, 0, SHMD_SLOT_BYTES_MAX);
    rc = rc ? rc : range("max_message", r->max_message, 0, UINT32_MAX - 1);
    if (rc == SHMD_OK && r->arena_bytes != UINT64_MAX)
        rc = range("arena", r->arena_bytes, 0, (uint64_t)1 << 46);
    return rc ? rc : range("flags", r->flags & ~(uint32_t)(SHMD_ATTACH_CREATE | SHMD_ATTACH_NO_WAKEUPS | SHMD_ATTACH_TIMESTAMPS), 0, 0);
}

int shmd_request_check(const shmd_request_t *r)
{
    int rc = range("kind", r->kind, SHMD_REQUEST_ATTACH, SHMD_REQUEST_ADMIN);
    if (rc != SHMD_OK)
        return rc;
    if (r->layout_version != SHMD_LAYOUT_VERSION)
        return shmd_fail(SHMD_E_LAYOUT, "client speaks layout version %u, this driver %u: use the same shmdriver version on both sides",
                         r->layout_version, (unsigned)SHMD_LAYOUT_VERSION);
    if (r->correlation_id == 0)
        return shmd_fail(SHMD_E_INVALID, "correlation id is 0");
    rc = shmd_text_check("reason text", r->text, SHMD_REASON_BYTES);
    if (rc != SHMD_OK)
        return rc;
    switch (r->kind) {
    case SHMD_REQUEST_ATTACH:
        return attach_check(r);
    case SHMD_REQUEST_DETACH:
        if (r->lease_id == 0 && r->target_correlation_id == 0)
            return shmd_fail(SHMD_E_INVALID, "detach names neither a lease nor an attach");
        rc = name_in_request("stream name", r->stream);
        rc = rc ? rc : range("role", r->role, SHMD_ROLE_PRODUCER, SHMD_ROLE_CONSUMER);
        if (rc != SHMD_OK)
            return rc;
        return range("flags", r->flags & ~(uint32_t)SHMD_DETACH_ABORTED, 0, 0);
    case SHMD_REQUEST_SHUTDOWN:
        return range("shutdown mode", r->admin, SHMD_SHUTDOWN_END, SHMD_SHUTDOWN_HANDOVER);
    case SHMD_REQUEST_ADMIN:
        return range("admin request", r->admin, SHMD_ADMIN_MAINTENANCE_ON, SHMD_ADMIN_FORGET);
    default:
        return SHMD_OK;
    }
}
