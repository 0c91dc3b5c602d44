/* SPDX-License-Identifier: Apache-2.0
 *
 * hpke.json for C. native/tests/make_vectors.py with cryptography 50.0.2.
 */
#include <stdint.h>
static const uint8_t hpke_private_key[] = {192, 82, 8, 11, 62, 184, 88, 209, 49, 2, 173, 133, 206, 55, 31, 176, 200, 217, 23, 146, 66, 102, 154, 243, 99, 63, 101, 192, 252, 196, 197, 94};
#define hpke_private_key_bytes 32u
static const uint8_t hpke_public_key[] = {239, 51, 155, 106, 80, 138, 99, 144, 14, 6, 9, 75, 222, 113, 100, 103, 186, 240, 152, 225, 58, 144, 217, 98, 91, 209, 220, 97, 80, 236, 240, 29};
#define hpke_public_key_bytes 32u
static const uint8_t hpke_info[] = {99, 108, 111, 105, 115, 116, 101, 114, 45, 98, 117, 110, 100, 108, 101, 45, 49, 213, 102, 36, 113, 216, 96, 146, 159, 193, 253, 64, 229, 141, 55, 73, 5};
#define hpke_info_bytes 33u
static const uint8_t hpke_enc[] = {194, 208, 121, 141, 75, 13, 207, 194, 166, 68, 202, 9, 161, 116, 41, 185, 187, 42, 214, 5, 236, 141, 218, 204, 16, 129, 211, 5, 158, 5, 90, 46};
#define hpke_enc_bytes 32u
static const uint8_t hpke_ciphertext[] = {92, 70, 248, 8, 239, 193, 133, 190, 1, 126, 25, 201, 241, 254, 183, 107, 49, 82, 50, 42, 37, 204, 0, 61, 48, 186, 113, 114, 229, 36, 175, 205, 167, 113, 74, 36, 141, 22, 109, 252, 188, 182, 56, 25, 90, 129, 73, 29};
#define hpke_ciphertext_bytes 48u
static const uint8_t hpke_plaintext[] = {29, 102, 182, 192, 184, 191, 171, 59, 142, 125, 178, 89, 236, 166, 53, 235, 85, 255, 202, 31, 194, 165, 215, 206, 195, 116, 73, 139, 21, 107, 164, 81};
#define hpke_plaintext_bytes 32u
