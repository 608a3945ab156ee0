/* SPDX-License-Identifier: GPL-2.0-only */
/* The user code that led to a violation. */
#ifndef SEAL_MONITOR_STACK_H
#define SEAL_MONITOR_STACK_H

/* Whether a return address follows a call instruction: opcode e8, or ff with /2 in its ModRM byte.
 */
static __always_inline bool follows_call(u64 address)
{
    u8 code[7] = {}; /* the bytes before the address */

    if (bpf_probe_read_user(code, sizeof(code), (void *)(address - sizeof(code))))
        return false;
    if (code[2] == 0xe8) /* call rel32 */
        return true;
    if (code[5] == 0xff && (code[6] & 0x38) == 0x10) /* call reg; call [reg] */
        return true;
    if (code[4] == 0xff && (code[5] & 0x38) == 0x10) /* call [reg + disp8] */
        return true;
    return code[1] == 0xff && (code[2] & 0x38) == 0x10; /* call [rip + disp32], [reg + disp32] */
}

/*
 * The code that made the call. ip is in libc's wrapper for nearly every program; its wrappers keep
 * no frame, so the word at sp is where they return to. Where ip is no wrapper that word is not a
 * return address, and ip is the caller itself.
 */
static __always_inline u64 caller_of(u64 ip, u64 sp, bool compat)
{
    u64 word = 0;

    if (compat || bpf_probe_read_user(&word, sizeof(word), (void *)sp) || !follows_call(word))
        return ip;
    return word;
}

#endif
