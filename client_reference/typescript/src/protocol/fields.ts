/** Validation of a mutation's `fields` against the declaration (SPEC 4). */

import { type Check, checkJson, checkMapKey, compileField, Invalid, isPlain, MAX_NESTING, TooDeep } from "./checks.ts";
import { Rejection } from "./errors.ts";
import { type Entity, type Field, type Fields, type Json, STAMPS } from "./model.ts";
import { unescapeKey } from "./paths.ts";

const TOKEN = /^(?:[^~/]|~[01])+$/;

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
  put(fields: unknown): Fields {
    if (!isPlain(fields)) throw new Rejection("invalid_mutation", "fields must be an object");
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

  /** Path → value: `field`, or `field/key` of a map (null removes the key); never empty. Undefined is no value. */
  patch(fields: unknown): Fields {
    const given = isPlain(fields) ? Object.entries(fields) : [];
    if (given.length === 0) {
      throw new Rejection("invalid_mutation", "the fields of a patch must be an object that sets something");
    }
    return Object.fromEntries(this.#judged(given, false));
  }

  #judged(given: readonly [path: string, value: unknown][], whole: boolean): Map<string, Json> {
    for (const [path] of given) {
      if (this.#readOnly.has(path)) throw new Rejection("read_only_field", `${path} is not set by mutations`, path);
    }
    for (const [path] of given) {
      if (!this.#knows(path, whole)) throw new Rejection("unknown_field", `${this.#name} has no field ${path}`, path);
    }
    const values = new Map<string, Json>();
    const paths = new Set(given.map(([path]) => path));
    let deep: string | null = null;
    for (const [path, value] of given) {
      try {
        const check = this.#checks.get(path);
        values.set(path, check ? check(value) : entry(paths, path, value));
      } catch (fault) {
        if (fault instanceof Invalid) throw new Rejection("invalid_field", `${path} ${fault.message}`, path);
        if (!(fault instanceof TooDeep)) throw fault;
        deep ??= path;
      }
    }
    for (const [name, field] of whole ? this.#fields : []) {
      if (initial(field) === undefined && !paths.has(name)) {
        throw new Rejection("missing_field", `${name} is required`, name);
      }
    }
    if (deep !== null) throw new Rejection("too_deep", `${deep} nests more than ${MAX_NESTING} deep`, deep);
    return values;
  }

  #knows(path: string, whole: boolean): boolean {
    if (this.#checks.has(path)) return true;
    const [name = "", ...tokens] = path.split("/");
    return !whole && tokens.length === 1 && this.#fields.get(name)?.type === "map";
  }
}

/** The value set at `field/key` of a map. */
function entry(paths: ReadonlySet<string>, path: string, value: unknown): Json {
  const slash = path.indexOf("/");
  const name = path.slice(0, slash);
  const token = path.slice(slash + 1);
  if (paths.has(name)) throw new Invalid(`stands below ${name}, which is set too`);
  if (!TOKEN.test(token)) throw new Invalid("names no key: keys are not empty, and ~ is written ~0, / is written ~1");
  checkMapKey(unescapeKey(token));
  return value === null ? null : checkJson(value, MAX_NESTING - 1);
}
