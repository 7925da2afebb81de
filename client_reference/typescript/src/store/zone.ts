/**
 * Steps inside a transaction of the app's.
 *
 * Native `await` leaves the zone of an implicit transaction, where Dexie's layers below look for it; Dexie's own
 * promises keep it. So what happens in there is written as a generator: `const old = yield* wait(table.get(…))`.
 */

import Dexie from "dexie";

export type Steps<T> = Generator<PromiseLike<unknown>, T, unknown>;

export function* wait<T>(promise: PromiseLike<T>): Steps<T> {
  return (yield promise) as T;
}

/** Run steps to their end, each within the zone of now. */
export function inZone<T>(steps: Steps<T>): Promise<T> {
  const advance = ({ done, value }: IteratorResult<PromiseLike<unknown>, T>): T | PromiseLike<T> =>
    done
      ? value
      : Dexie.Promise.resolve(value).then(
          (came) => advance(steps.next(came)),
          (failed) => advance(steps.throw(failed)),
        );
  return new Dexie.Promise<T>((resolve) => resolve(advance(steps.next()))) as Promise<T>;
}
