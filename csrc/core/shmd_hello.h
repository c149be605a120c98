/* shmd_hello.h: what both sides of a Hello by socket share. */
#ifndef SHMD_HELLO_H
#define SHMD_HELLO_H

#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

#define SHMD_SOCKET_NAME "socket"

/* The address of a name in a folder, through the folder's descriptor: whatever the folder's path leads to by now, and however long
 * it is. Without /proc by path, as far as that fits. SHMD_E_SYSTEM: neither. */
int shmd_socket_address(int folder_fd, const char *folder_path, const char *name, struct sockaddr_un *out);
void shmd_message_begin(void *message, uint32_t kind, uint32_t bytes); /* the first 16 bytes */
/* The first 16 bytes and the length of what came: SHMD_OK, SHMD_E_INVALID, SHMD_E_LAYOUT. what: for the text. */
int shmd_message_check(const void *message, uint64_t bytes, uint32_t kind, uint64_t expected, const char *what);
int shmd_text_check(const char *what, const char *text, size_t limit); /* UTF-8 without control characters but newline and tab, and it ends */

#endif
