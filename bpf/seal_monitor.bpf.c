// SPDX-License-Identifier: GPL-2.0-only
/*
 * All programs, for every kernel and every way to attach, as one translation unit: bcc compiles it
 * once, when the project is built, and the loader takes from it what the running kernel can attach.
 *
 * Names that no file here defines are generated from the tables in monitor/kernel/. `make setup`
 * writes them to build/definitions.h, for a reader and for an editor:
 *
 *     OP_x, OPERATIONS, NR_x   the watched calls and their numbers         operations.py, arch.py
 *     PLAIN_RANGES             cases: calls with address and length first  operations.py
 *     HIDES_REFUSAL            whether a refused call may return no error  operations.py
 *     PARTIAL_LIKE_x           cases: calls that change a part as x does   operations.py
 *     MARK_x                   a name's place in the table of marks        layouts.py
 *     OFF_struct__member       offset of a member, in bytes                a mark, see kernel.h
 *     SIZE_struct, TYPE_struct size in bytes, BTF id                       marks
 *     KFUNC_x                  the mark of a kfunc, for CALL_KFUNC         a mark
 *     OPERATION                the call that a program is loaded for       a mark
 *     HAS(struct__member)      whether the running kernel has the member   a mark, see kernel.h
 *     ARGUMENT, RESULT         what a fexit program is given               marks, see kernel.h
 *     x_MAX                    sizes                                       compiler.py
 *
 * BPF_TABLE, BPF_F_TABLE, .lookup() and their kin are bcc's; include/bcc.h declares them for an
 * editor, compile_flags.txt has the flags (clangd reads it).
 */
#include "bypasses.c"
#include "calls.c"
#include "endings.c"
#include "exits.c"
#include "faults.c"
#include "functions.c"
#include "io_uring.c"
#include "raw_exits.c"
