/* SPDX-License-Identifier: Apache-2.0
 *
 * hpke.json for C. native/tests/make_vectors.py with cryptography 50.0.2.
 */
#include <stdint.h>
static const uint8_t hpke_private_key[] = {96, 209, 232, 145, 11, 159, 231, 108, 247, 5, 200, 202, 201, 176, 113, 17, 26, 233, 124, 113, 42, 22, 147, 136, 8, 185, 219, 78, 169, 77, 171, 113};
#define hpke_private_key_bytes 32u
static const uint8_t hpke_public_key[] = {138, 217, 227, 56, 120, 154, 69, 50, 29, 1, 35, 195, 205, 194, 107, 61, 238, 85, 249, 198, 120, 95, 78, 7, 104, 237, 17, 227, 140, 15, 115, 80};
#define hpke_public_key_bytes 32u
static const uint8_t hpke_info[] = {99, 108, 111, 105, 115, 116, 101, 114, 45, 98, 117, 110, 100, 108, 101, 45, 49, 120, 169, 2, 86, 157, 139, 176, 79, 84, 122, 229, 200, 225, 186, 81, 211};
#define hpke_info_bytes 33u
static const uint8_t hpke_enc[] = {194, 197, 54, 174, 130, 73, 160, 130, 48, 9, 33, 118, 161, 186, 184, 225, 75, 212, 131, 89, 2, 145, 166, 173, 180, 40, 44, 13, 132, 96, 232, 14};
#define hpke_enc_bytes 32u
static const uint8_t hpke_ciphertext[] = {164, 211, 134, 96, 244, 253, 207, 65, 96, 41, 205, 254, 57, 155, 107, 99, 95, 108, 91, 220, 191, 19, 251, 132, 51, 138, 46, 18, 21, 165, 85, 237, 250, 175, 99, 74, 117, 101, 47, 42, 10, 62, 35, 37, 145, 98, 167, 188};
#define hpke_ciphertext_bytes 48u
static const uint8_t hpke_plaintext[] = {253, 14, 68, 114, 80, 107, 27, 244, 196, 182, 167, 68, 152, 138, 195, 93, 123, 207, 66, 172, 31, 109, 91, 175, 155, 6, 154, 87, 243, 97, 188, 48};
#define hpke_plaintext_bytes 32u
