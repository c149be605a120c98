/* The request decoder: any bytes as a request. What passes the check may be used as the driver uses it.
 * fault: 23 (libFuzzer: any bytes as a request) */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    shmd_request_t whole;
    memset(&whole, 0, sizeof whole);
    whole.kind = SHMD_REQUEST_ATTACH;
    whole.layout_version = SHMD_LAYOUT_VERSION;
    whole.correlation_id = 1;
    whole.role = SHMD_ROLE_CONSUMER;
    whole.delivery = whole.start = whole.wait = 1;
    memcpy(whole.stream, "s", 2);
    input_t input = {.at = data, .left = size};
    uint64_t how = input_take(&input, 1);
    if (how == 255) /* all of it, as it is */
        memcpy(&whole, input.at, input.left < sizeof whole ? input.left : sizeof whole);
    else {
        whole.kind = (uint32_t)(how & 7);
        whole.role = (uint32_t)(how >> 3 & 3);
        whole.lease_id = how >> 5 & 1;
        whole.admin = 1;
        input_patch(&input, &whole, sizeof whole, 64);
    }
    shmd_request_t *request = fuzz_copy(&whole, sizeof whole); /* on the heap: a text without its end is read past it */
    int found = shmd_request_check(request);
    MUST(found == SHMD_OK || found == SHMD_E_INVALID || found == SHMD_E_LAYOUT);
    MUST(memcmp(request, &whole, sizeof whole) == 0);
    if (found == SHMD_OK) {
        MUST(request->kind >= SHMD_REQUEST_ATTACH && request->kind <= SHMD_REQUEST_ADMIN && request->correlation_id != 0);
        MUST(memchr(request->text, 0, sizeof request->text) != NULL);
        if (request->kind == SHMD_REQUEST_ATTACH || request->kind == SHMD_REQUEST_DETACH) {
            MUST(memchr(request->stream, 0, sizeof request->stream) != NULL && request->stream[0] != 0);
            MUST(request->role == SHMD_ROLE_PRODUCER || request->role == SHMD_ROLE_CONSUMER);
        }
        if (request->kind == SHMD_REQUEST_ATTACH)
            MUST(request->schema_bytes < SHMD_SCHEMA_BYTES && strlen(request->schema) == request->schema_bytes);
        if (request->kind == SHMD_REQUEST_ATTACH && request->role == SHMD_ROLE_PRODUCER) {
            uint32_t slots = request->slots, slot_bytes = request->slot_bytes;
            uint64_t arena_bytes = request->arena_bytes == UINT64_MAX ? 0 : request->arena_bytes;
            shmd_geometry_round(&slots, &slot_bytes, &arena_bytes); /* what the driver does next: in range, or refused, never wrapped */
            shmd_geometry_t geometry = {.slots = slots, .slot_bytes = slot_bytes, .arena_bytes = arena_bytes, .gate_count = 1};
            uint64_t bytes = shmd_data_footprint(&geometry);
            MUST(bytes == 0 || bytes > arena_bytes);
        }
    }
    (void)shmd_request_checksum(request, (uint32_t)how, request->nonce);
    free(request);
    return 0;
}
