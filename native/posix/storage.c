/* SPDX-License-Identifier: Apache-2.0
 *
 * Persistent objects: one file each, in a folder that belongs to this user
 * alone. A file holds 8 bytes "CLKEY\0\0\1", then private and public value.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gp.h"

#define FILE_BYTES (8 + 2 * CL_X25519_BYTES)
#define NAME_BYTES 64

static const uint8_t mark[8] = {'C', 'L', 'K', 'E', 'Y', 0, 0, 1};
static int folder_fd = -1;
static const char *folder_path; /* for people only */

static bool is_ours_alone(const struct stat *about)
{
    return about->st_uid == geteuid() && (about->st_mode & 077) == 0;
}

/* The client tells its user what stands behind `hint: `. */
#define HINT "cloister-enclave: hint: "

const char *cl_storage_open(const char *folder)
{
    struct stat about;
    folder_path = folder;
    if (mkdir(folder, 0700) != 0 && errno != EEXIST) {
        return "cannot be made";
    }
    folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder_fd < 0 || fstat(folder_fd, &about) != 0) {
        return "is not a folder that can be opened";
    }
    if (!is_ours_alone(&about)) {
        (void)dprintf(STDERR_FILENO,
                      HINT "chmod 700 %s if it is yours, or set CLOISTER_STATE "
                           "to another folder\n",
                      folder);
        return "belongs to another user or is open to others; expected the "
               "current user as owner and mode 0700";
    }
    return NULL;
}

void cl_storage_close(void)
{
    if (folder_fd >= 0) {
        close(folder_fd);
        folder_fd = -1;
    }
}

/* Object names become file names; only harmless letters are allowed. */
static bool make_name(char *name, const char *id, size_t n_bytes,
                      const char *suffix)
{
    if (n_bytes == 0 || n_bytes + strlen(suffix) >= NAME_BYTES) {
        return false;
    }
    for (size_t i = 0; i < n_bytes; i++) {
        bool letter = (id[i] >= 'a' && id[i] <= 'z') ||
                      (id[i] >= '0' && id[i] <= '9') || id[i] == '-';
        if (!letter) {
            return false;
        }
    }
    (void)snprintf(name, NAME_BYTES, "%.*s%s", (int)n_bytes, id, suffix);
    return true;
}

/* ---- Opening ----------------------------------------------------------- */

static void say_not_ours(const char *name)
{
    (void)dprintf(STDERR_FILENO,
                  "cloister-enclave: key file `%s/%s` belongs to another user "
                  "or is open to others; expected mode 0600\n" HINT
                  "chmod 600 %s/%s if nobody else has read it; otherwise "
                  "remove it: a new key is made, and bundles made for the old "
                  "one will no longer open\n",
                  folder_path, name, folder_path, name);
}

static void say_damaged(const char *name)
{
    (void)dprintf(STDERR_FILENO,
                  "cloister-enclave: key file `%s/%s` is damaged\n" HINT
                  "remove %s/%s: a new key is made, and bundles made for the "
                  "old one will no longer open\n",
                  folder_path, name, folder_path, name);
}

static TEE_Result read_file(uint8_t *bytes, const char *name)
{
    struct stat about;
    int fd = openat(folder_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT ? TEE_ERROR_ITEM_NOT_FOUND
                               : TEE_ERROR_STORAGE_NOT_AVAILABLE;
    }
    bool ours = fstat(fd, &about) == 0 && S_ISREG(about.st_mode) &&
                is_ours_alone(&about);
    bool whole = ours && about.st_size == FILE_BYTES &&
                 read(fd, bytes, FILE_BYTES) == FILE_BYTES;
    close(fd);
    if (!ours) {
        say_not_ours(name);
        return TEE_ERROR_ACCESS_DENIED;
    }
    return whole ? TEE_SUCCESS : TEE_ERROR_CORRUPT_OBJECT;
}

static TEE_Result parse(TEE_ObjectHandle object, const uint8_t *bytes)
{
    uint8_t expected[CL_X25519_BYTES];
    object->secret_bytes = CL_X25519_BYTES;
    memcpy(object->secret, bytes + sizeof mark, CL_X25519_BYTES);
    memcpy(object->public_value, bytes + sizeof mark + CL_X25519_BYTES,
           CL_X25519_BYTES);
    bool good = memcmp(bytes, mark, sizeof mark) == 0 &&
                cl_x25519_public(expected, object->secret) &&
                memcmp(expected, object->public_value, sizeof expected) == 0;
    return good ? TEE_SUCCESS : TEE_ERROR_CORRUPT_OBJECT;
}

TEE_Result TEE_OpenPersistentObject(uint32_t storageID, const void *objectID,
                                    size_t objectIDLen, uint32_t flags,
                                    TEE_ObjectHandle *object)
{
    char name[NAME_BYTES];
    uint8_t bytes[FILE_BYTES];
    *object = TEE_HANDLE_NULL;
    if (storageID != TEE_STORAGE_PRIVATE ||
        flags != (TEE_DATA_FLAG_ACCESS_READ | TEE_DATA_FLAG_SHARE_READ) ||
        !make_name(name, objectID, objectIDLen, "")) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    TEE_Result result = read_file(bytes, name);
    if (result == TEE_SUCCESS) {
        result = TEE_AllocateTransientObject(TEE_TYPE_X25519_KEYPAIR, 256,
                                             object);
    }
    if (result == TEE_SUCCESS) {
        result = parse(*object, bytes);
        if (result != TEE_SUCCESS) {
            TEE_CloseObject(*object);
            *object = TEE_HANDLE_NULL;
        }
    }
    explicit_bzero(bytes, sizeof bytes);
    if (result == TEE_ERROR_CORRUPT_OBJECT) {
        say_damaged(name);
    }
    return result;
}

/* ---- Making ------------------------------------------------------------ */

static bool write_file(const char *name, const uint8_t *bytes)
{
    int fd = openat(folder_fd, name,
                    O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        return false;
    }
    bool good = write(fd, bytes, FILE_BYTES) == FILE_BYTES && fsync(fd) == 0;
    return close(fd) == 0 && good;
}

/* The file appears whole or not at all, and never in place of another. */
static TEE_Result publish(const char *fresh, const char *name,
                          const uint8_t *bytes)
{
    TEE_Result result = TEE_ERROR_STORAGE_NOT_AVAILABLE;
    if (write_file(fresh, bytes)) {
        if (linkat(folder_fd, fresh, folder_fd, name, 0) == 0) {
            result = fsync(folder_fd) == 0 ? TEE_SUCCESS : result;
        } else if (errno == EEXIST) {
            result = TEE_ERROR_ACCESS_CONFLICT;
        }
    }
    (void)unlinkat(folder_fd, fresh, 0);
    return result;
}

TEE_Result TEE_CreatePersistentObject(uint32_t storageID, const void *objectID,
                                      size_t objectIDLen, uint32_t flags,
                                      TEE_ObjectHandle attributes,
                                      const void *initialData,
                                      size_t initialDataLen,
                                      TEE_ObjectHandle *object)
{
    char name[NAME_BYTES], fresh[NAME_BYTES], suffix[24];
    uint8_t bytes[FILE_BYTES];
    (void)initialData;
    *object = TEE_HANDLE_NULL;
    (void)snprintf(suffix, sizeof suffix, ".new-%ld", (long)getpid());
    if (initialDataLen != 0 || attributes->type != TEE_TYPE_X25519_KEYPAIR ||
        !make_name(name, objectID, objectIDLen, "") ||
        !make_name(fresh, objectID, objectIDLen, suffix)) {
        return TEE_ERROR_BAD_PARAMETERS;
    }
    memcpy(bytes, mark, sizeof mark);
    memcpy(bytes + sizeof mark, attributes->secret, CL_X25519_BYTES);
    memcpy(bytes + sizeof mark + CL_X25519_BYTES, attributes->public_value,
           CL_X25519_BYTES);
    TEE_Result result = publish(fresh, name, bytes);
    explicit_bzero(bytes, sizeof bytes);
    if (result != TEE_SUCCESS) {
        return result;
    }
    return TEE_OpenPersistentObject(storageID, objectID, objectIDLen, flags,
                                    object);
}
