/* The control ring: a driver that reads, honest clients that send, and somebody who writes any word into it.
 *
 * Property: every poll ends; the driver's cursor only grows; what a poll accepts is a whole request for that position of a
 * claimer that exists; and when the writing stops, honest requests get through within two laps, from a new driver's reader too.
 * fault: 23, 27 (libFuzzer: any words in the control ring) */
#include "fuzz.h"

enum { CLIENTS = 8, LEASES = 16, STEPS = 256, NONCE = 0x5eed };

static rig_t rig;
static uint64_t now_ns = 1;

static void restart(void)
{
    shmd_authority_params_t params = {.instance = "fuzz", .control_name = "/shmd.fuzz.control", .boot_id = 99, .now_ns = 1,
                                      .heartbeat_interval_ns = 1000, .lease_timeout_ns = 1000, .client_max = CLIENTS, .lease_max = LEASES,
                                      .stream_max = 1, .event_slots = 4, .config_bytes = 256, .error_max = 1};
    uint64_t bytes = shmd_authority_footprint(&params);
    if (rig.authority == NULL) {
        rig.authority = test_memory(bytes);
        rig.control = test_memory(shmd_control_footprint(CLIENTS, LEASES));
    }
    MUST(shmd_authority_init(rig.authority, bytes, &params) == SHMD_OK);
    MUST(shmd_control_init(rig.control, shmd_control_footprint(CLIENTS, LEASES), CLIENTS, LEASES, 99, 1) == SHMD_OK);
    for (uint32_t i = 0; i < CLIENTS / 2; i++) {
        shmd_client_record_t *client = shmd_authority_client(rig.authority, i);
        client->client_id = 100 + i;
        client->nonce = NONCE + i;
        client->index = i;
        client->word = 0x200 | SHMD_CLIENT_ALIVE;
    }
}

static int send_honest(uint32_t client, uint64_t correlation)
{
    shmd_request_t request;
    memset(&request, 0, sizeof request);
    request.kind = SHMD_REQUEST_GOODBYE;
    request.layout_version = SHMD_LAYOUT_VERSION;
    request.client_id = 100 + client;
    request.correlation_id = correlation;
    return shmd_control_send(rig.control, rig.authority, &request, client + 1, NONCE + client, 0);
}

/* One poll and what a driver does about it. 1: something was read or skipped. */
static int drive(shmd_control_reader *reader, uint64_t *accepted)
{
    shmd_request_t request;
    uint64_t before = rig.authority->control_cursor;
    now_ns += 1000000;
    int found = shmd_control_poll(reader, &request, now_ns);
    MUST(found == 0 || found == 1 || found == SHMD_E_CORRUPT || found == SHMD_E_TIMEOUT);
    MUST(rig.authority->control_cursor - before <= SHMD_CONTROL_SLOTS);
    uint32_t who = shmd_control_claimer(reader);
    if (found == 1) {
        MUST(request.position == rig.authority->control_cursor);
        MUST(who >= 1 && who <= CLIENTS / 2 && request.client_id == 99 + who);
        *accepted = request.correlation_id;
        (void)shmd_request_check(&request);
    }
    if (found == SHMD_E_TIMEOUT)
        return shmd_control_skip(reader, (who & 1) != 0);
    if (found != 0)
        shmd_control_advance(reader);
    return found != 0;
}

/* Any word at any place of the ring, or a request with a right checksum over wrong bytes. */
static void disturb(input_t *input)
{
    uint64_t how = input_take(input, 1);
    uint64_t position = rig.authority->control_cursor + input_take(input, 1) % SHMD_CONTROL_SLOTS;
    shmd_control_slot_t *slot = shmd_control_slot(rig.control, position);
    uint32_t lap = shmd_position_lap(position);
    uint32_t who = (uint32_t)input_take(input, 1) % (CLIENTS + 2);
    switch (how % 6) {
    case 5: /* a run of slots, up to all of them, that say the same */
        for (uint64_t end = position + 1 + input_take(input, 1) % SHMD_CONTROL_SLOTS; position < end; position++)
            shmd_control_slot(rig.control, position)->turn = shmd_turn(shmd_position_lap(position), who, (uint32_t)(how >> 4));
        break;
    case 0:
        slot->turn = shmd_turn(lap, who, (uint32_t)(how >> 4));
        break;
    case 1:
        slot->turn = input_number(input);
        break;
    case 2:
        rig.control->tail = input_number(input);
        rig.control->doorbell = (uint32_t)input_take(input, 4);
        break;
    case 3: /* committed by somebody, with a checksum that is right and bytes that need not be */
        slot->request.position = position;
        slot->request.client_id = 99 + who;
        slot->request.nonce = input_take(input, 1);
        input_patch(input, &slot->request, sizeof slot->request, 2);
        slot->request.checksum = shmd_request_checksum(&slot->request, who, who >= 1 && who <= CLIENTS / 2 ? NONCE + who - 1 : slot->request.nonce);
        slot->turn = shmd_turn(lap, who, SHMD_TURN_COMMITTED);
        break;
    default:
        input_patch(input, slot, sizeof *slot, 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    restart();
    input_t input = {.at = data, .left = size};
    uint64_t start = input_number(&input) & (UINT64_MAX >> 1);
    uint64_t accepted = 0;
    rig.authority->control_cursor = start;
    rig.control->tail = start;
    for (uint64_t at = start; at < start + SHMD_CONTROL_SLOTS; at++)
        shmd_control_slot(rig.control, at)->turn = shmd_turn(shmd_position_lap(at), 0, SHMD_TURN_FREE);
    shmd_control_reader *reader = shmd_control_reader_new(rig.control, shmd_control_footprint(CLIENTS, LEASES), rig.authority);
    MUST(reader != NULL);
    for (int i = 0; i < STEPS && input.left != 0; i++) {
        uint64_t act = input_take(&input, 1);
        if (act < 128)
            disturb(&input);
        else if (act < 160)
            (void)send_honest((uint32_t)act & 3, act);
        else if (act < 224)
            (void)drive(reader, &accepted);
        else if (act < 240)
            (void)shmd_control_sweep(reader);
        else if (act < 252)
            shmd_control_release(reader, (uint32_t)act % SHMD_CONTROL_SLOTS);
        else { /* the driver is another one */
            shmd_control_reader_free(reader);
            reader = shmd_control_reader_new(rig.control, shmd_control_footprint(CLIENTS, LEASES), rig.authority);
            MUST(reader != NULL);
        }
    }
    /* The garbage has an end: what is left is worked off, and honest clients are served. */
    for (int i = 0; i < 4 * SHMD_CONTROL_SLOTS; i++) {
        now_ns += (uint64_t)SHMD_CLAIM_PATIENCE_MS * 1000000u;
        (void)drive(reader, &accepted);
    }
    if (shmd_control_sweep(reader) != 0) {
        for (uint32_t slot = 0; slot < SHMD_CONTROL_SLOTS; slot++)
            shmd_control_release(reader, slot); /* their claimers are proved dead */
    }
    for (uint64_t n = 1; n <= 2; n++) {
        MUST(send_honest((uint32_t)n, 1000 + n) == SHMD_OK);
        for (int i = 0; i < 2 * SHMD_CONTROL_SLOTS && accepted != 1000 + n; i++)
            (void)drive(reader, &accepted);
        MUST(accepted == 1000 + n);
    }
    shmd_control_reader_free(reader);
    return 0;
}
