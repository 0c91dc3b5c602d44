/* SPDX-License-Identifier: Apache-2.0
 *
 * What carries the bytes between a client and the host.
 */
#ifndef CL_LINK_H
#define CL_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Two descriptors, or twice the same; blocking or not. */
typedef struct cl_link {
    int in;
    int out;
} cl_link;

/* Wait for bytes. Returns: how many, at most n; 0 if the client is gone. */
size_t cl_link_read(const cl_link *link, uint8_t *to, size_t n);

/* Returns: false if the client is gone. */
bool cl_link_write(const cl_link *link, const uint8_t *from, size_t n);

/* Open a virtio-serial port. Returns: -1 on failure, see errno. */
int cl_port_open(const char *device);

/* Wait until a client is connected with the port. */
void cl_port_wait(int port);

/* Open a serial line: raw, with hardware handshake, at the speed that it has.
 * Returns: -1 on failure, see errno. */
int cl_tty_open(const char *device);

/* Listen. Returns: -1 on failure, see errno. */
int cl_listen_unix(const char *path);
int cl_listen_loopback(uint16_t port);

#endif
