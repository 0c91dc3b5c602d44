/* SPDX-License-Identifier: Apache-2.0
 *
 * Which kernels this machine has, best first. On x86 the processor is asked;
 * elsewhere the compiler's flags say it.
 */
#include "float32.h"
#include "int8.h"

/* A kernel of the build, and whether this machine has what it needs. */
typedef struct candidate {
    const cl_kernel *kernel;
    bool works;
} candidate;

typedef struct candidate_f32 {
    const cl_kernel_f32 *kernel;
    bool works;
} candidate_f32;

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

static bool all_of(uint32_t word, uint32_t bits)
{
    return (word & bits) == bits;
}

/* Where programs run on Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, tile data). */
bool cl_amx_permit(void)
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

static uint32_t find_candidates(candidate *found, bool amx)
{
    features f = find_features();
    bool avx2 = all_of(f.kept, VECTORS_256) && all_of(f.ebx, bit_AVX2);
    bool avx512 = all_of(f.kept, VECTORS_512) &&
                  all_of(f.ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512VL) &&
                  all_of(f.ecx, bit_AVX512VNNI);
    uint32_t n = 0;
    found[n++] = (candidate){
        &cl_kernel_amx, amx && avx512 && all_of(f.kept, TILES) &&
                            all_of(f.edx, bit_AMX_TILE | bit_AMX_INT8)};
    found[n++] = (candidate){&cl_kernel_avx512, avx512};
    found[n++] = (candidate){&cl_kernel_avxvnni,
                             avx2 && all_of(f.more, bit_AVXVNNI)};
    found[n++] = (candidate){&cl_kernel_avx2, avx2};
    return n;
}

static uint32_t find_candidates_f32(candidate_f32 *found)
{
    features f = find_features();
    uint32_t n = 0;
    found[n++] = (candidate_f32){
        &cl_float32_avx512,
        all_of(f.kept, VECTORS_512) && all_of(f.ebx, bit_AVX512F)};
    found[n++] = (candidate_f32){
        &cl_float32_avx2, all_of(f.kept, VECTORS_256) &&
                              all_of(f.ebx, bit_AVX2) &&
                              all_of(f.basic, bit_FMA)};
    return n;
}

#else

bool cl_amx_permit(void)
{
    return false;
}

static uint32_t find_candidates(candidate *found, bool amx)
{
    uint32_t n = 0;
    (void)amx;
    (void)found;
#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
    found[n++] = (candidate){&cl_kernel_dot, true};
#endif
#if defined(__aarch64__)
    found[n++] = (candidate){&cl_kernel_neon, true};
#endif
    return n;
}

static uint32_t find_candidates_f32(candidate_f32 *found)
{
    uint32_t n = 0;
    (void)found;
#if defined(__aarch64__)
    found[n++] = (candidate_f32){&cl_float32_neon, true};
#endif
    return n;
}

#endif

const cl_kernel *cl_kernel_at(uint32_t index, bool amx)
{
    candidate found[8];
    uint32_t n = find_candidates(found, amx);
    found[n++] = (candidate){&cl_kernel_plain, true};
    for (uint32_t i = 0; i < n; i++) {
        if (found[i].works && index-- == 0) {
            return found[i].kernel;
        }
    }
    return 0;
}

const cl_kernel_f32 *cl_kernel_f32_at(uint32_t index)
{
    candidate_f32 found[4];
    uint32_t n = find_candidates_f32(found);
    found[n++] = (candidate_f32){&cl_float32_plain, true};
    for (uint32_t i = 0; i < n; i++) {
        if (found[i].works && index-- == 0) {
            return found[i].kernel;
        }
    }
    return 0;
}
