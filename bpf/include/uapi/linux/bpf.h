/* SPDX-License-Identifier: GPL-2.0-only */
#include <linux/bpf.h> /* bcc carries its own copy under this name */
