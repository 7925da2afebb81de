/**
 * How a replica applies runs, from pull and stream alike (SPEC 5, "Applying runs").
 *
 * The replica keeps, for each scope, a `Copy`: how far it has got. `judge` says what a run does to it; keeping the
 * rows, in one transaction with the new `Copy` and with the pending edits put back on top, is the store's part.
 */

import type { Change, Changes, Run } from "../generated/messages.ts";

/** How far a replica has got in one scope. */
export interface Copy {
  /** It holds everything up to this version; `watermark` says so to the server. */
  readonly to: number;
  /** The highest head applied since the last reset or revocation. */
  readonly highest: number;
  /** Null: it has never been told one. */
  readonly watermark: string | null;
}

/** Where a replica stands that has nothing of a scope. */
export const NOTHING: Copy = { to: 0, highest: 0, watermark: null };

/** Write `changes` in order and keep `copy`, in one transaction. */
export interface Apply {
  readonly kind: "apply";
  readonly changes: readonly Change[];
  readonly copy: Copy;
  /** First drop the scope's rows (the outbox stays). */
  readonly replace: boolean;
  /** Versions awaited from `applied` verdicts lapse. */
  readonly reset: boolean;
  /** What the rows must come to afterwards, if given; if they do not, drop the watermark, pull anew, report. */
  readonly digest: string | null;
}

/** `ignore`: nothing to do; `pull`: something between is missing, pull this scope. */
export type Step = { readonly kind: "ignore" } | { readonly kind: "pull" } | Apply;

/**
 * What `run` does to a replica that stands at `copy`.
 *
 * `asked`: the run is in the answer to the replica's own latest pull, hello or follow.
 */
export function judge(copy: Copy, run: Run | Changes, asked: boolean): Step {
  const { from, to, head, watermark, changes } = run;
  const reset = run.reset === true;
  if (head < copy.highest && !(reset && asked)) return { kind: "ignore" };
  if (from === 0 && (reset || to > copy.to)) {
    const after = { to, highest: reset ? head : Math.max(copy.highest, head), watermark };
    return { kind: "apply", changes, copy: after, replace: true, reset, digest: proof(run, after) };
  }
  if (from > copy.to) return { kind: "pull" };
  const highest = Math.max(copy.highest, head);
  const after = to >= copy.to ? { to, highest, watermark } : { ...copy, highest };
  const news = changes.filter((change) => change.version > copy.to);
  return { kind: "apply", changes: news, copy: after, replace: false, reset: false, digest: proof(run, after) };
}

/** The digest to hold the rows against: of the highest head seen, and only when the replica is at it. */
function proof(run: Run | Changes, after: Copy): string | null {
  const there = run.head === run.to && run.to === after.to && after.to === after.highest;
  return there ? (run.digest ?? null) : null;
}
