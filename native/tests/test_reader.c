/* SPDX-License-Identifier: Apache-2.0
 *
 * Hostile programs: whatever the bytes are, the reader refuses them or they
 * run within their memory. Run under sanitizers to see the second.
 */
#include "bytes.h"
#include "machine.h"
#include "test.h"

/* Slices of exactly their size, made when asked for. */
typedef struct source {
    const cl_program *program;
    uint8_t *bytes;
} source;

static cl_status give(void *context, uint32_t index, const uint8_t **data)
{
    source *s = context;
    uint32_t n_bytes = cl_program_slice(s->program, index).bytes;
    free(s->bytes);
    s->bytes = malloc(n_bytes);
    CHECK(s->bytes != NULL);
    memset(s->bytes, (int)(index * 37 + 1) & 0x7F, n_bytes);
    *data = s->bytes;
    return CL_OK;
}

static void run_stage(cl_machine *machine, uint32_t stage)
{
    cl_batch batch = {0};
    uint32_t n_images = machine->program.lanes + 1;
    if (cl_machine_start(machine, stage, n_images) != CL_OK) {
        return;
    }
    cl_machine_sizes(machine, &batch);
    uint8_t *in = calloc(n_images, batch.in_image_bytes);
    uint8_t *out = malloc(n_images * batch.out_image_bytes);
    batch.in = in;
    batch.out = out;
    CHECK_EQ(cl_machine_run(machine, &batch), CL_OK);
    free(in);
    free(out);
}

/* Read an exact copy of the bytes; run every stage if they are accepted.
 * Returns: the reader's status. */
static cl_status consume(const uint8_t *bytes, uint64_t n_bytes, cl_side side)
{
    cl_program program;
    cl_machine machine;
    uint8_t *copy = malloc(n_bytes + 1);
    if (n_bytes != 0) {
        memcpy(copy + 1, bytes, n_bytes); /* not aligned, on purpose */
    }
    cl_status status = cl_program_read(&program, copy + 1, n_bytes, side);
    if (status == CL_OK && program.arena_bytes < 1u << 20) {
        source s = {&program, NULL};
        uint64_t lane_bytes = cl_program_layout(&program).lane_bytes;
        /* the last lane ends where its arena does */
        uint8_t *arena = calloc(1, (program.lanes - 1) * lane_bytes +
                                       program.arena_bytes + 1);
        cl_machine_init(&machine, &program, arena, give, &s, 0);
        for (uint32_t i = 0; i < program.n_stages; i++) {
            run_stage(&machine, i);
        }
        free(arena);
        free(s.bytes);
    }
    free(copy);
    return status;
}

static void test_accepts_everything(void)
{
    uint8_t bytes[8192];
    assembly a = everything(0);
    CHECK_EQ(consume(bytes, assemble(&a, bytes), CL_OUTSIDE), CL_OK);
    a = everything(1);
    a.slot_bytes = 4 * 6 * 55;
    CHECK_EQ(consume(bytes, assemble(&a, bytes), CL_INSIDE), CL_OK);
    CHECK_EQ(consume(bytes, assemble(&a, bytes), CL_OUTSIDE), CL_BAD_HEADER);
    a.slot_bytes--;
    CHECK_EQ(consume(bytes, assemble(&a, bytes), CL_INSIDE), CL_BAD_SLICE);
}

/* As many lanes as the format allows, in exactly the memory of its formula. */
static void test_lanes(void)
{
    uint8_t bytes[8192];
    assembly a = everything(1);
    cl_program program;
    a.slot_bytes = 4 * 6 * 55;
    for (a.lanes = 1; a.lanes <= 64; a.lanes = 2 * a.lanes + 1) {
        uint32_t n = assemble(&a, bytes);
        CHECK_EQ(consume(bytes, n, CL_INSIDE), CL_OK);
        CHECK_EQ(cl_program_read(&program, bytes, n, CL_INSIDE), CL_OK);
        CHECK_EQ(cl_program_layout(&program).total,
                 4096 + cl_up(n, 64) + a.lanes * cl_up(a.arena_bytes, 64) +
                     cl_up(a.slot_bytes, 64));
        a.budget_bytes = (uint32_t)cl_program_layout(&program).total;
        CHECK_EQ(consume(bytes, assemble(&a, bytes), CL_INSIDE), CL_OK);
        a.budget_bytes--;
        CHECK_EQ(consume(bytes, assemble(&a, bytes), CL_INSIDE),
                 CL_OVER_BUDGET);
        a.budget_bytes = 0;
    }
    a.lanes = 65;
    CHECK_EQ(consume(bytes, assemble(&a, bytes), CL_INSIDE), CL_BAD_HEADER);
}

static void test_refuses_truncation_and_more(void)
{
    uint8_t bytes[8192] = {0};
    assembly a = everything(0);
    uint32_t n = assemble(&a, bytes);
    for (uint32_t i = 0; i < n; i++) {
        CHECK(consume(bytes, i, CL_OUTSIDE) != CL_OK);
    }
    CHECK_EQ(consume(bytes, n + 4, CL_OUTSIDE), CL_BAD_LENGTH);
}

/* Every word, one at a time. */
static void test_survives_bad_words(void)
{
    static const uint32_t bad[] = {
        0, 1, 2, 7, 15, 17, 127, 128, 255, 65535, 65536, 0x7FFFFFFF,
        0x80000000, 0xFFFFFF80, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF,
        0x7FC00000, 0x7F800000, 0xFF800000};
    uint8_t bytes[8192];
    assembly a = everything(0);
    uint32_t n = assemble(&a, bytes);
    for (uint32_t at = 0; at < n; at += 4) {
        uint32_t before;
        memcpy(&before, bytes + at, 4);
        for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
            memcpy(bytes + at, &bad[i], 4);
            (void)consume(bytes, n, CL_OUTSIDE);
            (void)consume(bytes, n, CL_INSIDE);
        }
        memcpy(bytes + at, &before, 4);
    }
}

static void test_survives_mutations(uint32_t seed, uint32_t rounds)
{
    uint8_t original[8192], bytes[8192];
    assembly a = everything(0);
    uint32_t n = assemble(&a, original);
    uint32_t accepted = 0;
    for (uint32_t i = 0; i < rounds; i++) {
        memcpy(bytes, original, n);
        for (uint32_t k = 1 + below(&seed, 3); k > 0; k--) {
            uint32_t at = 8 + below(&seed, n - 8);
            uint32_t how = below(&seed, 3);
            bytes[at] = how == 0   ? (uint8_t)draw(&seed)
                        : how == 1 ? (uint8_t)(bytes[at] + 1)
                                   : (uint8_t)(bytes[at] - 1);
        }
        accepted += consume(bytes, n, CL_OUTSIDE) == CL_OK;
    }
    printf("%u of %u mutated programs were accepted and ran\n", accepted,
           rounds);
}

/* One rule each: a change and the status that it must give. */
static void test_names_the_broken_rule(void)
{
    enum { TENSORS = 16, SLICES = TENSORS + 8 * 6, OPS = SLICES + 4 * 5 };
    static const struct {
        uint32_t word, value;
        cl_status status;
    } cases[] = {
        {0, 0, CL_BAD_MAGIC},
        {1, 2, CL_BAD_VERSION},
        {2, 0, CL_BAD_LENGTH},
        {4, 0xFFFFFFFF, CL_BAD_LENGTH},
        {5, 8193, CL_BAD_HEADER},
        {7, 0, CL_BAD_HEADER},
        {7, 3, CL_BAD_STAGE},
        {9, 64, CL_BAD_HEADER},
        {11, 4096, CL_OVER_BUDGET},
        {12, 0, CL_BAD_HEADER},
        {12, 2, CL_BAD_HEADER},
        {12, 65, CL_BAD_HEADER},
        {13, 1, CL_BAD_HEADER},
        {15, 1, CL_BAD_HEADER},
        {TENSORS, 8, CL_BAD_TENSOR},
        {TENSORS, 0xFFFFFFF0, CL_BAD_TENSOR},
        {TENSORS + 1, 3, CL_BAD_TENSOR},
        {TENSORS + 2, 0, CL_BAD_TENSOR},
        {TENSORS + 2, 0xFFFFFFFF, CL_BAD_TENSOR},
        {TENSORS + 5, 128, CL_BAD_TENSOR},
        {TENSORS + 2 * 6 + 5, 1, CL_BAD_TENSOR},
        {SLICES, 1, CL_BAD_SLICE},
        {SLICES + 1, 0, CL_BAD_SLICE},
        {SLICES + 2, 105, CL_BAD_SLICE},
        {SLICES + 3, 0, CL_BAD_SLICE},
        {SLICES + 4, 16, CL_BAD_SLICE},
        {OPS, 0, CL_BAD_OPERATION},
        {OPS, 10, CL_BAD_OPERATION},
        {OPS + 1, 17, CL_BAD_OPERATION},
        {OPS + 2, 8, CL_BAD_OPERATION},
        {OPS + 3, 0, CL_BAD_OVERLAP},
        {OPS + 5, 1, CL_BAD_SLICE},
        {OPS + 5, 5, CL_BAD_SLICE},
        {OPS + 6, 0, CL_BAD_OPERATION},
        {OPS + 14, 3, CL_BAD_OPERATION},
        {OPS + 14, 0, CL_BAD_OPERATION},
        {OPS + 15, 0, CL_BAD_OVERLAP},
        {OPS + 15, 8, CL_BAD_OPERATION},
        {OPS + 16, 128, CL_BAD_OPERATION},
        {OPS + 17, (uint32_t)-129, CL_BAD_OPERATION},
        {OPS + 18 + 8, 9, CL_BAD_OPERATION},       /* windows in the padding */
        {OPS + 32 + 12, 0x7FC00000, CL_BAD_OPERATION}, /* m is a NaN */
        {OPS + 32 + 10, 2, CL_BAD_OPERATION},
        {OPS + 32 + 11, 0x80000000, CL_BAD_OPERATION},
    };
    uint8_t bytes[8192];
    assembly a = everything(0);
    uint32_t n = assemble(&a, bytes);
    for (uint32_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t before;
        memcpy(&before, bytes + 4 * cases[i].word, 4);
        memcpy(bytes + 4 * cases[i].word, &cases[i].value, 4);
        cl_status status = consume(bytes, n, CL_OUTSIDE);
        if (status != cases[i].status) {
            printf("case %u: got 0x%x\n", i, (unsigned)status);
        }
        CHECK_EQ(status, cases[i].status);
        memcpy(bytes + 4 * cases[i].word, &before, 4);
    }
}

static void test_resident_slices_must_not_overlap(void)
{
    uint8_t bytes[8192];
    assembly a = everything(1);
    a.slot_bytes = 4 * 6 * 55;
    a.resident_bytes = 512;
    a.slices[0][3] = 0;
    a.slices[1][3] = 320;
    CHECK_EQ(consume(bytes, assemble(&a, bytes), CL_INSIDE), CL_OK);
    a.slices[1][3] = 256;
    CHECK_EQ(consume(bytes, assemble(&a, bytes), CL_INSIDE), CL_BAD_SLICE);
    a.slices[1][3] = 321;
    CHECK_EQ(consume(bytes, assemble(&a, bytes), CL_INSIDE), CL_BAD_SLICE);
    a.slices[1][3] = 448;
    CHECK_EQ(consume(bytes, assemble(&a, bytes), CL_INSIDE), CL_BAD_SLICE);
}

int main(int argc, char **argv)
{
    uint32_t seed = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 20260801;
    uint32_t rounds = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 20000;
    printf("seed %u\n", seed);
    test_accepts_everything();
    test_lanes();
    test_refuses_truncation_and_more();
    test_names_the_broken_rule();
    test_resident_slices_must_not_overlap();
    test_survives_bad_words();
    test_survives_mutations(seed, rounds);
    return 0;
}
