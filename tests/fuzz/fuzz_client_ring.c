/* The control segment of one client: a driver that reads it while somebody writes any bytes anywhere in it, and the segment of
 * another client beside it.
 *
 * Property: every poll ends, says 0, 1 or SHMD_E_CORRUPT, and moves nothing; an advance moves the cursor by one at most, and never
 * past the tail that was polled; what a poll accepts is a whole request for that position of that client; what is said of a
 * lease is one of four things or SHMD_E_CORRUPT; and all the time the other client's requests and notes get through. */
#include "core/shmd_client_ring.h"
#include "fuzz.h"

enum { STEPS = 256, NONCE = 0x5eed };

typedef struct party {
    shmd_control_t *control;
    uint64_t cursor;
    shmd_client_ring_t ring;
    shmd_client_ring_reader_t reader;
    uint32_t index;
} party_t;

static uint64_t id_of(const party_t *party) { return 100 + party->index; }

static void begin(party_t *party, uint32_t index, uint64_t position)
{
    uint64_t bytes = shmd_client_ring_footprint();
    *party = (party_t){.control = test_memory(bytes), .cursor = position, .index = index};
    MUST(shmd_client_ring_init(party->control, bytes, id_of(party), 99, 1) == SHMD_OK);
    shmd_segment_complete(party->control);
    party->control->tail = position;
    MUST(shmd_client_ring_open(&party->ring, party->control, &party->cursor, index, NONCE + index) == SHMD_OK);
    shmd_client_ring_reader_init(&party->reader, party->control, &party->cursor, id_of(party), index, NONCE + index);
}

static void end(party_t *party)
{
    shmd_client_ring_close(&party->ring);
    free(party->control);
}

static int send_honest(party_t *party, uint64_t correlation)
{
    shmd_request_t request;
    memset(&request, 0, sizeof request);
    request.kind = SHMD_REQUEST_GOODBYE;
    request.layout_version = SHMD_LAYOUT_VERSION;
    request.client_id = id_of(party);
    request.correlation_id = correlation;
    return shmd_client_ring_send(&party->ring, &request);
}

/* One poll, and what a driver does about it. */
static int drive(party_t *party, shmd_request_t *request, int advances)
{
    uint64_t before = party->cursor, tail = party->control->tail;
    shmd_client_ring_reader_t *reader = &party->reader;
    int rests = shmd_client_ring_rests(reader);
    int found = shmd_client_ring_poll(reader, request);
    MUST(found == 0 || found == 1 || found == SHMD_E_CORRUPT);
    MUST(rests == (found == 0) && (found == 0) == (tail == before));
    MUST(party->cursor == before);
    if (found == 1) {
        MUST(request->position == before && request->client_id == id_of(party));
        MUST(request->checksum == shmd_request_checksum(request, party->index + 1, NONCE + party->index));
        (void)shmd_request_check(request);
    }
    if (!advances)
        return found;
    int is_possible = tail - before >= 1 && tail - before <= SHMD_CLIENT_REQUESTS;
    shmd_client_ring_advance(reader);
    shmd_client_ring_advance(reader); /* the second one has nothing to advance over */
    MUST(party->cursor == before + (uint64_t)is_possible);
    return found;
}

static void look(const party_t *party, uint32_t entry, uint64_t lease_id)
{
    int said = shmd_client_ring_look(party->control, entry, lease_id);
    if (entry >= SHMD_CLIENT_LEASES)
        MUST(said == SHMD_E_INVALID);
    else
        MUST((said >= SHMD_ENTRY_NONE && said <= SHMD_ENTRY_ABORTED) || said == SHMD_E_CORRUPT);
}

/* Any bytes anywhere, a tail near the cursor, or a request with a right checksum over wrong bytes. */
static void disturb(party_t *party, input_t *input)
{
    shmd_control_t *control = party->control;
    uint64_t position = party->cursor + input_take(input, 1) % (2 * SHMD_CLIENT_REQUESTS);
    shmd_request_t *request = &control->requests[position % SHMD_CLIENT_REQUESTS];
    switch (input_take(input, 1) % 4) {
    case 0:
        control->tail = position;
        break;
    case 1:
        control->tail = input_number(input);
        break;
    case 2:
        request->position = position;
        request->client_id = id_of(party);
        input_patch(input, request, sizeof *request, 2);
        request->checksum = shmd_request_checksum(request, party->index + 1, NONCE + party->index);
        control->tail = position + 1;
        break;
    default:
        input_patch(input, control, sizeof *control, 3);
    }
}

/* The other client, whatever its neighbour does. */
static void talk(party_t *honest, uint64_t step)
{
    shmd_request_t request;
    uint32_t entry = (uint32_t)(step % SHMD_CLIENT_LEASES);
    uint32_t how = step % 2 == 0 ? SHMD_ENTRY_DETACHED : SHMD_ENTRY_ABORTED;
    MUST(send_honest(honest, step) == SHMD_OK);
    MUST(drive(honest, &request, 1) == 1 && request.correlation_id == step);
    MUST(shmd_client_ring_confirm(&honest->ring, entry, step) == SHMD_OK);
    MUST(shmd_client_ring_look(honest->control, entry, step) == SHMD_ENTRY_CONFIRMED);
    MUST(shmd_client_ring_detach(&honest->ring, entry, step, how) == SHMD_OK);
    MUST(shmd_client_ring_look(honest->control, entry, step) == (int)how);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input_t input = {.at = data, .left = size};
    shmd_request_t request;
    party_t wild, honest;
    begin(&wild, 3, input_number(&input));
    begin(&honest, 4, 0);
    for (uint64_t step = 1; step <= STEPS && input.left != 0; step++) {
        uint64_t act = input_take(&input, 1);
        if (act < 112)
            disturb(&wild, &input);
        else if (act < 144)
            (void)send_honest(&wild, act);
        else if (act < 208)
            (void)drive(&wild, &request, act % 4 != 0);
        else if (act < 232)
            look(&wild, (uint32_t)input_take(&input, 2), input_number(&input));
        else if (act < 240)
            (void)shmd_client_ring_check(wild.control, shmd_client_ring_footprint(), id_of(&wild), 99);
        else if (act < 248)
            talk(&honest, step);
        else /* the driver is another one */
            shmd_client_ring_reader_init(&wild.reader, wild.control, &wild.cursor, id_of(&wild), wild.index, NONCE + wild.index);
    }
    talk(&honest, STEPS + 1);
    end(&wild);
    end(&honest);
    return 0;
}
