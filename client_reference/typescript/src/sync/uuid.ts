/** UUIDs that rise with time, so that indexes grow at their end (RFC 9562, section 5.7); time and chance come in. */

/** Version 7: 48 bits of Unix milliseconds, then chance. `bytes` are 16 random ones. */
export function uuidv7(now: number, bytes: Uint8Array): string {
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const variant = (8 + ((bytes[8] ?? 0) & 3)).toString(16);
  const time = now.toString(16).padStart(12, "0");
  return `${time.slice(0, 8)}-${time.slice(8)}-7${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20)}`;
}
