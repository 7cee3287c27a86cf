/* What the libraries have in common that stand before libc (LD_PRELOAD) and let calls fail.
 *
 * A library counts calls of some kinds, and lets one of them fail: fault_begin(2, 5, 28) lets the
 * fifth call from now on of the kind with index 2 fail with errno 28. Nothing is counted before
 * fault_begin(), nor after fault_end(). faults/seam.py is the other side.
 *
 * Include it once, after KINDS is defined: X(name) for each kind.
 */
#ifndef PYCKPT_FAULTS_SEAM_H_
#define PYCKPT_FAULTS_SEAM_H_

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define X(name) k_##name,
enum kind { KINDS kKinds };
#undef X
#define X(name) #name " "
static const char* const kNames = KINDS;
#undef X

enum { kShort = -1 }; /* in place of an errno: half of the bytes */

static atomic_int counting;
static atomic_long counts[kKinds];
static int failing = -1;
static long failing_number;
static int failing_error;
static int failing_all_behind; /* not this call alone, but also all behind it */
static atomic_int has_failed;
static int refused[kKinds]; /* an errno with which all calls of a kind fail */
static char place[512];     /* what the call that failed was about */

const char* fault_kinds(void) { return kNames; }

/* From now on, until it is called again with 0, all counted calls of the kind fail. */
void fault_refuse(int kind, int error) { refused[kind] = error; }

void fault_begin(int kind, long number, int error, int all_behind) {
  for (int i = 0; i < kKinds; ++i) atomic_store(&counts[i], 0);
  place[0] = 0;
  failing = kind;
  failing_number = number;
  failing_error = error;
  failing_all_behind = all_behind;
  atomic_store(&has_failed, 0);
  atomic_store(&counting, 1);
}

/* Returns whether a call has failed as planned. */
int fault_end(void) {
  atomic_store(&counting, 0);
  return atomic_load(&has_failed);
}

long fault_count(int kind) { return atomic_load(&counts[kind]); }

const char* fault_place(void) { return place; }

/* Counts a call. Returns what shall become of it: 0, an errno, or kShort. */
static int planned(enum kind kind) {
  if (!atomic_load_explicit(&counting, memory_order_relaxed)) return 0;
  const long number = atomic_fetch_add(&counts[kind], 1) + 1;
  if (refused[kind] != 0) return refused[kind];
  if ((int)kind != failing) return 0;
  if (failing_all_behind ? number < failing_number : number != failing_number) return 0;
  atomic_store(&has_failed, 1);
  return failing_error;
}

#endif
