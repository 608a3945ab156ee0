/* SPDX-License-Identifier: GPL-2.0-only */
/* Empty on purpose: bcc includes it, nothing of it is needed. See linux/types.h. */
