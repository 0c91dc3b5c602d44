/* SPDX-License-Identifier: Apache-2.0
 *
 * hpke.json for C. native/tests/make_vectors.py with cryptography 50.0.2.
 */
#include <stdint.h>
static const uint8_t hpke_private_key[] = {168, 241, 188, 79, 199, 121, 223, 34, 117, 137, 30, 26, 223, 229, 186, 5, 102, 126, 230, 44, 212, 58, 160, 175, 228, 51, 20, 97, 27, 42, 46, 95};
#define hpke_private_key_bytes 32u
static const uint8_t hpke_public_key[] = {99, 137, 127, 227, 118, 65, 75, 129, 72, 214, 250, 131, 243, 48, 80, 48, 92, 49, 132, 136, 24, 149, 34, 1, 102, 105, 31, 139, 130, 109, 28, 19};
#define hpke_public_key_bytes 32u
static const uint8_t hpke_info[] = {99, 108, 111, 105, 115, 116, 101, 114, 45, 98, 117, 110, 100, 108, 101, 45, 49, 188, 230, 102, 64, 83, 80, 227, 240, 104, 97, 142, 137, 179, 54, 6, 115};
#define hpke_info_bytes 33u
static const uint8_t hpke_enc[] = {57, 112, 203, 113, 7, 23, 228, 68, 72, 113, 240, 227, 118, 106, 95, 243, 70, 61, 58, 152, 83, 38, 158, 18, 29, 247, 140, 138, 180, 116, 175, 28};
#define hpke_enc_bytes 32u
static const uint8_t hpke_ciphertext[] = {10, 195, 42, 34, 38, 3, 98, 40, 133, 147, 58, 227, 54, 192, 147, 163, 183, 115, 104, 3, 172, 157, 245, 242, 34, 13, 183, 198, 89, 247, 66, 208, 172, 70, 12, 93, 48, 130, 164, 191, 160, 231, 139, 7, 38, 152, 29, 240};
#define hpke_ciphertext_bytes 48u
static const uint8_t hpke_plaintext[] = {212, 154, 215, 36, 186, 132, 80, 135, 12, 88, 76, 151, 246, 230, 175, 151, 120, 95, 78, 201, 121, 90, 214, 242, 62, 8, 104, 33, 245, 177, 131, 183};
#define hpke_plaintext_bytes 32u
