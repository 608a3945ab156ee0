// SPDX-License-Identifier: GPL-2.0-only
/*
 * One translation unit: each compilation by bcc costs 0.2 s before it comes to our code. What only
 * some hosts attach is compiled only there. monitor/loader.py puts in front what it learns from the
 * running kernel: offsets, system-call numbers, sizes of maps.
 */
#include "abi.h"
#include "kernel.h"
#include "memory.h"
#include "counters.h"
#include "emit.h"
#include "task.h"
#include "proof.h"
#include "denials.c"
#include "seals.c"
#include "faults.c"
#ifdef WITH_RAW_EXITS
#include "raw_exits.c"
#endif
#ifdef WITH_IO_URING
#include "io_uring.c"
#endif
