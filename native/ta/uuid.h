/* SPDX-License-Identifier: Apache-2.0
 *
 * The trusted application's name in the GlobalPlatform world. Client and
 * trusted application have types of their own for it, with the same members.
 */
#ifndef CL_UUID_H
#define CL_UUID_H

/* 2ad575a5-6fd2-45cf-849f-8c6948307dd6 */
#define CL_UUID                                                       \
    {                                                                 \
        0x2ad575a5, 0x6fd2, 0x45cf,                                   \
        {                                                             \
            0x84, 0x9f, 0x8c, 0x69, 0x48, 0x30, 0x7d, 0xd6            \
        }                                                             \
    }

#endif
