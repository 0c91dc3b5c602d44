/* SPDX-License-Identifier: Apache-2.0 */
#include "bell.h"

#include <string.h>

#include "pause.h"
#include "platform.h"

enum { LOOKS = 64 }; /* between two looks at the clock */

/* Whatever the client does to the memory meanwhile: what was copied is what is
 * answered. */
bool cl_bell_hear(cl_bell *bell, uint8_t *request)
{
    uint64_t end_ns = cl_platform_now_ns() + CL_BELL_LISTEN_NS;
    bool heard = false;
    do {
        for (uint32_t i = 0; i < LOOKS && !heard; i++) {
            heard = cl_bell_state(bell) != CL_BELL_AWAKE;
            cl_pause();
        }
    } while (!heard && cl_platform_now_ns() < end_ns);
    if (!heard && cl_bell_change(bell, CL_BELL_AWAKE, CL_BELL_ASLEEP)) {
        return false;
    }
    memcpy(request, bell->request, CL_REQUEST_BYTES);
    return true;
}

bool cl_bell_give(cl_bell *bell, bool *awake, const uint8_t *response)
{
    *awake = cl_bell_state(bell) != CL_BELL_ASLEEP;
    if (!*awake) {
        return false;
    }
    memcpy(bell->response, response, CL_RESPONSE_BYTES);
    return cl_bell_set(bell, CL_BELL_AWAKE) != CL_BELL_WAITED;
}
