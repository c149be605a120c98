/* shmd_owner.c: what Python owns before it acquires it. Each owner is a small struct that Python makes first, empty, with one
 * of the `drop` functions here as its destructor. The C call that acquires something writes it there, so that an exception
 * between that call's return and the caller's next step leaves nothing without an owner. Destructors never wait. */
#include "shmd_internal.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* ---- connections --------------------------------------------------------------------------- */

enum { NONE = 0, CONNECTED = 1, CLOSED = 2 }; /* `state`: whoever moves it from CONNECTED ends the connection */

static int is_closed(void) { return shmd_fail(SHMD_E_CLOSED, "this client is closed; connect again"); }

static int connect_once(shmd_connection_t *c, const char *instance, const shmd_client_options *options, uint64_t timeout_ns)
{
    shmd_client *client = NULL;
    shmd_client_options with_time_left = *options;
    with_time_left.timeout_ns = timeout_ns;
    int rc = shmd_client_connect(instance, &with_time_left, &client);
    if (rc != SHMD_OK)
        return rc;
    shmd_client_keep_authority(client);
    c->client = client;
    if (shmd_cas32(&c->state, NONE, CONNECTED)) /* A3: pairs with the load in shmd_connection_open */
        return SHMD_OK;
    (void)shmd_disconnect(client); /* another thread has closed it meanwhile */
    return is_closed();
}

/* One thread connects, the others wait for it here, in C: Python's signal handlers and finalisers run before this call or after
 * it, so none of them can find its own thread in the middle of it. */
int shmd_connection_open(shmd_connection_t *c, const char *instance, const shmd_client_options *options)
{
    uint64_t deadline_ns = shmd_deadline(options->timeout_ns);
    for (;;) {
        uint32_t state = shmd_load32_acquire(&c->state); /* A3 */
        if (state != NONE)
            return state == CONNECTED ? SHMD_OK : is_closed();
        uint64_t now_ns = shmd_now_ns();
        uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
        if (shmd_cas32(&c->opening, 0, 1)) {
            int rc = shmd_load32_acquire(&c->state) == NONE ? connect_once(c, instance, options, left_ns) : SHMD_OK;
            shmd_store32_release(&c->opening, 0);
            shmd_futex_wake(&c->opening);
            if (rc != SHMD_OK)
                return rc;
        } else if (left_ns == 0) {
            return shmd_fail(SHMD_E_TIMEOUT, "another thread connects this client, and the driver did not answer in time");
        } else if (shmd_futex_wait(&c->opening, 1, left_ns) == SHMD_E_INTERRUPTED) {
            return shmd_fail(SHMD_E_INTERRUPTED, "interrupted by a signal while another thread connects this client");
        }
    }
}

static void end_connection(shmd_connection_t *c, int may_wait)
{
    if (!shmd_is_forked(c->fork_generation) && shmd_exchange32(&c->state, CLOSED) == CONNECTED)
        shmd_client_drop(c->client, may_wait);
}

void shmd_connection_init(shmd_connection_t *c) { *c = (shmd_connection_t){.fork_generation = shmd_fork_generation()}; }
void shmd_connection_close(shmd_connection_t *c) { end_connection(c, 1); }
void shmd_connection_abandon(shmd_connection_t *c) { end_connection(c, 0); }

void shmd_connection_drop(shmd_connection_t *c)
{
    shmd_connection_abandon(c);
    if (!shmd_is_forked(c->fork_generation) && c->client != NULL)
        shmd_client_drop_authority(c->client);
    c->client = NULL;
}

/* ---- handles ------------------------------------------------------------------------------- */

int shmd_guarded_producer_attach(shmd_client *client, const char *stream, const shmd_producer_options *options, shmd_producer **slot)
{
    int rc = shmd_client_try_hold(client);
    if (rc != SHMD_OK)
        return rc;
    rc = shmd_producer_attach(client, stream, options, slot);
    shmd_client_drop(client, 1);
    return rc;
}

int shmd_guarded_consumer_attach(shmd_client *client, const char *stream, const shmd_consumer_options *options, shmd_consumer **slot)
{
    int rc = shmd_client_try_hold(client);
    if (rc != SHMD_OK)
        return rc;
    rc = shmd_consumer_attach(client, stream, options, slot);
    shmd_client_drop(client, 1);
    return rc;
}

/* Nobody else has the handle. In a forked child it is the parent's, and stays as it is. */
void shmd_guarded_producer_drop(shmd_producer **slot)
{
    if (shmd_guarded_producer_abandon(*slot) == SHMD_OK)
        shmd_producer_free(*slot);
    *slot = NULL;
}

void shmd_guarded_consumer_drop(shmd_consumer **slot)
{
    if (shmd_guarded_consumer_abandon(*slot) == SHMD_OK)
        shmd_consumer_free(*slot);
    *slot = NULL;
}

/* ---- descriptors and mappings -------------------------------------------------------------- */

int shmd_descriptor_open_event(int *slot)
{
    int rc = shmd_keep_standard_descriptors();
    if (rc != SHMD_OK)
        return rc;
    *slot = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return *slot < 0 ? shmd_fail_errno(SHMD_CALL_OTHER, "no eventfd can be made") : SHMD_OK;
}

int shmd_descriptor_copy(int fd, int *slot)
{
    *slot = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    return *slot < 0 ? shmd_fail_errno(SHMD_CALL_OTHER, "descriptor %d cannot be copied", fd) : SHMD_OK;
}

int shmd_descriptor_open_segment(const char *name, uint32_t owner, uint64_t *bytes, int *slot)
{
    *slot = shmd_segment_open_of(name, owner, 0, bytes);
    return *slot < 0 ? *slot : SHMD_OK;
}

void shmd_descriptor_close(int *slot)
{
    int fd = *slot;
    *slot = -1;
    if (fd >= 0)
        (void)close(fd);
}

int shmd_view_map(shmd_view_t *slot, int fd, uint64_t bytes)
{
    slot->bytes = bytes;
    return shmd_segment_map(fd, 0, bytes, 0, 0, &slot->base);
}

void shmd_view_drop(shmd_view_t *slot)
{
    void *base = slot->base;
    slot->base = NULL;
    (void)shmd_segment_unmap(base, slot->bytes);
}

void shmd_mapping_drop(shmd_mapping **slot)
{
    shmd_mapping *mapping = *slot;
    *slot = NULL;
    shmd_mapping_free(mapping);
}
