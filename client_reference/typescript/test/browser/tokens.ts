/** Tokens as the service of the tests takes them: HS256 with its secret. */

export async function tokenFor(user: string, secret: string, seconds = 3600): Promise<string> {
  const text = new TextEncoder();
  const part = (bytes: Uint8Array) =>
    btoa(String.fromCharCode(...bytes))
      .replace(/=+$/, "")
      .replaceAll("+", "-")
      .replaceAll("/", "_");
  const json = (value: object) => part(text.encode(JSON.stringify(value)));
  const said = `${json({ alg: "HS256", typ: "JWT" })}.${json({ sub: user, exp: Math.floor(Date.now() / 1000) + seconds })}`;
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("raw", text.encode(secret), algorithm, false, ["sign"]);
  return `${said}.${part(new Uint8Array(await crypto.subtle.sign("HMAC", key, text.encode(said))))}`;
}
