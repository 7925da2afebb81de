/**
 * Validation of a mutation's `fields` against the declaration (SPEC 4), as this client makes them: an object, of a patch
 * too each field as a whole. What only others may send is for the server to refuse.
 */

import { type Check, compileField, Invalid, MAX_NESTING, TooDeep } from "./checks.ts";
import { Rejection } from "./errors.ts";
import { type Entity, type Field, type Fields, type Json, STAMPS } from "./model.ts";

/** Field → value, whatever that may be. */
export type Given = Readonly<Record<string, unknown>>;

/** The validator of an entity's mutations; compile once, use for as long as the declaration stands. */
export function compileEntity(name: string, entity: Entity): Validator {
  return new Validator(name, entity);
}

/** What a put that leaves the field out sets: its default, else null; undefined for a required field. */
export function initial(field: Field): Json | undefined {
  if (field.type === "map") return {};
  return field.default === undefined && field.nullable ? null : field.default;
}

/**
 * Turns the `fields` of puts and patches of one entity into canonical values, or throws Rejection with the code that
 * comes first in the order of SPEC 4.
 *
 * What it returns shares nested values with what it was given and with defaults: neither may be changed in place.
 */
export class Validator {
  readonly #name: string;
  readonly #fields: ReadonlyMap<string, Field>;
  readonly #checks: ReadonlyMap<string, Check>;
  readonly #readOnly: ReadonlySet<string>;

  constructor(name: string, entity: Entity) {
    this.#name = name;
    this.#fields = new Map(Object.entries(entity.fields));
    this.#checks = new Map([...this.#fields].map(([field, declared]) => [field, compileField(declared)]));
    this.#readOnly = new Set([...entity.key.columns, entity.scope.column, ...STAMPS]);
  }

  /**
   * The complete row, field → value in declaration order, defaults filled in.
   *
   * A member that is undefined counts as left out, as JSON.stringify has it.
   */
  put(fields: Given): Fields {
    const values = this.#judged(
      Object.entries(fields).filter(([, value]) => value !== undefined),
      true,
    );
    const row: Fields = {};
    for (const [name, field] of this.#fields) {
      const value = values.has(name) ? values.get(name) : initial(field);
      row[name] = value ?? null;
    }
    return row;
  }

  /** Field → value, a map as a whole. Undefined is no value. */
  patch(fields: Given): Fields {
    return Object.fromEntries(this.#judged(Object.entries(fields), false));
  }

  #judged(given: readonly [name: string, value: unknown][], whole: boolean): Map<string, Json> {
    for (const [name] of given) {
      if (this.#readOnly.has(name)) throw new Rejection("read_only_field", `${name} is not set by mutations`, name);
    }
    for (const [name] of given) {
      if (!this.#checks.has(name)) throw new Rejection("unknown_field", `${this.#name} has no field ${name}`, name);
    }
    const values = new Map<string, Json>();
    let deep: string | null = null;
    for (const [name, value] of given) {
      try {
        values.set(name, (this.#checks.get(name) as Check)(value));
      } catch (fault) {
        if (fault instanceof Invalid) throw new Rejection("invalid_field", `${name} ${fault.message}`, name);
        if (!(fault instanceof TooDeep)) throw fault;
        deep ??= name;
        values.set(name, null);
      }
    }
    for (const [name, field] of whole ? this.#fields : []) {
      if (initial(field) === undefined && !values.has(name)) {
        throw new Rejection("missing_field", `${name} is required`, name);
      }
    }
    if (deep !== null) throw new Rejection("too_deep", `${deep} nests more than ${MAX_NESTING} deep`, deep);
    return values;
  }
}
