/* SPDX-License-Identifier: Apache-2.0
 *
 * For tests: the heap and OpenSSL made ready, and a given private key put in
 * place of a device key of one's own.
 */
#ifndef CL_DEVICE_H
#define CL_DEVICE_H

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gp.h"
#include "test.h"

#define KEY_FILE "cloister-device-key-1"

static char state_folder[] = "/tmp/cloister-test-XXXXXX";

/* Heap, OpenSSL and an empty state folder. */
static inline void start_platform(size_t heap_bytes)
{
    CHECK(cl_heap_open(&cl_ta_heap, heap_bytes));
    CHECK(cl_crypto_open());
    CHECK(mkdtemp(state_folder) != NULL);
    CHECK(cl_storage_open(state_folder) == NULL);
}

static inline void state_path(char *path, size_t n, const char *name)
{
    (void)snprintf(path, n, "%s/%s", state_folder, name);
}

static inline void end_platform(void)
{
    char path[128];
    state_path(path, sizeof path, KEY_FILE);
    (void)unlink(path);
    cl_storage_close();
    CHECK(rmdir(state_folder) == 0);
}

/* Write the device key's file as it would have been made. */
static inline void put_device_key(const uint8_t *private_key,
                                  const uint8_t *public_key, int mode)
{
    char path[128];
    state_path(path, sizeof path, KEY_FILE);
    (void)unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0);
    CHECK(write(fd, "CLKEY\0\0\1", 8) == 8);
    CHECK(write(fd, private_key, 32) == 32);
    CHECK(write(fd, public_key, 32) == 32);
    CHECK(fchmod(fd, (mode_t)mode) == 0);
    CHECK(close(fd) == 0);
}

#endif
