/**
 * The digest of a scope at a version (SPEC 5): proof that two replicas hold the same rows.
 *
 * `<live rows>-<12 hex: sum modulo 2^48 of CRC-32 over "entity/row@version" of each live row>`. A sum, so that a
 * replica can move it by differences or compute it in one pass over its rows.
 */

export const MODULUS = 2 ** 48;

const TABLE = /* @__PURE__ */ Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? 0xedb88320 ^ (crc >>> 1) : crc >>> 1;
  return crc;
});

/** What one live row adds to the sum. Names of entities and keys are ASCII: a character is a byte. */
export function term(entity: string, row: string, version: number): number {
  const name = `${entity}/${row}@${version}`;
  let crc = -1;
  for (let at = 0; at < name.length; at++) {
    crc = (TABLE[(crc ^ name.charCodeAt(at)) & 0xff] ?? 0) ^ (crc >>> 8);
  }
  return ~crc >>> 0;
}

/** The digest of so many rows whose terms come to `total`, modulo `MODULUS` or not, below 0 or not. */
export function text(live: number, total: number): string {
  const sum = ((total % MODULUS) + MODULUS) % MODULUS;
  return `${live}-${sum.toString(16).padStart(12, "0")}`;
}

/** The digest of `[entity, row, version]` of every live row. */
export function ofRows(rows: Iterable<readonly [entity: string, row: string, version: number]>): string {
  let live = 0;
  let total = 0;
  for (const row of rows) {
    live += 1;
    total = (total + term(...row)) % MODULUS;
  }
  return text(live, total);
}
