/* SPDX-License-Identifier: Apache-2.0
 *
 * cloister-enclave: the trusted application as a process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "beside.h"
#include "gp.h"
#include "harden.h"
#include "platform.h"
#include "platform_posix.h"
#include "sets.h"
#include "wire.h"

enum { EXIT_USAGE = 2, EXIT_BROKEN = 3 };

typedef struct options {
    const char *socket;
    const char *payload;
    const char *store;
    const char *bell;
    const char *state;
    const char *heap;
    const char *sets;
} options;

__attribute__((noreturn, format(printf, 2, 3))) static void
fail(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)fputs("cloister-enclave: error: ", stderr);
    (void)vfprintf(stderr, format, arguments);
    (void)fputc('\n', stderr);
    va_end(arguments);
    exit(code);
}

/* ---- Options ----------------------------------------------------------- */

static const char **slot_of(options *o, const char *name)
{
    const struct {
        const char *name;
        const char **slot;
    } known[] = {
        {"--socket", &o->socket}, {"--payload", &o->payload},
        {"--store", &o->store},   {"--bell", &o->bell},
        {"--state", &o->state},   {"--heap", &o->heap},
        {"--sets", &o->sets},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(name, known[i].name) == 0) {
            return known[i].slot;
        }
    }
    fail(EXIT_USAGE, "unknown option `%s`", name);
}

static void require(const char *value, const char *name)
{
    if (value == NULL) {
        fail(EXIT_USAGE,
             "missing `%s`; expected --socket FD --payload FD --store FD "
             "--bell FD --state FOLDER --heap BYTES [--sets BITS]",
             name);
    }
}

static options read_options(int n, char **arguments)
{
    options o = {0};
    for (int i = 1; i < n; i += 2) {
        const char **slot = slot_of(&o, arguments[i]);
        if (i + 1 == n) {
            fail(EXIT_USAGE, "`%s` needs a value", arguments[i]);
        }
        *slot = arguments[i + 1];
    }
    require(o.socket, "--socket");
    require(o.payload, "--payload");
    require(o.store, "--store");
    require(o.bell, "--bell");
    require(o.state, "--state");
    require(o.heap, "--heap");
    return o;
}

static long long read_number(const char *text, const char *name,
                             long long most)
{
    char *end = NULL;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != 0 || value < 0 || value > most) {
        fail(EXIT_USAGE, "`%s` must be a number from 0 to %lld, got `%s`",
             name, most, text);
    }
    return value;
}

/* Bits of kernels/sets.h; all if nothing is said. */
static uint32_t read_sets(const char *text)
{
    return text != NULL ? (uint32_t)read_number(text, "--sets", CL_ALL_SETS)
                        : CL_ALL_SETS;
}

/* ---- Files ------------------------------------------------------------- */

static int read_socket(const char *text)
{
    int fd = (int)read_number(text, "--socket", INT32_MAX);
    int type = 0;
    socklen_t n_bytes = sizeof type;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n_bytes) != 0 ||
        type != SOCK_STREAM) {
        fail(EXIT_USAGE, "--socket %d is not a stream socket", fd);
    }
    return fd;
}

static cl_region map_file(const char *text, const char *name, int protection)
{
    int fd = (int)read_number(text, name, INT32_MAX);
    struct stat about;
    if (fstat(fd, &about) != 0 || !S_ISREG(about.st_mode)) {
        fail(EXIT_USAGE, "%s %d is not a file", name, fd);
    }
    cl_region region = {NULL, (size_t)about.st_size};
    if (region.n_bytes != 0) {
        void *at = mmap(NULL, region.n_bytes, protection, MAP_SHARED, fd, 0);
        if (at == MAP_FAILED) {
            fail(EXIT_BROKEN, "cannot map %s %d: %s", name, fd,
                 strerror(errno));
        }
        region.start = at;
    }
    close(fd);
    return region;
}

static cl_bell *map_bell(const char *text)
{
    cl_region region = map_file(text, "--bell", PROT_READ | PROT_WRITE);
    if (region.n_bytes < sizeof(cl_bell)) {
        fail(EXIT_USAGE, "--bell must have at least %zu bytes, got %zu",
             sizeof(cl_bell), region.n_bytes);
    }
    return (cl_bell *)(void *)region.start;
}

/* ---- Start ------------------------------------------------------------- */

static void open_heap(const char *text)
{
    const long long least = 8192, most = 1ll << 40;
    long long n_bytes = read_number(text, "--heap", most);
    if (n_bytes < least) {
        fail(EXIT_USAGE, "--heap must be at least %lld bytes", least);
    }
    if (!cl_heap_open(&cl_ta_heap, (size_t)n_bytes)) {
        fail(EXIT_BROKEN, "cannot get %lld bytes of memory", n_bytes);
    }
}

static void *open_session(void)
{
    TEE_Param params[4];
    void *session = NULL;
    memset(params, 0, sizeof params);
    TEE_Result result = TA_CreateEntryPoint();
    if (result == TEE_SUCCESS) {
        result = TA_OpenSessionEntryPoint(0, params, &session);
    }
    if (result != TEE_SUCCESS) {
        fail(EXIT_BROKEN, "the session does not open: 0x%08x",
             (unsigned)result);
    }
    return session;
}

static void open_state(const char *folder)
{
    const char *problem = cl_storage_open(folder);
    if (problem != NULL) {
        fail(EXIT_BROKEN, "state folder `%s` %s", folder, problem);
    }
}

int main(int argc, char **argv)
{
    options o = read_options(argc, argv);
    uint32_t flags = cl_harden_process();
    cl_platform_set_sets(cl_sets_permit() & read_sets(o.sets));
    cl_wire wire = {.socket = read_socket(o.socket)};
    wire.payload = map_file(o.payload, "--payload", PROT_READ | PROT_WRITE);
    wire.store = map_file(o.store, "--store", PROT_READ);
    wire.bell = map_bell(o.bell);
    (void)signal(SIGPIPE, SIG_IGN);
    open_heap(o.heap);
    if (!cl_crypto_open()) {
        fail(EXIT_BROKEN, "OpenSSL does not give the algorithms needed");
    }
    cl_beside_open();
    open_state(o.state);
    wire.session = open_session();
    cl_storage_close();
    if (cl_harden_calls()) {
        flags |= CL_FLAG_CALL_FILTER;
    }
    cl_platform_set_flags(flags);

    cl_wire_end end = cl_wire_serve(&wire);
    TA_CloseSessionEntryPoint(wire.session);
    TA_DestroyEntryPoint();
    if (end == CL_WIRE_MALFORMED) {
        fail(EXIT_BROKEN, "malformed request");
    }
    return 0;
}
