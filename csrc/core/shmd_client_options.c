/* shmd_client_options.c: what a caller says when it connects: which instance, who it is, how the library's threads run. */
#include "shmd_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

void shmd_client_options_init(shmd_client_options *options)
{
    memset(options, 0, sizeof *options);
    options->timeout_ns = SHMD_ATTACH_TIMEOUT_NS;
}

static int is_letter_or_digit(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); }

/* As the driver's configuration checks it (shmdriver/names.py). */
int shmd_instance_is_name(const char *name)
{
    size_t length = strnlen(name, SHMD_INSTANCE_CHARS_MAX + 1);
    for (size_t i = 0; i < length; i++)
        if (!is_letter_or_digit(name[i]) && (i == 0 || (name[i] != '_' && name[i] != '-')))
            return 0;
    return length >= 1 && length <= SHMD_INSTANCE_CHARS_MAX;
}

static int refuse_instance(const char *instance, const char *where)
{
    return shmd_fail(SHMD_E_INVALID, "instance name '%.60s'%s: expected 1 to %d characters out of A-Z a-z 0-9 _ -, the first a letter or a digit", instance, where,
                     SHMD_INSTANCE_CHARS_MAX);
}

int shmd_instance_check(const char *instance) { return shmd_instance_is_name(instance) ? SHMD_OK : refuse_instance(instance, ""); }

static int choose_instance(shmd_client *client, const char *instance)
{
    const char *named = getenv("SHMDRIVER_DRIVER_INSTANCE");
    int is_from_environment = instance == NULL && named != NULL && named[0] != 0;
    if (instance == NULL)
        instance = is_from_environment ? named : "default";
    if (!shmd_instance_is_name(instance))
        return refuse_instance(instance, is_from_environment ? " (of $SHMDRIVER_DRIVER_INSTANCE)" : "");
    (void)snprintf(client->instance, sizeof client->instance, "%s", instance);
    return SHMD_OK;
}

/* The driver takes UTF-8 without control characters only, and a program may be called anything. */
static void name_after_program(shmd_client *client)
{
    (void)snprintf(client->name, sizeof client->name, "%s", program_invocation_short_name);
    for (char *at = client->name; *at != 0; at++)
        if (*at < ' ' || *at > '~')
            *at = '?';
}

int shmd_client_configure(shmd_client *client, const char *instance, const shmd_client_options *options)
{
    int rc = choose_instance(client, instance);
    rc = rc ? rc : shmd_threads_ask(&client->threads, options);
    if (rc != SHMD_OK)
        return rc;
    if ((options->flags & ~(uint32_t)(SHMD_HEARTBEAT_MANUAL | SHMD_WAIT_FOR_DRIVER)) != 0)
        return shmd_fail(SHMD_E_INVALID, "flags %u of the client: expected SHMD_HEARTBEAT_MANUAL and SHMD_WAIT_FOR_DRIVER only", options->flags);
    client->named_owner = UINT32_MAX;
    rc = options->owner == NULL ? SHMD_OK : shmd_owner_named(options->owner, &client->named_owner);
    if (rc != SHMD_OK)
        return rc;
    if (options->name != NULL && strlen(options->name) >= sizeof client->name)
        return shmd_fail(SHMD_E_INVALID, "client name of %zu bytes: at most %zu", strlen(options->name), sizeof client->name - 1);
    if (options->name != NULL && options->name[0] != 0)
        (void)snprintf(client->name, sizeof client->name, "%s", options->name);
    else
        name_after_program(client);
    client->is_manual = (options->flags & SHMD_HEARTBEAT_MANUAL) != 0;
    client->waits_for_driver = (options->flags & SHMD_WAIT_FOR_DRIVER) != 0;
    if (getrandom(&client->nonce, sizeof client->nonce, 0) != (ssize_t)sizeof client->nonce)
        return shmd_fail_errno(SHMD_CALL_OTHER, "getrandom");
    return SHMD_OK;
}
