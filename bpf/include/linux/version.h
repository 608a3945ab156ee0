/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc's own helpers test for versions long past; nothing of ours looks at this. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 10, 0)
