/* SPDX-License-Identifier: Apache-2.0
 *
 * Commands and the layout of their parameters (docs/spec/wire.md). All
 * numbers are little-endian. Offsets are in bytes.
 */
#ifndef CL_COMMANDS_H
#define CL_COMMANDS_H

#define CL_PROTOCOL_VERSION 1u

enum {
    /* 0 output, CL_INFO_BYTES */
    CL_COMMAND_INFO = 1,
    /* 0 input, CL_LOAD_BYTES; 1 input: sealed program;
     * 2 output, CL_LOADED_BYTES */
    CL_COMMAND_LOAD = 2,
    /* 0 both, CL_RUN_BYTES; 1 input: images; 2 output: results;
     * 3 input: sealed slices (the window) */
    CL_COMMAND_RUN = 3,
    /* 0 output, CL_STATS_BYTES */
    CL_COMMAND_STATS = 4,
    /* 0 input, CL_OPEN_BYTES; 1 input: sealed slices (the window) */
    CL_COMMAND_OPEN = 5
};

/* Ciphers for program and slices (docs/spec/bundle.md). */
enum { CL_SUITE_AES_256_GCM = 1, CL_SUITE_CHACHA20_POLY1305 = 2 };

/* info */
#define CL_INFO_BYTES 160u
#define CL_INFO_VERSION 0u
#define CL_INFO_KIND 4u
#define CL_INFO_FLAGS 8u
#define CL_INFO_HEAP 16u
#define CL_INFO_PUBLIC_KEY 24u
#define CL_INFO_TEXT 56u
#define CL_INFO_TEXT_BYTES 64u
#define CL_INFO_BOARD 120u
#define CL_INFO_BOARD_BYTES 32u

/* load */
#define CL_LOAD_BYTES 136u
#define CL_LOAD_BUNDLE_ID 0u
#define CL_LOAD_MANIFEST_HASH 16u
#define CL_LOAD_ENC 48u
#define CL_LOAD_SEALED_KEY 80u
#define CL_LOAD_SUITE 128u
#define CL_LOAD_RESERVED 132u

#define CL_LOADED_BYTES 32u
#define CL_LOADED_STAGES 0u
#define CL_LOADED_SLICES 4u
#define CL_LOADED_INSIDE 8u
#define CL_LOADED_ARENA 16u

/* run */
#define CL_RUN_BYTES 64u
#define CL_RUN_STAGE 0u
#define CL_RUN_IMAGES 4u
#define CL_RUN_WINDOW_FIRST 8u
#define CL_RUN_WINDOW_COUNT 12u
#define CL_RUN_RESUME 16u
#define CL_RUN_STATE 20u
#define CL_RUN_NEEDED 24u
#define CL_RUN_DONE 28u
#define CL_RUN_RESERVED 32u

/* open */
#define CL_OPEN_BYTES 16u
#define CL_OPEN_FIRST 0u
#define CL_OPEN_COUNT 4u
#define CL_OPEN_RESERVED 8u

/* stats */
#define CL_STATS_BYTES 64u

#define CL_BUNDLE_ID_BYTES 16u
#define CL_SUITE_BYTES 4u
#define CL_HASH_BYTES 32u
#define CL_KEY_BYTES 32u
#define CL_TAG_BYTES 16u
#define CL_NONCE_BYTES 12u

#endif
