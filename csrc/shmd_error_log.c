/* shmd_error_log.c: distinct errors with a count and two times, after Aeron's distinct error log. W:driver R:tools. */
#include "shmd_internal.h"

int shmd_error_log_add(shmd_authority_t *authority, const char *text, uint64_t now_ns)
{
    char fitted[SHMD_ERROR_TEXT_BYTES];
    size_t length = strlen(text);
    length = length < sizeof fitted - 1 ? length : sizeof fitted - 1;
    memset(fitted, 0, sizeof fitted);
    memcpy(fitted, text, length);
    shmd_counter_add(authority, SHMD_COUNTER_ERRORS, 1);
    for (uint32_t i = 0; i < authority->error_max; i++) {
        shmd_error_record_t *record = shmd_authority_error(authority, i);
        uint64_t count = shmd_load_relaxed(&record->count);
        if (count == 0) {
            memcpy(record->text, fitted, sizeof fitted);
            record->first_ns = now_ns;
        } else if (memcmp(record->text, fitted, sizeof fitted) != 0) {
            continue;
        }
        shmd_store_relaxed(&record->last_ns, now_ns);
        shmd_store_release(&record->count, count + 1); /* T3: publishes text and first_ns; pairs with the tools' acquire load */
        return (int)i;
    }
    return -1;
}
