/**
 * What is refused before it is sent: one mutation, which will never be accepted as it stands (SPEC 4), or what is asked
 * for in a room (SPEC 6). Codes are stable; messages are for people.
 */
export class Rejection extends Error {
  override readonly name = "Rejection";
  /** One of the codes of SPEC 4; about a room, `malformed`. */
  readonly code: string;
  /** The field or path at fault, if there is one. */
  readonly field: string | null;

  constructor(code: string, message: string, field: string | null = null) {
    super(message);
    this.code = code;
    this.field = field;
  }
}
