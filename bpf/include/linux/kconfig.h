/* SPDX-License-Identifier: GPL-2.0-only */
#define CONFIG_BPF_SYSCALL 1 /* bcc asks; that the kernel has it shows when the programs load */
