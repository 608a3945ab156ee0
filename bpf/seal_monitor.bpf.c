// SPDX-License-Identifier: GPL-2.0-only
/*
 * One translation unit: each compilation by bcc costs 0.2 s before it comes to our code. What only
 * some hosts attach is compiled only there (monitor/probes.py names the feature of each hook).
 * monitor/loader.py puts in front what it learns from the running kernel: offsets, system-call
 * numbers, sizes of maps.
 */
#include "abi.h"
#include "kernel.h"
#include "memory.h"
#include "counters.h"
#include "describe.h"
#include "emit.h"
#include "stack.h"
#include "call.h"
#include "task.h"
#include "proof.h"
#include "report.h"
#include "bypasses.h"
#include "seals.c"
#include "faults.c"
#ifdef WITH_EXITS
#include "exits.c"
#endif
#ifdef WITH_RAW_EXITS
#include "raw_exits.c"
#endif
#if defined(WITH_IO_URING) || defined(WITH_FUNCTIONS)
#include "io_uring.c"
#endif
#ifdef WITH_FUNCTIONS
#include "functions.c"
#endif
#include "calls.c"
#include "bypasses.c"
