"""HTTP and websocket routes: the only place that knows Litestar and status codes."""
