/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define BACKLOG 8

/* ---- Bytes ------------------------------------------------------------- */

/* After a call that failed: wait until it may be tried again.
 * Returns: false if that will not be. */
static bool wait_ready(int fd, short events)
{
    if (errno == EINTR) {
        return true;
    }
    if (errno != EAGAIN && errno != EWOULDBLOCK) {
        return false;
    }
    struct pollfd ready = {.fd = fd, .events = events};
    (void)poll(&ready, 1, -1);
    return (ready.revents & events) != 0 || ready.revents == 0;
}

size_t cl_link_read(const cl_link *link, uint8_t *to, size_t n)
{
    ssize_t got = read(link->in, to, n);
    while (got < 0 && wait_ready(link->in, POLLIN)) {
        got = read(link->in, to, n);
    }
    return got > 0 ? (size_t)got : 0;
}

bool cl_link_write(const cl_link *link, const uint8_t *from, size_t n)
{
    while (n != 0) {
        ssize_t put = write(link->out, from, n);
        if (put >= 0) {
            from += put;
            n -= (size_t)put;
        } else if (!wait_ready(link->out, POLLOUT)) {
            return false;
        }
    }
    return true;
}

/* ---- Devices ----------------------------------------------------------- */

/* Not blocking: a write would wait for the next client when one is gone. SIGIO
 * tells of clients that come and go; it stays blocked and is waited for. */
int cl_port_open(const char *device)
{
    sigset_t signals;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGIO);
    (void)sigprocmask(SIG_BLOCK, &signals, NULL);
    int port = open(device, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (port >= 0 && (fcntl(port, F_SETOWN, getpid()) != 0 ||
                      fcntl(port, F_SETFL, O_NONBLOCK | O_ASYNC) != 0)) {
        int problem = errno;
        (void)close(port);
        errno = problem;
        return -1;
    }
    return port;
}

void cl_port_wait(int port)
{
    const struct timespec longest = {.tv_sec = 1};
    struct pollfd state = {.fd = port};
    sigset_t signals;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGIO);
    while (poll(&state, 1, 0) > 0 && (state.revents & POLLHUP) != 0) {
        (void)sigtimedwait(&signals, NULL, &longest);
    }
}

int cl_tty_open(const char *device)
{
    struct termios line;
    int tty = open(device, O_RDWR | O_CLOEXEC | O_NOCTTY);
    if (tty < 0) {
        return -1;
    }
    bool ready = tcgetattr(tty, &line) == 0;
    cfmakeraw(&line);
    line.c_cflag |= CLOCAL | CREAD | CRTSCTS;
    line.c_cc[VMIN] = 1;
    line.c_cc[VTIME] = 0;
    if (ready && tcsetattr(tty, TCSANOW, &line) == 0) {
        return tty;
    }
    int problem = errno;
    (void)close(tty);
    errno = problem;
    return -1;
}

/* ---- Sockets ----------------------------------------------------------- */

static int listen_on(int family, const void *address, socklen_t n_bytes)
{
    int on = 1;
    int listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0) {
        return -1;
    }
    (void)setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, address, n_bytes) == 0 &&
        listen(listener, BACKLOG) == 0) {
        return listener;
    }
    int problem = errno;
    (void)close(listener);
    errno = problem;
    return -1;
}

int cl_listen_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(address.sun_path, path, n + 1);
    return listen_on(AF_UNIX, &address, sizeof address);
}

int cl_listen_loopback(uint16_t port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr = {htonl(INADDR_LOOPBACK)},
    };
    return listen_on(AF_INET, &address, sizeof address);
}
