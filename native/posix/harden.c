/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "harden.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "platform.h"

/* What holds, whoever brought it about. */
static uint32_t read_back(void)
{
    struct rlimit core = {1, 1};
    uint32_t flags = 0;
    if (prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0) {
        flags |= CL_FLAG_NOT_DUMPABLE;
    }
    if (getrlimit(RLIMIT_CORE, &core) == 0 && core.rlim_max == 0) {
        flags |= CL_FLAG_NO_CORE_FILES;
    }
    if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1) {
        flags |= CL_FLAG_NO_NEW_PRIVILEGES;
    }
    return flags;
}

uint32_t cl_harden_process(void)
{
    const struct rlimit none = {0, 0};
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    (void)setrlimit(RLIMIT_CORE, &none);
    (void)prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return read_back();
}

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define MACHINE AUDIT_ARCH_AARCH64
#endif

/* Sanitizers and coverage need system calls of their own. */
#if defined(MACHINE) && !defined(CL_NO_CALL_FILTER)

#define LOAD(field)                      \
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS,   \
             offsetof(struct seccomp_data, field))
#define ALLOW(number)                                       \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (number), 0, 1),    \
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/* Requests and answers (read, write), time, locks and randomness of the
 * libraries, and the end. Nothing opens, maps, connects or starts anything.
 * Numbers of the x32 interface are not in the list, so they are refused too. */
static struct sock_filter filter[] = {
    LOAD(arch),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MACHINE, 1, 0),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    LOAD(nr),
    ALLOW(SYS_read),
    ALLOW(SYS_write),
    ALLOW(SYS_clock_gettime),
    ALLOW(SYS_futex),
    ALLOW(SYS_sched_yield),
    ALLOW(SYS_getrandom),
    ALLOW(SYS_rt_sigreturn),
    ALLOW(SYS_restart_syscall),
    ALLOW(SYS_exit),
    ALLOW(SYS_exit_group),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
};

/* For all threads. It cannot be read back: the filter forbids that call too. */
bool cl_harden_calls(void)
{
    const struct sock_fprog program = {
        .len = sizeof filter / sizeof filter[0],
        .filter = filter,
    };
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                   SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
}

#else

bool cl_harden_calls(void)
{
    return false;
}

#endif
