/* SPDX-License-Identifier: Apache-2.0
 *
 * Which kernels this machine has, best first. On x86 the processor is asked;
 * elsewhere the compiler's flags say it.
 */
#include "float32.h"
#include "int8.h"

static bool all_of(uint32_t word, uint32_t bits)
{
    return (word & bits) == bits;
}

#if defined(__x86_64__)

#include <cpuid.h>

#define VECTORS_256 0x6u /* state that the operating system keeps (XCR0) */
#define VECTORS_512 0xE6u
#define TILES 0x60000u

/* What the processor says it has, and what the operating system keeps. */
typedef struct features {
    uint32_t basic;     /* leaf 1, ecx */
    uint32_t ebx, ecx, edx; /* leaf 7 */
    uint32_t more;      /* leaf 7.1, eax */
    uint32_t kept;
} features;

static uint32_t kept_state(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static features find_features(void)
{
    features f = {0};
    uint32_t a = 0, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d) != 0) {
        f.basic = c;
    }
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0) {
        f.ebx = b, f.ecx = c, f.edx = d;
    }
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) {
        f.more = a;
    }
    f.kept = (f.basic & bit_OSXSAVE) != 0 ? kept_state() : 0;
    return f;
}

/* Where programs run on Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, tile data). */
static bool permit_tiles(void)
{
#if defined(__linux__)
    long result = 158; /* the call's number */
    features f = find_features();
    if (!all_of(f.kept, TILES)) {
        return false;
    }
    __asm__ volatile("syscall"
                     : "+a"(result)
                     : "D"(0x1023L), "S"(18L)
                     : "rcx", "r11", "memory");
    return result == 0;
#else
    return false;
#endif
}

static uint32_t sets_here(void)
{
    features f = find_features();
    bool avx2 = all_of(f.kept, VECTORS_256) && all_of(f.ebx, bit_AVX2) &&
                all_of(f.basic, bit_FMA);
    bool avx512 = all_of(f.kept, VECTORS_512) &&
                  all_of(f.ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512VL) &&
                  all_of(f.ecx, bit_AVX512VNNI);
    bool amx = avx512 && all_of(f.kept, TILES) &&
               all_of(f.edx, bit_AMX_TILE | bit_AMX_INT8);
    return (avx2 ? CL_SET_AVX2 : 0) | (avx512 ? CL_SET_AVX512 : 0) |
           (amx ? CL_SET_AMX : 0) |
           (avx2 && all_of(f.more, bit_AVXVNNI) ? CL_SET_AVXVNNI : 0);
}

#else

static bool permit_tiles(void)
{
    return false;
}

static uint32_t sets_here(void)
{
    uint32_t sets = 0;
#if defined(__aarch64__)
    sets |= CL_SET_NEON;
#endif
#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
    sets |= CL_SET_DOT;
#endif
#if defined(CL_HAS_I8MM)
    sets |= CL_SET_I8MM;
#endif
    return sets;
}

#endif

uint32_t cl_sets_permit(void)
{
    return permit_tiles() ? CL_ALL_SETS : CL_ALL_SETS & ~CL_SET_AMX;
}

/* Kernels of this build, best first, with the set that each needs. */

static const struct {
    const cl_kernel *kernel;
    uint32_t set;
} int8_kernels[] = {
#if defined(__x86_64__)
    {&cl_kernel_amx, CL_SET_AMX},
    {&cl_kernel_avx512, CL_SET_AVX512},
    {&cl_kernel_avxvnni, CL_SET_AVXVNNI},
    {&cl_kernel_avx2, CL_SET_AVX2},
#endif
#if defined(CL_HAS_I8MM)
    {&cl_kernel_i8mm, CL_SET_I8MM},
#endif
#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
    {&cl_kernel_dot, CL_SET_DOT},
#endif
#if defined(__aarch64__)
    {&cl_kernel_neon, CL_SET_NEON},
#endif
    {&cl_kernel_plain, 0},
};

static const struct {
    const cl_kernel_f32 *kernel;
    uint32_t set;
} float32_kernels[] = {
#if defined(__x86_64__)
    {&cl_float32_avx512, CL_SET_AVX512},
    {&cl_float32_avx2, CL_SET_AVX2},
#endif
#if defined(__aarch64__)
    {&cl_float32_neon, CL_SET_NEON},
#endif
    {&cl_float32_plain, 0},
};

#define COUNT(table) ((uint32_t)(sizeof(table) / sizeof((table)[0])))

const cl_kernel *cl_kernel_at(uint32_t index, uint32_t sets)
{
    sets &= sets_here();
    for (uint32_t i = 0; i < COUNT(int8_kernels); i++) {
        if (all_of(sets, int8_kernels[i].set) && index-- == 0) {
            return int8_kernels[i].kernel;
        }
    }
    return 0;
}

const cl_kernel_f32 *cl_kernel_f32_at(uint32_t index, uint32_t sets)
{
    sets &= sets_here();
    for (uint32_t i = 0; i < COUNT(float32_kernels); i++) {
        if (all_of(sets, float32_kernels[i].set) && index-- == 0) {
            return float32_kernels[i].kernel;
        }
    }
    return 0;
}
