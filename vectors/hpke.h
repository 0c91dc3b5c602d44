/* SPDX-License-Identifier: Apache-2.0
 *
 * hpke.json for C. native/tests/make_vectors.py with cryptography 50.0.2.
 */
#include <stdint.h>
static const uint8_t hpke_private_key[] = {32, 238, 168, 185, 248, 66, 122, 57, 78, 227, 88, 16, 61, 200, 173, 166, 66, 5, 8, 244, 84, 156, 105, 119, 132, 135, 109, 107, 219, 88, 83, 97};
#define hpke_private_key_bytes 32u
static const uint8_t hpke_public_key[] = {193, 26, 57, 66, 151, 22, 33, 184, 232, 164, 73, 200, 130, 24, 210, 114, 25, 45, 182, 109, 225, 69, 11, 61, 151, 120, 16, 209, 44, 55, 77, 42};
#define hpke_public_key_bytes 32u
static const uint8_t hpke_info[] = {99, 108, 111, 105, 115, 116, 101, 114, 45, 98, 117, 110, 100, 108, 101, 45, 49, 183, 13, 97, 100, 72, 55, 67, 157, 28, 56, 25, 223, 90, 43, 130, 141};
#define hpke_info_bytes 33u
static const uint8_t hpke_enc[] = {226, 54, 50, 18, 115, 173, 188, 255, 229, 188, 22, 207, 169, 184, 255, 158, 89, 144, 16, 170, 253, 150, 191, 106, 165, 127, 218, 126, 162, 52, 118, 77};
#define hpke_enc_bytes 32u
static const uint8_t hpke_ciphertext[] = {157, 179, 116, 5, 232, 98, 188, 117, 87, 43, 43, 36, 49, 167, 69, 183, 254, 22, 195, 23, 8, 95, 105, 95, 197, 57, 204, 227, 118, 147, 11, 152, 200, 80, 29, 145, 56, 243, 182, 29, 250, 192, 154, 167, 169, 183, 253, 94};
#define hpke_ciphertext_bytes 48u
static const uint8_t hpke_plaintext[] = {6, 64, 96, 34, 13, 251, 192, 2, 170, 95, 122, 126, 222, 50, 187, 100, 47, 233, 228, 19, 55, 225, 252, 235, 47, 117, 96, 169, 99, 247, 1, 123};
#define hpke_plaintext_bytes 32u
