// The same work by socket.io: authenticated by the same tokens, rooms, broadcasts to the others in a room.
// node --expose-gc server.mjs PORT SECRET
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";
import { Server } from "socket.io";

const [port, secret] = process.argv.slice(2);
const day = 86_400_000;

function subject(token) {
  const [head, claims, signature] = token.split(".");
  const expected = createHmac("sha256", secret).update(`${head}.${claims}`).digest();
  const given = Buffer.from(signature, "base64url");
  if (given.length !== expected.length || !timingSafeEqual(given, expected)) throw new Error("unauthenticated");
  const { sub, exp } = JSON.parse(Buffer.from(claims, "base64url"));
  if (exp * 1_000 < Date.now()) throw new Error("token_expired");
  return sub;
}

const http = createServer((request, response) => {
  if (request.url === "/collect") globalThis.gc();
  response.end("{}");
});
const io = new Server(http, {
  transports: ["websocket"],
  perMessageDeflate: false,
  serveClient: false,
  pingInterval: day,
  pingTimeout: day,
});

io.use((socket, next) => {
  try {
    socket.data.user = subject(socket.handshake.auth.token);
    next();
  } catch (error) {
    next(error);
  }
});
io.on("connection", (socket) => {
  socket.on("join", (room, joined) => {
    socket.join(room);
    joined();
  });
  socket.on("broadcast", (room, payload) => socket.to(room).emit("broadcast", payload));
});
http.listen({ port: Number(port), host: "127.0.0.1", backlog: 2048 });
