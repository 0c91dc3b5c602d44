/* SPDX-License-Identifier: Apache-2.0
 *
 * cloister-host: stands between clients and the trusted application in OP-TEE.
 * A process serves one client at a time; several clients get one each.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "serve.h"

enum { EXIT_USAGE = 2, EXIT_BROKEN = 3 };

#define DEFAULT_SHARED_BYTES 3145728ll
#define MOST_PORTS 16
#define MOST_CLIENTS 16

#ifndef CL_VERSION
#define CL_VERSION "unknown"
#endif

static const char usage[] =
    "expected one of --stdio, --unix PATH, --tcp PORT, --port DEVICE (several "
    "times, if need be), --tty DEVICE; and --shared BYTES, if not 3145728";

typedef struct options {
    bool stdio;
    const char *socket;
    const char *tcp;
    const char *tty;
    const char *ports[MOST_PORTS];
    int n_ports;
    const char *shared;
} options;

__attribute__((noreturn, format(printf, 2, 3))) static void
fail(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)fputs("cloister-host: error: ", stderr);
    (void)vfprintf(stderr, format, arguments);
    (void)fputc('\n', stderr);
    va_end(arguments);
    exit(code);
}

/* ---- Options ----------------------------------------------------------- */

static const char **slot_of(options *o, const char *name)
{
    if (strcmp(name, "--port") == 0) {
        if (o->n_ports == MOST_PORTS) {
            fail(EXIT_USAGE, "`--port` at most %d times", MOST_PORTS);
        }
        return &o->ports[o->n_ports++];
    }
    const struct {
        const char *name;
        const char **slot;
    } known[] = {
        {"--unix", &o->socket},
        {"--tcp", &o->tcp},
        {"--tty", &o->tty},
        {"--shared", &o->shared},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(name, known[i].name) == 0) {
            return known[i].slot;
        }
    }
    fail(EXIT_USAGE, "unknown option `%s`; %s", name, usage);
}

static options read_options(int n, char **arguments)
{
    options o = {0};
    for (int i = 1; i < n; i++) {
        if (strcmp(arguments[i], "--stdio") == 0) {
            o.stdio = true;
            continue;
        }
        const char **slot = slot_of(&o, arguments[i]);
        if (i + 1 == n) {
            fail(EXIT_USAGE, "`%s` needs a value", arguments[i]);
        }
        *slot = arguments[++i];
    }
    int ways = o.stdio + (o.socket != NULL) + (o.tcp != NULL) +
               (o.tty != NULL) + (o.n_ports != 0);
    if (ways != 1) {
        fail(EXIT_USAGE, "%s", usage);
    }
    return o;
}

static long long read_number(const char *text, const char *name,
                             long long least, long long most)
{
    char *end = NULL;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != 0 || value < least ||
        value > most) {
        fail(EXIT_USAGE, "`%s` must be a number from %lld to %lld, got `%s`",
             name, least, most, text);
    }
    return value;
}

static size_t read_shared(const char *text)
{
    const long long least = 4096, most = 1ll << 31;
    long long n_bytes = DEFAULT_SHARED_BYTES;
    if (text != NULL) {
        n_bytes = read_number(text, "--shared", least, most);
    }
    return (size_t)n_bytes & ~(size_t)4095;
}

/* ---- One client -------------------------------------------------------- */

static cl_host *new_host(size_t shared_bytes)
{
    cl_host *host = cl_host_new(shared_bytes);
    if (host == NULL) {
        fail(EXIT_BROKEN, "no memory");
    }
    return host;
}

static void serve_link(cl_link link, size_t shared_bytes)
{
    cl_host *host = new_host(shared_bytes);
    cl_host_serve(host, link);
    cl_host_end(host);
}

/* Serves clients one after the other, for ever. */
__attribute__((noreturn)) static void serve_port(const char *device,
                                                 size_t shared_bytes)
{
    int port = cl_port_open(device);
    if (port < 0) {
        fail(EXIT_BROKEN, "cannot open port `%s`: %s", device,
             strerror(errno));
    }
    cl_host *host = new_host(shared_bytes);
    for (;;) {
        cl_port_wait(port);
        cl_host_serve(host, (cl_link){port, port});
    }
}

static void serve_tty(const char *device, size_t shared_bytes)
{
    int tty = cl_tty_open(device);
    if (tty < 0) {
        fail(EXIT_BROKEN, "cannot open serial line `%s`: %s", device,
             strerror(errno));
    }
    serve_link((cl_link){tty, tty}, shared_bytes);
}

/* ---- Several clients --------------------------------------------------- */

/* Returns: whether this is the new process; it ends with its parent. */
static bool branch(void)
{
    pid_t parent = getpid();
    pid_t child = fork();
    if (child < 0) {
        fail(EXIT_BROKEN, "cannot start a process: %s", strerror(errno));
    }
    if (child == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent) {
            exit(EXIT_BROKEN);
        }
    }
    return child == 0;
}

static void serve_ports(const options *o, size_t shared_bytes)
{
    for (int i = 0; i < o->n_ports; i++) {
        if (o->n_ports == 1 || branch()) {
            serve_port(o->ports[i], shared_bytes);
        }
    }
    int status = 0;
    (void)wait(&status); /* none ends unless something is wrong */
    fail(EXIT_BROKEN, "a port's process ended");
}

/* Wait for a client. At most MOST_CLIENTS are served at the same time; others
 * wait until one of them is gone. */
static int accept_client(int listener, int *n_clients)
{
    int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    bool full = *n_clients == MOST_CLIENTS;
    while (*n_clients != 0 && waitpid(-1, NULL, full ? 0 : WNOHANG) > 0) {
        (*n_clients)--;
        full = false;
    }
    return client;
}

__attribute__((noreturn)) static void serve_clients(int listener,
                                                    size_t shared_bytes)
{
    int n_clients = 0, on = 1;
    for (;;) {
        int client = accept_client(listener, &n_clients);
        if (client < 0) {
            continue;
        }
        (void)setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (branch()) {
            (void)close(listener);
            serve_link((cl_link){client, client}, shared_bytes);
            exit(0);
        }
        n_clients++;
        (void)close(client);
    }
}

static void serve_unix(const char *path, size_t shared_bytes)
{
    int listener = cl_listen_unix(path);
    if (listener < 0) {
        fail(EXIT_BROKEN, "cannot listen at `%s`: %s", path, strerror(errno));
    }
    serve_clients(listener, shared_bytes);
}

static void serve_tcp(const char *text, size_t shared_bytes)
{
    uint16_t port = (uint16_t)read_number(text, "--tcp", 1, UINT16_MAX);
    int listener = cl_listen_loopback(port);
    if (listener < 0) {
        fail(EXIT_BROKEN, "cannot listen at port %s: %s", text,
             strerror(errno));
    }
    serve_clients(listener, shared_bytes);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        (void)puts("cloister-host " CL_VERSION);
        return 0;
    }
    options o = read_options(argc, argv);
    size_t shared_bytes = read_shared(o.shared);
    (void)signal(SIGPIPE, SIG_IGN);
    if (o.n_ports != 0) {
        serve_ports(&o, shared_bytes);
    } else if (o.socket != NULL) {
        serve_unix(o.socket, shared_bytes);
    } else if (o.tcp != NULL) {
        serve_tcp(o.tcp, shared_bytes);
    } else if (o.tty != NULL) {
        serve_tty(o.tty, shared_bytes);
    } else {
        serve_link((cl_link){STDIN_FILENO, STDOUT_FILENO}, shared_bytes);
    }
    return 0;
}
